//! The client's side of the RFB handshake (RFC 6143, 7.1 to 7.3.1) towards a VNC server: security None, or the VNC
//! password answered by the proxy, so that the browser never knows it.

use des::Des;
use des::cipher::{BlockCipherEncrypt, KeyInit};
use thiserror::Error;
use zeroize::Zeroizing;

/// Longest reason that is read from a server, bytes.
const MAX_REASON: usize = 256;
/// Security type None (RFC 6143, 7.2.1).
const NONE: u8 = 1;
/// ClientInit: another viewer of the same machine is not thrown out (7.3.1).
const SHARED: u8 = 1;
/// Security type VNC authentication (7.2.2).
const VNC_AUTH: u8 = 2;

/// Why there is no session with the server.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RfbClientError {
    /// The first 12 bytes are not RFB's.
    #[error("the server does not speak RFB")]
    NotRfb,
    /// The server wants a security type that is not spoken here.
    #[error(
        "the server offers the security types {0:?}, of which none is spoken (1 None, 2 VNC password); change its settings"
    )]
    Security(Vec<u8>),
    /// The server wants a password and the ticket has none.
    #[error("the server wants a VNC password; put it into the ticket's target as `ticket`")]
    NoPassword,
    /// The server refused.
    #[error("the server refused: {0}")]
    Refused(String),
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send these bytes.
    Send(Vec<u8>),
    /// More of the server's bytes are needed.
    Wait,
    /// ClientInit was sent: ServerInit follows.
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Three,
    Seven,
    Eight,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Version,
    Security(Version),
    Challenge(Version),
    Result { version: Version, init_sent: bool },
    ClientInit,
    Done,
}

/// The handshake.
pub struct ClientHandshake {
    state: State,
    password: Option<Zeroizing<String>>,
}

impl ClientHandshake {
    /// A handshake with this password, of which RFB takes the first eight bytes.
    pub fn new(password: Option<String>) -> Self {
        Self { state: State::Version, password: password.map(Zeroizing::new) }
    }

    /// The next step; takes what it consumes off the front of `buffer`.
    ///
    /// # Errors
    /// The server is none, wants what is not spoken, or refused.
    pub fn step(&mut self, buffer: &mut Vec<u8>) -> Result<Step, RfbClientError> {
        match self.state {
            State::Version => self.version(buffer),
            State::Security(Version::Three) => self.security_decided(buffer),
            State::Security(version) => self.security_offered(version, buffer),
            State::Challenge(version) => self.challenge(version, buffer),
            State::Result { version, init_sent } => self.result(version, init_sent, buffer),
            State::ClientInit => {
                self.state = State::Done;
                Ok(Step::Send(vec![SHARED]))
            }
            State::Done => Ok(Step::Done),
        }
    }

    fn version(&mut self, buffer: &mut Vec<u8>) -> Result<Step, RfbClientError> {
        let Some(line) = buffer.first_chunk::<12>() else {
            let good = buffer.iter().zip(b"RFB ").all(|(a, b)| a == b);
            return if good { Ok(Step::Wait) } else { Err(RfbClientError::NotRfb) };
        };
        let number = |at: usize| std::str::from_utf8(&line[at..at + 3]).ok()?.parse::<u16>().ok();
        let (Some(major), Some(minor)) = (number(4), number(8)) else { return Err(RfbClientError::NotRfb) };
        if !line.starts_with(b"RFB ") || line[7] != b'.' || line[11] != b'\n' || major < 3 {
            return Err(RfbClientError::NotRfb);
        }
        // Appendix A: only 3.3, 3.7 and 3.8 exist; other numbers are read as the next lower one.
        let (version, answer) = match (major, minor) {
            (3, ..7) => (Version::Three, b"RFB 003.003\n"),
            (3, 7) => (Version::Seven, b"RFB 003.007\n"),
            _ => (Version::Eight, b"RFB 003.008\n"),
        };
        buffer.drain(..12);
        self.state = State::Security(version);
        Ok(Step::Send(answer.to_vec()))
    }

