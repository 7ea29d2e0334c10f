//! What the proxy and the keeper of its gate tell each other: a question, an answer, over a Unix socket.
//!
//! ```text
//!   the proxy in charge                        the keeper
//!    │ Lead: configuration, policy ──────────────►  starts the gate, or goes on with the one it has
//!    │ ◄───────────────────────── Done, or Refused
//!    │ Publish: sessions, sources ───────────────►  at every change
//!    │ ◄── Done, or Replaced                        a younger proxy leads
//!    │ Anything? ────────────────────────────────►  once a second
//!    │ ◄─────────────────── News: drops, a problem
//!   anybody who may (a connection each)
//!    │ Look, Loudest ────────────────────────────►
//!    │ ◄────────────────────────── Seen, Loudest
//! ```
//! A message is a version, a length and JSON. Neither side allocates more than has come, nor takes more than [`LARGEST`].

use std::io::{self, Read, Write};

use mksgate_common::{bucket::Rate, verdict::Verdict};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    GateStatus, XdpConfig,
    counters::{CounterReport, DropEvent, LoudSource},
    policy::Policy,
};

/// Counts what the other side would not understand.
const VERSION: u8 = 1;
/// Some 65,535 tenants with their names and prefixes.
pub(super) const LARGEST: u32 = 32 << 20;

/// To the keeper.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Question {
    /// From now on this connection says what the gate does.
    Lead {
        /// What the gate is to be like.
        config: Box<XdpConfig>,
        /// Whom it protects from what.
        policy: Box<Policy>,
        /// Sessions by tenant's number, those of all others being none; `None`: they stay as they are for now.
        active: Option<Vec<(u32, u32)>>,
    },
    /// What has changed.
    Publish {
        /// Sessions by tenant's number.
        active: Vec<(u32, u32)>,
        /// Sources with a valid ticket, as [`SourceKey`](mksgate_common::map::SourceKey), and their tenant (0: several).
        learned: Vec<(u64, u32)>,
    },
    /// What is there to tell?
    Anything,
    /// Where the gate is and what it has counted.
    Look,
    /// The loudest sources.
    Loudest {
        /// How many.
        count: usize,
    },
}

/// From the keeper.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Answer {
    /// It is in force, or on its way to the kernel.
    Done,
    /// It cannot be.
    Refused {
        /// The reason, for the operator.
        why: String,
        /// Nothing is wrong: there is no interface to protect.
        no_interface: bool,
    },
    /// A younger proxy leads.
    Replaced,
    /// What there is to tell.
    News {
        /// Sampled drops since the last time.
        drops: Vec<Dropped>,
        /// An interface without the gate, and why.
        problem: Option<(String, String)>,
    },
    /// `None` without a gate.
    Seen(Option<Box<(GateStatus, CounterReport)>>),
    /// The loudest sources.
    Loudest(Vec<LoudSource>),
}

/// A [`DropEvent`] on its way.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dropped {
    source: std::net::IpAddr,
    destination: std::net::SocketAddr,
    tenant: String,
    verdict: String,
    interface: u32,
}

impl From<DropEvent> for Dropped {
    fn from(event: DropEvent) -> Self {
        let DropEvent { source, destination, tenant, verdict, interface } = event;
        Dropped { source, destination, tenant, verdict: verdict.to_owned(), interface }
    }
}

impl Dropped {
    /// `None` if the verdict is none.
    pub fn event(self) -> Option<DropEvent> {
        let Dropped { source, destination, tenant, verdict, interface } = self;
        let verdict = Verdict::ALL.into_iter().map(Verdict::as_str).find(|known| *known == verdict)?;
        Some(DropEvent { source, destination, tenant, verdict, interface })
    }
}

/// How a [`Rate`] is written.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Rate", deny_unknown_fields)]
pub(super) struct WrittenRate {
    interval: u64,
    tolerance: u64,
}

/// Sends a message whole.
///
/// # Errors
/// What the socket said; `InvalidInput` for a message that no reader would take.
pub fn send(mut to: impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut whole = vec![VERSION, 0, 0, 0, 0];
    serde_json::to_writer(&mut whole, message)?;
    let length =
        u32::try_from(whole.len() - 5).ok().filter(|length| *length <= LARGEST).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("a message of more than {LARGEST} bytes"))
        })?;
    whole[1..5].copy_from_slice(&length.to_le_bytes());
    to.write_all(&whole)
}

