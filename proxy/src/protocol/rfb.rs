//! The part of RFB 3.8 (RFC 6143, 7.1 and 7.3.1) that authd streams leave out: ESXi sends ServerInit at once, an ordinary
//! viewer wants version, security and ClientInit before. The proxy (or `mksgate connect`) plays the server's side of those.

use thiserror::Error;

/// The version line a server sends first, exactly 12 bytes.
pub const VERSION: &[u8; 12] = b"RFB 003.008\n";

/// What a viewer did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RfbError {
    /// Not `RFB 003.00x\n`.
    #[error("the viewer's version line is not RFB's")]
    Version,
    /// A security type that was not offered.
    #[error("the viewer chose a security type that was not offered")]
    Security,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send these bytes and feed what comes.
    Send(&'static [u8]),
    /// More of the viewer's bytes are needed.
    Wait,
    /// The handshake is over; bytes behind ClientInit stay in the buffer and belong to the VM.
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Greet,
    Version,
    Result,
    Security,
    ClientInit,
    Done,
}

/// The server's side of the missing handshake.
#[derive(Debug)]
pub struct Handshake {
    state: State,
}

impl Default for Handshake {
    fn default() -> Self {
        Self::new()
    }
}

impl Handshake {
    /// A handshake in which nothing was sent yet.
    pub fn new() -> Self {
        Self { state: State::Greet }
    }

    /// The next step; takes what it consumes off the front of `buffer`.
    pub fn step(&mut self, buffer: &mut Vec<u8>) -> Result<Step, RfbError> {
        match self.state {
            State::Greet => {
                self.state = State::Version;
                Ok(Step::Send(VERSION))
            }
            State::Version => {
                let Some(version) = buffer.first_chunk::<12>() else { return Ok(Step::Wait) };
                if !version.starts_with(b"RFB 003.00") || version[11] != b'\n' {
                    return Err(RfbError::Version);
                }
                let old = version[10] == b'3';
                let three_seven = version[10] == b'7';
                buffer.drain(..12);
                // RFC 6143 7.1.2 and appendix A: 3.3 servers decide alone (a u32), 3.7 sends no SecurityResult for None.
                self.state = match (old, three_seven) {
                    (true, _) => State::ClientInit,
                    (_, true) => State::Security,
                    _ => State::Result,
                };
                Ok(Step::Send(if old { &[0, 0, 0, 1] } else { &[1, 1] }))
            }
            State::Result => {
                // What is offered can only be taken, so the result follows the offer: a round trip less.
                self.state = State::Security;
                Ok(Step::Send(&[0, 0, 0, 0]))
            }
            State::Security => {
                let Some(&chosen) = buffer.first() else { return Ok(Step::Wait) };
                if chosen != 1 {
                    return Err(RfbError::Security);
                }
                buffer.drain(..1);
                self.state = State::ClientInit;
                self.step(buffer)
            }
            State::ClientInit => {
                if buffer.is_empty() {
                    return Ok(Step::Wait);
                }
                buffer.drain(..1);
                self.state = State::Done;
                Ok(Step::Done)
            }
            State::Done => Ok(Step::Done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn play(viewer: &[u8]) -> (Vec<u8>, Vec<u8>, Result<bool, RfbError>) {
        let (mut handshake, mut buffer, mut sent) = (Handshake::new(), viewer.to_vec(), Vec::new());
        loop {
            match handshake.step(&mut buffer) {
                Ok(Step::Send(bytes)) => sent.extend_from_slice(bytes),
                Ok(Step::Wait) => return (sent, buffer, Ok(false)),
                Ok(Step::Done) => return (sent, buffer, Ok(true)),
                Err(error) => return (sent, buffer, Err(error)),
            }
        }
    }

    #[test]
    fn a_viewer_of_every_version_gets_to_server_init() {
        let rest = b"\x02rest";
        for (version, answer, offered) in [
            (&b"RFB 003.008\n"[..], &b"\x01"[..], &b"\x01\x01\0\0\0\0"[..]),
            (b"RFB 003.007\n", b"\x01", b"\x01\x01"),
            (b"RFB 003.003\n", b"", b"\0\0\0\x01"),
        ] {
            let (sent, left, done) = play(&[version, answer, b"\x01", rest].concat());
            assert_eq!(sent, [&VERSION[..], offered].concat());
            assert_eq!((left.as_slice(), done), (&rest[..], Ok(true)));
        }
    }

    #[test]
    fn every_cut_waits_and_nonsense_is_refused() {
        let whole = b"RFB 003.008\n\x01\x01";
        for cut in 0..whole.len() {
            assert_eq!(play(&whole[..cut]).2, Ok(false), "{cut}");
        }
        assert_eq!(play(b"GET / HTTP/1").2, Err(RfbError::Version));
        assert_eq!(play(b"RFB 003.008\n\x02").2, Err(RfbError::Security));
    }
}
