//! A bounded pool of pipes, one pool per engine thread.
//!
//! A bulk direction holds a pipe only while bytes are in it. A pipe comes back only when it is empty (invariant 5);
//! one that is not is closed. `fs.pipe-user-pages-soft` makes new pipes small or refuses `F_SETPIPE_SZ`: such a
//! pipe is not taken, the flow copies instead, and the pool asks again a second later.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

/// Milliseconds without a new attempt after a pipe could not be made.
const RETRY_MS: u64 = 1000;

/// An empty pipe, or one whose owner knows how much is in it.
pub(super) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    bytes: u32,
}

impl Pipe {
    /// Most bytes it takes. It may refuse earlier: every segment takes a slot, however short.
    pub(super) fn capacity(&self) -> usize {
        self.bytes as usize
    }

    /// The end to take from.
    pub(super) fn read_end(&self) -> BorrowedFd<'_> {
        self.read.as_fd()
    }

    /// The end to fill.
    pub(super) fn write_end(&self) -> BorrowedFd<'_> {
        self.write.as_fd()
    }

    /// Appends up to `bytes` of what is in it to `into`; returns how many there were.
    pub(super) fn read(&self, into: &mut Vec<u8>, bytes: usize) -> usize {
        let from = into.len();
        into.resize(from + bytes, 0);
        let mut at = from;
        while at < into.len() {
            match nix::unistd::read(&self.read, &mut into[at..]) {
                Ok(n) if n > 0 => at += n,
                Err(nix::errno::Errno::EINTR) => {}
                _ => break,
            }
        }
        into.truncate(at);
        at - from
    }

    fn open(bytes: usize) -> Option<Self> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).ok()?;
        let got = fcntl(&write, FcntlArg::F_SETPIPE_SZ(i32::try_from(bytes).ok()?)).ok()?;
        let bytes = u32::try_from(got).ok().filter(|got| *got as usize >= bytes)?;
        Some(Self { read, write, bytes })
    }
}

/// The pool.
pub(super) struct Pipes {
    idle: Vec<Pipe>,
    in_use: usize,
    max: usize,
    bytes: usize,
    refused_until_ms: u64,
    /// Fewest idle pipes since the last trim: those were not needed.
    spare: usize,
    /// How often a pipe could not be had.
    pub(super) refused: u64,
}

impl Pipes {
    /// A pool of at most `max` pipes of `bytes` each.
    pub(super) fn new(max: usize, bytes: usize) -> Self {
        let idle = Vec::new();
        Self { idle, in_use: 0, max, bytes: bytes.max(1), refused_until_ms: 0, spare: 0, refused: 0 }
    }

    /// An empty pipe, or `None` (counted): the caller copies.
    pub(super) fn take(&mut self, now_ms: u64) -> Option<Pipe> {
        let pipe = self.idle.pop().or_else(|| self.open(now_ms));
        match pipe {
            Some(_) => {
                self.in_use += 1;
                self.spare = self.spare.min(self.idle.len());
            }
            None => self.refused += 1,
        }
        pipe
    }

    /// Takes a pipe back. `left` is the number of bytes in it; a pipe with bytes in it is closed.
    pub(super) fn put(&mut self, pipe: Pipe, left: usize) {
        self.in_use -= 1;
        if left == 0 {
            self.idle.push(pipe);
        }
    }

    /// Pipes held by flows.
    pub(super) fn in_use(&self) -> usize {
        self.in_use
    }

    /// Pipes waiting for a flow.
    pub(super) fn idle(&self) -> usize {
        self.idle.len()
    }

    /// Closes half of the pipes that nobody needed since the last call.
    pub(super) fn trim(&mut self) {
        let close = self.spare.div_ceil(2);
        self.idle.truncate(self.idle.len() - close.min(self.idle.len()));
        self.spare = self.idle.len();
    }

    fn open(&mut self, now_ms: u64) -> Option<Pipe> {
        if self.in_use >= self.max || now_ms < self.refused_until_ms {
            return None;
        }
        let pipe = Pipe::open(self.bytes);
        if pipe.is_none() {
            self.refused_until_ms = now_ms + RETRY_MS;
        }
        pipe
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::socket::{Moved, splice};

    #[test]
    fn a_pipe_with_bytes_in_it_is_never_handed_out_again() {
        let mut pipes = Pipes::new(2, 64 << 10);
        let pipe = pipes.take(0).expect("a pipe");
        nix::unistd::write(pipe.write_end(), b"another tenant's").expect("written");
        pipes.put(pipe, 16);
        assert_eq!((pipes.in_use(), pipes.idle()), (0, 0));
        let pipe = pipes.take(0).expect("a pipe");
        let other = pipes.take(0).expect("a pipe");
        assert_eq!(splice(pipe.read_end(), other.write_end(), 16), Moved::Blocked);
    }

    #[test]
    fn the_pool_is_bounded_counts_refusals_and_reuses() {
        let mut pipes = Pipes::new(1, 4096);
        let pipe = pipes.take(0).expect("a pipe");
        assert_eq!(pipe.capacity(), 4096);
        assert!(pipes.take(0).is_none());
        assert_eq!(pipes.refused, 1);
        pipes.put(pipe, 0);
        assert_eq!((pipes.in_use(), pipes.idle()), (0, 1));
        assert!(pipes.take(0).is_some());
    }

    #[test]
    fn a_size_the_kernel_refuses_is_not_tried_again_for_a_second() {
        let mut pipes = Pipes::new(8, 1 << 31);
        assert!(pipes.take(5).is_none());
        pipes.bytes = 4096;
        assert!(pipes.take(5 + RETRY_MS - 1).is_none());
        assert!(pipes.take(5 + RETRY_MS).is_some());
        assert_eq!(pipes.refused, 2);
    }

    #[test]
    fn unused_pipes_are_closed_little_by_little() {
        let mut pipes = Pipes::new(8, 4096);
        let held: Vec<_> = (0..8).filter_map(|_| pipes.take(0)).collect();
        held.into_iter().for_each(|pipe| pipes.put(pipe, 0));
        pipes.trim();
        assert_eq!(pipes.idle(), 8, "all of them were in use since the last trim");
        for left in [4, 2, 1, 0] {
            pipes.trim();
            assert_eq!(pipes.idle(), left);
        }
    }
}
