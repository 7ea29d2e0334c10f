//! Any bytes as what the proxy and the keeper of its gate tell each other: however the socket cuts them, messages or a refusal,
//! never a panic; no more memory than what has come accounts for; what is taken arrives as the same when it is sent on.
#![no_main]

use std::alloc::System;
use std::fmt::Debug;
use std::io::{self, Read};

use cap::Cap;
use libfuzzer_sys::fuzz_target;
use mksgate::xdp::message::{Answer, Question, receive, send};
use serde::{Serialize, de::DeserializeOwned};

#[global_allocator]
static MEMORY: Cap<System> = Cap::new(System, usize::MAX);

/// For a message that says nothing.
const BASE: usize = 16 << 10;
/// For each byte that has come. An empty name is three bytes of JSON, and 24 in a vector that moves as it doubles.
const TIMES: usize = 48;

/// Gives so many bytes at once, and is interrupted before it does.
struct Socket<'a> {
    rest: &'a [u8],
    cut: usize,
    interrupted: bool,
}

impl Read for Socket<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.interrupted = !self.interrupted;
        if self.interrupted {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let taken = (&self.rest[..self.cut.min(self.rest.len())]).read(into)?;
        self.rest = &self.rest[taken..];
        Ok(taken)
    }
}

/// The next message. An allocation beyond the limit fails, which is an error of the read or the end of the process.
fn next<T: DeserializeOwned>(socket: &mut Socket<'_>) -> io::Result<Option<T>> {
    MEMORY.set_limit(MEMORY.allocated() + BASE + TIMES * socket.rest.len()).expect("more than there is");
    let message = receive(socket);
    MEMORY.set_limit(usize::MAX).expect("more than there is");
    if let Err(error) = &message {
        assert_ne!(error.kind(), io::ErrorKind::OutOfMemory, "more than has come");
    }
    message
}

fn same(one: &impl Debug, other: &impl Debug) {
    assert_eq!(format!("{one:?}"), format!("{other:?}"));
}

fn read<T: Serialize + DeserializeOwned + Debug>(stream: &[u8], cut: usize) {
    let socket = |cut| Socket { rest: stream, cut, interrupted: false };
    let (mut whole, mut pieces) = (socket(usize::MAX), socket(cut));
    loop {
        match (next::<T>(&mut whole), next::<T>(&mut pieces)) {
            (Ok(Some(message)), Ok(Some(other))) => {
                same(&message, &other);
                let mut sent = Vec::new();
                send(&mut sent, &message).expect("of a size that was taken");
                same(&message, &receive::<T>(&sent[..]).expect("what was sent").expect("a message"));
            }
            (Ok(None), Ok(None)) => return assert!(whole.rest.is_empty() && pieces.rest.is_empty()),
            (Err(one), Err(other)) => return assert_eq!(one.kind(), other.kind()),
            (one, other) => panic!("whole {one:?}, in pieces {other:?}"),
        }
        assert_eq!(whole.rest, pieces.rest, "both are at the next message");
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&how, rest)) = bytes.split_first() else { return };
    let mut stream = rest.to_vec();
    if how & 2 == 0 {
        // As the text of a message, which comes twice.
        stream = [&[1][..], &(rest.len() as u32).to_le_bytes(), rest].concat().repeat(2);
    }
    let cut = usize::from(how >> 2) + 1;
    if how & 1 == 0 { read::<Question>(&stream, cut) } else { read::<Answer>(&stream, cut) }
});
