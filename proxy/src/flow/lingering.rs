//! Sockets of closed flows that had last words to say: closed at once, with bytes unread, they would be reset and the words
//! with them.

use std::os::fd::OwnedFd;

use super::socket::{self, Moved};

/// How long they wait for their peers to read them, milliseconds.
const LINGER_MS: u64 = 2000;
/// How often they are looked at.
const LINGER_STEP_MS: u64 = 50;
/// Most sockets that wait so, per thread.
const MAX_LINGERING: usize = 1024;

/// Sockets of closed flows whose peers may still read.
#[derive(Default)]
pub(super) struct Lingering {
    socks: Vec<(OwnedFd, u64)>,
    look_at: u64,
}

impl Lingering {
    /// Takes the sockets of a closed flow.
    pub(super) fn push(&mut self, socks: [OwnedFd; 2], now_ms: u64) {
        for sock in socks {
            if self.socks.len() < MAX_LINGERING && !over(&sock) {
                self.socks.push((sock, now_ms + LINGER_MS));
                self.look_at = now_ms + LINGER_STEP_MS;
            }
        }
    }

    /// When they are to be looked at.
    pub(super) fn next_ms(&self) -> Option<u64> {
        (!self.socks.is_empty()).then_some(self.look_at)
    }

    /// Drops what came and closes the sockets whose peers have closed, or whose time is over.
    pub(super) fn review(&mut self, now_ms: u64) {
        if self.socks.is_empty() || now_ms < self.look_at {
            return;
        }
        self.look_at = now_ms + LINGER_STEP_MS;
        self.socks.retain(|(sock, until)| now_ms < *until && !over(sock));
    }
}

/// Reads and drops, a little at a time; true at the end of the stream.
fn over(sock: &OwnedFd) -> bool {
    let mut dropped = [0; 4096];
    for _ in 0..16 {
        match socket::recv(sock, &mut dropped) {
            Moved::Bytes(_) => {}
            Moved::Blocked => return false,
            Moved::End | Moved::Failed(_) => return true,
        }
    }
    false
}
