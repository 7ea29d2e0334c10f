//! Requests at a fixed pace below saturation, and the answers to them.
//!
//! What is untouched loses nothing; how much more a sender could have pushed through is another question, and on a machine whose
//! cores the flood's generator shares, one about who gets the core. So every tick offers the same few requests, and what counts is
//! how many were answered. Nothing is sent again. A sender that was kept from its core offers no burst later on: it takes longer,
//! and its rate shows it.

use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use serde::Serialize;
use socket2::Socket;

/// Between two looks at the clock.
pub const TICK: Duration = Duration::from_millis(1);
/// Ticks that may be made up for at once.
const BEHIND: u32 = 4;
/// How long the last answers may take.
const LAST: Duration = Duration::from_millis(200);

/// What was offered in one window, and what came of it.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Carried {
    /// Requests sent.
    pub offered: u64,
    /// Those that were answered.
    pub answered: u64,
    /// From the first request to the end of the last one's tick.
    pub seconds: f64,
}

impl Carried {
    /// Requests answered per second.
    pub fn rate(&self) -> f64 {
        self.answered as f64 / self.seconds
    }

    /// Windows together.
    pub fn and(self, other: Self) -> Self {
        Self {
            offered: self.offered + other.offered,
            answered: self.answered + other.answered,
            seconds: self.seconds + other.seconds,
        }
    }
}

/// One kind of request, over a socket that is connected or bound to where it goes.
pub struct Exchange<'a> {
    /// The asking end.
    pub socket: &'a Socket,
    /// What is sent.
    pub request: &'a [u8],
    /// How many in each tick.
    pub per_tick: u64,
    /// What counts of one thing received: 1 for an answer, or its bytes where there are no borders.
    pub counts: &'a dyn Fn(&[u8]) -> usize,
    /// How much an answer counts.
    pub whole: usize,
}

impl Exchange<'_> {
    /// Asks for `time`, then waits for the last answers.
    pub fn run(&self, time: Duration) -> io::Result<Carried> {
        let ticks = u32::try_from(time.as_nanos() / TICK.as_nanos()).unwrap_or(u32::MAX).max(1);
        let (start, mut got) = (Instant::now(), 0);
        let mut due = start;
        for _ in 0..ticks {
            for _ in 0..self.per_tick {
                self.ask()?;
            }
            got += self.at_hand()?;
            due += TICK;
            let now = Instant::now();
            match due.checked_duration_since(now) {
                Some(early) => thread::sleep(early),
                None => due = due.max(now.checked_sub(BEHIND * TICK).unwrap_or(now)),
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        let offered = u64::from(ticks) * self.per_tick;
        let all = offered as usize * self.whole;
        let end = Instant::now() + LAST;
        while got < all {
            let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
                break;
            };
            got += self.next(left)?;
        }
        Ok(Carried { offered, answered: (got.min(all) / self.whole) as u64, seconds })
    }

    /// A full queue loses, and nothing is sent again.
    fn ask(&self) -> io::Result<()> {
        let mut rest = self.request;
        while !rest.is_empty() {
            match self.socket.send(rest) {
                Ok(n) => rest = &rest[n..],
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What has come already.
    fn at_hand(&self) -> io::Result<usize> {
        let (mut buffer, mut got) = ([0; 2048], 0);
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => got += (self.counts)(&buffer[..n]),
                Err(Errno::EAGAIN) => return Ok(got),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The next thing that comes, or nothing in this time.
    fn next(&self, within: Duration) -> io::Result<usize> {
        let mut buffer = [0; 2048];
        self.socket.set_read_timeout(Some(within))?;
        match (&mut &*self.socket).read(&mut buffer) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => Ok((self.counts)(&buffer[..n])),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use socket2::{Domain, Type};

    use super::*;

    #[test]
    fn answers_that_do_not_come_are_missed_and_those_of_others_do_not_count() {
        let (near, far) = Socket::pair(Domain::UNIX, Type::DGRAM, None).unwrap();
        let asking = thread::spawn(move || {
            let counts = |answer: &[u8]| usize::from(answer == b"yes");
            let exchange =
                Exchange { socket: &near, request: b"well?", per_tick: 4, counts: &counts, whole: 1 };
            exchange.run(Duration::from_millis(25)).unwrap()
        });
        let mut question = [0; 8];
        for number in 0..100 {
            assert_eq!((&far).read(&mut question).unwrap(), 5);
            let answer: &[u8] = if number % 4 == 0 { b"no" } else { b"yes" };
            far.send(answer).unwrap();
        }
        let carried = asking.join().unwrap();
        assert_eq!((carried.offered, carried.answered), (100, 75));
        assert!(carried.seconds >= 0.025 && carried.rate() <= 75.0 / 0.025);
    }

    #[test]
    fn bytes_without_borders_are_divided_into_answers() {
        let (near, far) = Socket::pair(Domain::UNIX, Type::STREAM, None).unwrap();
        far.send(&[0; 35]).unwrap();
        let exchange =
            Exchange { socket: &near, request: b"?", per_tick: 1, counts: &|piece| piece.len(), whole: 10 };
        let carried = exchange.run(Duration::from_millis(4)).unwrap();
        assert_eq!((carried.offered, carried.answered), (4, 3));
    }
}