    /// 3.3: the server decides alone.
    fn security_decided(&mut self, buffer: &mut Vec<u8>) -> Result<Step, RfbClientError> {
        let Some(kind) = buffer.first_chunk::<4>().map(|b| u32::from_be_bytes(*b)) else {
            return Ok(Step::Wait);
        };
        match kind {
            0 => {
                let rest = buffer[4..].to_vec();
                self.reason(&rest)
            }
            1 => {
                buffer.drain(..4);
                self.state = State::ClientInit;
                self.step(buffer)
            }
            2 if self.password.is_none() => Err(RfbClientError::NoPassword),
            2 => {
                buffer.drain(..4);
                self.state = State::Challenge(Version::Three);
                self.step(buffer)
            }
            other => Err(RfbClientError::Security(vec![u8::try_from(other).unwrap_or(u8::MAX)])),
        }
    }

    fn security_offered(&mut self, version: Version, buffer: &mut Vec<u8>) -> Result<Step, RfbClientError> {
        let Some(&count) = buffer.first() else { return Ok(Step::Wait) };
        if count == 0 {
            let rest = buffer[1..].to_vec();
            return self.reason(&rest);
        }
        let Some(offered) = buffer.get(1..=usize::from(count)) else { return Ok(Step::Wait) };
        let chosen = if self.password.is_some() && offered.contains(&VNC_AUTH) {
            VNC_AUTH
        } else if offered.contains(&NONE) {
            NONE
        } else if offered.contains(&VNC_AUTH) {
            return Err(RfbClientError::NoPassword);
        } else {
            return Err(RfbClientError::Security(offered.to_vec()));
        };
        buffer.drain(..=usize::from(count));
        self.state = match (chosen, version) {
            (VNC_AUTH, _) => State::Challenge(version),
            (_, Version::Eight) => State::Result { version, init_sent: true },
            // 3.7 sends no SecurityResult for None.
            _ => State::Done,
        };
        // With None there is nothing that could be refused but the viewer itself: ClientInit goes with the choice.
        Ok(Step::Send(if chosen == NONE { vec![NONE, SHARED] } else { vec![chosen] }))
    }

    fn challenge(&mut self, version: Version, buffer: &mut Vec<u8>) -> Result<Step, RfbClientError> {
        let Some(challenge) = buffer.first_chunk::<16>() else { return Ok(Step::Wait) };
        let password = self.password.as_deref().ok_or(RfbClientError::NoPassword)?;
        let answer = answer(password, challenge);
        buffer.drain(..16);
        self.state = State::Result { version, init_sent: false };
        Ok(Step::Send(answer.to_vec()))
    }

    fn result(
        &mut self,
        version: Version,
        init_sent: bool,
        buffer: &mut Vec<u8>,
    ) -> Result<Step, RfbClientError> {
        let Some(result) = buffer.first_chunk::<4>().map(|b| u32::from_be_bytes(*b)) else {
            return Ok(Step::Wait);
        };
        if result == 0 {
            buffer.drain(..4);
            self.state = if init_sent { State::Done } else { State::ClientInit };
            return self.step(buffer);
        }
        if version != Version::Eight {
            return Err(RfbClientError::Refused("the VNC password was not taken".into()));
        }
        let rest = buffer[4..].to_vec();
        self.reason(&rest)
    }

    /// A refusal's text: a length and so many bytes.
    fn reason(&self, rest: &[u8]) -> Result<Step, RfbClientError> {
        let Some(len) = rest.first_chunk::<4>().map(|b| u32::from_be_bytes(*b)) else {
            return Ok(Step::Wait);
        };
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(MAX_REASON);
        let Some(text) = rest.get(4..4 + len) else { return Ok(Step::Wait) };
        let text: String = String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).collect();
        Err(RfbClientError::Refused(text))
    }
}