/// The next message; `None` where the other side has closed before one.
///
/// # Errors
/// What the socket said; `Unsupported` for another version; `InvalidData` for what is no message.
pub fn receive<T: DeserializeOwned>(mut from: impl Read) -> io::Result<Option<T>> {
    let mut head = [0; 5];
    loop {
        match from.read(&mut head[..1]) {
            Ok(0) => return Ok(None),
            Ok(_) => break,
            // A socket with a timeout is left by a signal whatever SA_RESTART says (signal(7)).
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    if head[0] != VERSION {
        let what = format!(
            "it speaks version {} of this protocol, and not {VERSION}: restart it (`systemctl restart mksgate-xdp`)",
            head[0]
        );
        return Err(io::Error::new(io::ErrorKind::Unsupported, what));
    }
    from.read_exact(&mut head[1..])?;
    let [_, length @ ..] = head;
    let length = u32::from_le_bytes(length);
    let bad = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    if length > LARGEST {
        return Err(bad(format!("a message of {length} bytes")));
    }
    let mut text = Vec::new();
    from.take(length.into()).read_to_end(&mut text)?;
    if text.len() < length as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_slice(&text).map(Some).map_err(|error| bad(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xdp::XdpSection;

    fn packed(question: &Question) -> Vec<u8> {
        let mut bytes = Vec::new();
        send(&mut bytes, question).unwrap();
        bytes
    }

    fn kind(bytes: &[u8]) -> io::ErrorKind {
        receive::<Question>(bytes).unwrap_err().kind()
    }

    #[test]
    fn a_question_arrives_as_it_was_sent() {
        let mut config =
            XdpSection { interfaces: vec!["eth0".into()], ..XdpSection::default() }.validate().unwrap();
        config.keeper = Some("/run/keeper.sock".into());
        let policy = Policy {
            limits: config.limits,
            listen: vec!["[2001:db8::1]:443".parse().unwrap()],
            tenants: Vec::new(),
            balancers: vec!["192.0.2.0/24".parse().unwrap()],
        };
        let active = Some(vec![(1, 5)]);
        let lead = Question::Lead { config: config.clone().into(), policy: policy.clone().into(), active };
        let sent = packed(&lead);
        let Some(Question::Lead { config: there, policy: with, active }) = receive(&sent[..]).unwrap() else {
            panic!("another question")
        };
        // Where the keeper is, it knows.
        config.keeper = None;
        assert_eq!((*there, *with, active), (config, policy, Some(vec![(1, 5)])));
    }

    #[test]
    fn drops_keep_their_verdict() {
        let event = DropEvent {
            source: "192.0.2.1".parse().unwrap(),
            destination: "192.0.2.2:443".parse().unwrap(),
            tenant: "acme".into(),
            verdict: Verdict::TenantFull.as_str(),
            interface: 3,
        };
        assert_eq!(Dropped::from(event.clone()).event(), Some(event.clone()));
        assert_eq!(Dropped { verdict: "mood".into(), ..event.into() }.event(), None);
    }

    /// A socket whose every read is left by a signal once.
    struct Signalled<'a>(&'a [u8], bool);

    impl Read for Signalled<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 { Err(io::ErrorKind::Interrupted.into()) } else { self.0.read(into) }
        }
    }

    #[test]
    fn a_signal_loses_no_message() {
        let sent = packed(&Question::Loudest { count: 3 });
        let got = receive(Signalled(&sent, false)).unwrap();
        assert!(matches!(got, Some(Question::Loudest { count: 3 })), "{got:?}");
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let good = packed(&Question::Look);
        assert!(receive::<Question>(&[][..]).unwrap().is_none(), "closed");
        assert!(receive::<Question>(&good[..]).unwrap().is_some());
        for cut in 1..good.len() {
            assert_eq!(kind(&good[..cut]), io::ErrorKind::UnexpectedEof, "{cut}");
        }
        assert_eq!(kind(&[VERSION + 1, 0, 0, 0, 0]), io::ErrorKind::Unsupported);
        assert_eq!(kind(&[VERSION, 0xff, 0xff, 0xff, 0xff, b'{']), io::ErrorKind::InvalidData, "too large");
        let text =
            |json: &str| [&[VERSION][..], &(json.len() as u32).to_le_bytes(), json.as_bytes()].concat();
        for json in
            ["", "{}", "\"Loo\"", r#"{"Loudest":{"count":-1}}"#, r#"{"Loudest":{"count":1,"more":2}}"#]
        {
            assert_eq!(kind(&text(json)), io::ErrorKind::InvalidData, "{json}");
        }
    }
}
