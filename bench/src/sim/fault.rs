//! What goes wrong on request.

use std::collections::BTreeMap;

use super::wire::{Drip, Slow};

/// A place in the dialogue, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// The host is about to send its banner.
    Banner,
    /// TLS no. 1 is about to start.
    Tls1,
    /// `USER` was read and is about to be answered.
    User,
    /// `PASS` was read and is about to be answered.
    Pass,
    /// `THUMBPRINT` was read and is about to be answered.
    Thumbprint,
    /// `CONNECT` was read and is about to be answered.
    Connect,
    /// TLS no. 2 is about to start.
    Tls2,
    /// TLS no. 2 stands, the nonce was not read yet.
    Nonce,
    /// The nonce was right; nothing of the screen was sent yet.
    Screen,
}

impl Step {
    /// All of them, in order.
    pub const ALL: [Step; 9] = [
        Self::Banner,
        Self::Tls1,
        Self::User,
        Self::Pass,
        Self::Thumbprint,
        Self::Connect,
        Self::Tls2,
        Self::Nonce,
        Self::Screen,
    ];

    /// The name on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Banner => "banner",
            Self::Tls1 => "tls1",
            Self::User => "user",
            Self::Pass => "pass",
            Self::Thumbprint => "thumbprint",
            Self::Connect => "connect",
            Self::Tls2 => "tls2",
            Self::Nonce => "nonce",
            Self::Screen => "screen",
        }
    }
}

impl std::str::FromStr for Step {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|step| step.as_str() == name).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|step| step.as_str()).collect();
            format!("no step `{name}`; one of {}", known.join(", "))
        })
    }
}

/// What happens at a step instead of the right thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// These bytes are sent in place of the answer. The step does not count as done, the dialogue goes on.
    /// At [`Step::Tls1`] and [`Step::Tls2`] they are sent in place of the ServerHello, in the clear.
    Reply(Vec<u8>),
    /// Nothing is answered any more; what the client sends is read and thrown away until it leaves.
    Stall,
    /// An orderly end (FIN, without `close_notify`).
    Close,
    /// An RST.
    Reset,
    /// At [`Step::Tls1`] and [`Step::Tls2`]: another certificate than the announced one is shown.
    /// At [`Step::Thumbprint`]: another thumbprint is announced than TLS no. 2 will show.
    WrongCertificate,
}

impl Fault {
    /// A reply line; the line end is added.
    pub fn line(text: &str) -> Self {
        Self::Reply(format!("{text}\r\n").into_bytes())
    }

    /// A reply with the given code and a text that fits it.
    pub fn code(code: u16) -> Self {
        let text = match code {
            500 => "Unknown command",
            501 => "Syntax error in parameters",
            502 => "Malformed command",
            503 => "Login with USER first.",
            510 => "Error in configuration file",
            511 => "Could not start the virtual machine",
            512 => "Server problem",
            513 => "Ticket problem",
            514 => "Could not connect",
            530 => "Login incorrect.",
            550 => "No access to this virtual machine",
            551 => "Virtual machine is not registered",
            552 => "Virtual machine is busy",
            553 => "No such virtual machine",
            554 => "No such service",
            _ => "Refused",
        };
        Self::line(&format!("{code} {text}"))
    }
}

/// The faults of a host or of one ticket; the ticket's win from `USER` on.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    steps: BTreeMap<Step, Fault>,
    pub(super) drip: Option<Drip>,
    pub(super) slow: Option<Slow>,
}

impl Faults {
    /// None.
    pub fn none() -> Self {
        Self::default()
    }

    /// Adds a fault at a step.
    #[must_use]
    pub fn at(mut self, step: Step, fault: Fault) -> Self {
        self.steps.insert(step, fault);
        self
    }

    /// Sends everything in tiny pieces.
    #[must_use]
    pub fn drip(mut self, drip: Drip) -> Self {
        self.drip = Some(drip);
        self
    }

    /// Reads the console slowly (after the hand-over).
    #[must_use]
    pub fn slow_reader(mut self, slow: Slow) -> Self {
        self.slow = Some(slow);
        self
    }

    /// These, and those of `below` where these are silent.
    pub(super) fn over(mut self, below: &Self) -> Self {
        for (step, fault) in &below.steps {
            self.steps.entry(*step).or_insert_with(|| fault.clone());
        }
        self.drip = self.drip.or(below.drip);
        self.slow = self.slow.or(below.slow);
        self
    }

    pub(super) fn get(&self, step: Step) -> Option<&Fault> {
        self.steps.get(&step)
    }
}

/// How [`Esxi::cut`](super::Esxi::cut) ends the connections that stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// FIN, without `close_notify`.
    Close,
    /// RST.
    Reset,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_found_by_its_name() {
        for step in Step::ALL {
            assert_eq!(step.as_str().parse(), Ok(step));
        }
        assert!("tls3".parse::<Step>().unwrap_err().contains("thumbprint"));
    }
}