/// The challenge, encrypted with DES in two blocks; the key's bytes are the password's with their bits reversed
/// (7.2.2, and what every server does).
fn answer(password: &str, challenge: &[u8; 16]) -> [u8; 16] {
    let mut key = Zeroizing::new([0u8; 8]);
    for (key, byte) in key.iter_mut().zip(password.bytes()) {
        *key = byte.reverse_bits();
    }
    let cipher = Des::new((&*key).into());
    let mut out = *challenge;
    for block in out.as_chunks_mut::<8>().0 {
        cipher.encrypt_block(block.into());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Outcome = Result<bool, RfbClientError>;

    fn play(password: Option<&str>, server: &[u8], cut: usize) -> (Vec<u8>, Vec<u8>, Outcome) {
        let mut handshake = ClientHandshake::new(password.map(str::to_owned));
        let (mut buffer, mut sent, mut pieces) = (Vec::new(), Vec::new(), server.chunks(cut.max(1)));
        loop {
            match handshake.step(&mut buffer) {
                Ok(Step::Send(bytes)) => sent.extend(bytes),
                Ok(Step::Done) => {
                    return (
                        sent,
                        [&buffer, pieces.collect::<Vec<_>>().concat().as_slice()].concat(),
                        Ok(true),
                    );
                }
                Ok(Step::Wait) => match pieces.next() {
                    Some(piece) => buffer.extend_from_slice(piece),
                    None => return (sent, buffer, Ok(false)),
                },
                Err(error) => return (sent, buffer, Err(error)),
            }
        }
    }

    #[test]
    fn every_version_and_type_gets_to_server_init() {
        let challenge = [7u8; 16];
        let answered = answer("secret", &challenge);
        for (password, server, client) in [
            (
                None,
                [&b"RFB 003.008\n\x01\x01\0\0\0\0"[..]].concat(),
                [&b"RFB 003.008\n\x01\x01"[..]].concat(),
            ),
            (None, b"RFB 003.889\n\x02\x1e\x01\0\0\0\0".to_vec(), b"RFB 003.008\n\x01\x01".to_vec()),
            (None, b"RFB 003.007\n\x01\x01".to_vec(), b"RFB 003.007\n\x01\x01".to_vec()),
            (None, b"RFB 003.003\n\0\0\0\x01".to_vec(), b"RFB 003.003\n\x01".to_vec()),
            (
                Some("secret"),
                [b"RFB 003.008\n\x02\x01\x02", &challenge[..], &[0; 4]].concat(),
                [b"RFB 003.008\n\x02", &answered[..], &[1]].concat(),
            ),
            (
                Some("secret"),
                [b"RFB 003.003\n\0\0\0\x02", &challenge[..], &[0; 4]].concat(),
                [b"RFB 003.003\n", &answered[..], &[1]].concat(),
            ),
        ] {
            for cut in 1..=server.len() {
                let stream = [&server[..], b"init"].concat();
                let (sent, rest, done) = play(password, &stream, cut);
                assert_eq!((sent, rest.as_slice(), done), (client.clone(), &b"init"[..], Ok(true)), "{cut}");
            }
        }
    }

    #[test]
    fn refusals_say_why() {
        let ask = |password, server: &[u8]| play(password, server, 5).2;
        assert_eq!(ask(None, b"HTTP/1.1 400"), Err(RfbClientError::NotRfb));
        assert_eq!(ask(None, b"RFB 00x.008\n"), Err(RfbClientError::NotRfb));
        assert_eq!(ask(None, b"RFB 003.008\n\x02\x13\x10"), Err(RfbClientError::Security(vec![19, 16])));
        assert_eq!(ask(None, b"RFB 003.008\n\x01\x02"), Err(RfbClientError::NoPassword));
        assert_eq!(ask(None, b"RFB 003.008\n\0\0\0\0\x04busy"), Err(RfbClientError::Refused("busy".into())));
        let wrong = [b"RFB 003.008\n\x01\x02", &[0; 16][..], b"\0\0\0\x01\0\0\0\x02no"].concat();
        assert_eq!(ask(Some("x"), &wrong), Err(RfbClientError::Refused("no".into())));
    }

    #[test]
    fn des_as_published() {
        // FIPS 81's example key and block, with the key's bits reversed back into a password that is no text: the cipher
        // itself is the crate's; the reversal is what can go wrong here.
        assert_eq!(b'a'.reverse_bits(), 0x86);
        assert_ne!(answer("password", &[0; 16]), answer("passwore", &[0; 16]));
        assert_eq!(answer("password", &[0; 16]), answer("password-and-more", &[0; 16]));
    }

    proptest! {
        #[test]
        fn any_server_is_bounded(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 1usize..20) {
            let _ = play(Some("x"), &bytes, cut);
            let _ = play(None, &[b"RFB 003.008\n", &bytes[..]].concat(), cut);
        }
    }
}
