//! The server's side: what the front door says to a client that believes to talk to an ESXi host.

use super::{code, is_nonce};
use crate::protocol::line::LineError;

/// How many refused commands a client may send before it is sent away: scanners guess, clients do not.
const MAX_REFUSED: u32 = 4;

/// Where the dialogue stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Nothing said yet.
    Start,
    /// USER came.
    User(String),
    /// The ticket opened.
    LoggedIn,
    /// CONNECT was carried out: the stream is raw from here on.
    Connected,
}

/// What the door has to do for a line of the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this line and read on.
    Reply(String),
    /// Send this line and close.
    Goodbye(String),
    /// Open this sealed ticket, then call [`Server::logged_in`] or refuse.
    Login {
        /// The sealed ticket.
        ticket: String,
    },
    /// Ask the hypervisor for the thumbprint of TLS no. 2, then reply with [`Server::thumbprint`].
    Thumbprint {
        /// The client's nonce, to be forwarded as it is.
        nonce: String,
        /// The client asked for SHA-256 (`THUMBPRINT_SHA2`).
        sha256: bool,
    },
    /// Connect to this VM, then call [`Server::connected`].
    Connect {
        /// The VM's configuration file as the client named it.
        path: String,
    },
}

/// A refusal that the door words; never with internals of the network behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The ticket did not open or may not be used.
    Login,
    /// The tenant is unknown or may not go there.
    NoAccess,
    /// A limit of the tenant, the user or the ticket is reached.
    Busy,
    /// CONNECT named another VM than the ticket.
    NoSuchVm,
    /// The hypervisor cannot be reached.
    Unreachable,
    /// The hypervisor answered with something else than it should.
    BadServer,
    /// The hypervisor did not take its ticket.
    BadTicket,
    /// The hypervisor wants a second pass.
    SecondPass,
    /// The VM is off.
    PoweredOff,
    /// A deadline passed.
    Deadline,
    /// The appliance is going away.
    Draining,
}

impl Refusal {
    /// The line to send, with its end.
    pub fn line(self) -> String {
        let (code, text) = match self {
            Self::Login => (code::LOGIN_INCORRECT, "Login incorrect."),
            Self::NoAccess => (code::NO_ACCESS, "No access to this console."),
            Self::Busy => (code::BUSY, "Too many consoles are open. Close one and try again."),
            Self::NoSuchVm => (code::NO_SUCH_VM, "The ticket is for another virtual machine."),
            Self::Unreachable => (code::CONNECT_PROBLEM, "The virtual machine's host cannot be reached."),
            Self::BadServer => {
                (code::SERVER_PROBLEM, "The virtual machine's host did not answer as expected.")
            }
            Self::BadTicket => {
                (code::TICKET_PROBLEM, "The virtual machine's host refused the ticket. Ask for a new one.")
            }
            Self::SecondPass => (
                code::SERVER_PROBLEM,
                "The virtual machine's host asks for a second pass (two-pass host). Ask for a ticket of that kind.",
            ),
            Self::PoweredOff => (code::START_PROBLEM, "The virtual machine is not powered on."),
            Self::Deadline => (code::GOODBYE, "Time is up."),
            Self::Draining => (code::BUSY, "The console proxy is going down. Try again in a moment."),
        };
        format!("{code} {text}\r\n")
    }
}

/// The dialogue after TLS no. 1, line by line.
#[derive(Debug)]
pub struct Server {
    state: State,
    refused: u32,
}

impl Default for Server {
    fn default() -> Self {
        Self::new()
    }
}

impl Server {
    /// A dialogue in which nothing was said yet.
    pub fn new() -> Self {
        Self { state: State::Start, refused: 0 }
    }

    /// What to do for one line, given without its end.
    pub fn line(&mut self, line: &str) -> Action {
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        match (command.to_ascii_uppercase().as_str(), &self.state) {
            ("QUIT", _) => Action::Goodbye(format!("{} Goodbye.\r\n", code::GOODBYE)),
            ("BANNER", _) => Action::Reply(super::BANNER.into()),
            ("USER", State::Start | State::User(_)) => self.user(rest),
            ("PASS", State::User(user)) => {
                // The ticket is both name and password: anything else is a guess, answered like a bad ticket.
                if user == rest {
                    Action::Login { ticket: rest.into() }
                } else {
                    Action::Goodbye(Refusal::Login.line())
                }
            }
            ("PASS", State::Start) => self.refuse(code::OUT_OF_ORDER, "Login with USER first."),
            ("USER" | "PASS", _) => self.refuse(code::OUT_OF_ORDER, "Already logged in."),
            ("THUMBPRINT" | "THUMBPRINT_SHA2" | "CONNECT", State::Start | State::User(_)) => {
                self.refuse(code::LOGIN_INCORRECT, "Please login with USER and PASS.")
            }
            (name @ ("THUMBPRINT" | "THUMBPRINT_SHA2"), State::LoggedIn) => {
                if is_nonce(rest) {
                    Action::Thumbprint { nonce: rest.into(), sha256: name.ends_with("SHA2") }
                } else {
                    self.refuse(code::BAD_ARGUMENTS, "THUMBPRINT takes a nonce.")
                }
            }
            ("CONNECT", State::LoggedIn) => self.connect(rest),
            ("PROXY" | "CONNECT_NOSTART" | "CONNECT_VPXA" | "CONNECT_ARGV" | "START", _) => {
                self.refuse(code::NO_SUCH_SERVICE, "This is a console, nothing else.")
            }
            _ => self.refuse(code::BAD_COMMAND, "Unknown command."),
        }
    }

    /// The answer to a line that is none.
    pub fn malformed(&mut self, error: LineError) -> String {
        format!("{} Malformed command: {error}.\r\n", code::MALFORMED)
    }

    /// The ticket opened: the reply to PASS.
    pub fn logged_in(&mut self) -> String {
        self.state = State::LoggedIn;
        format!("{} User logged in.\r\n", code::LOGGED_IN)
    }

    /// The reply to THUMBPRINT: what the hypervisor announced, as it wrote it.
    pub fn thumbprint(&self, announced: &str) -> String {
        format!("{} {announced}\r\n", code::DONE)
    }

    /// The reply to CONNECT, after which the stream is raw.
    pub fn connected(&mut self, path: &str) -> String {
        self.state = State::Connected;
        format!("{} Connect {path}\r\n", code::DONE)
    }

    fn user(&mut self, ticket: &str) -> Action {
        if ticket.is_empty() || ticket.contains(' ') {
            return self.refuse(code::BAD_ARGUMENTS, "USER takes one name.");
        }
        self.state = State::User(ticket.into());
        // ESXi repeats the name here; a ticket is not repeated, not even to the one who sent it.
        Action::Reply(format!("{} Password required.\r\n", code::NEED_PASSWORD))
    }

    fn connect(&mut self, arguments: &str) -> Action {
        match arguments.rsplit_once(' ') {
            Some((path, "mks")) if !path.trim().is_empty() => Action::Connect { path: path.into() },
            Some((_, _)) => self.refuse(code::NO_SUCH_SERVICE, "Only mks is served."),
            None => self.refuse(code::BAD_ARGUMENTS, "CONNECT takes a configuration file and mks."),
        }
    }

    fn refuse(&mut self, code: u16, text: &str) -> Action {
        self.refused += 1;
        let line = format!("{code} {text}\r\n");
        if self.refused > MAX_REFUSED { Action::Goodbye(line) } else { Action::Reply(line) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reply(action: Action) -> u16 {
        let (Action::Reply(line) | Action::Goodbye(line)) = action else { panic!("no reply: {action:?}") };
        line[..3].parse().unwrap()
    }

    #[test]
    fn the_dialogue_by_the_books() {
        let mut server = Server::new();
        assert_eq!(reply(server.line("USER abc")), 331);
        assert_eq!(server.line("PASS abc"), Action::Login { ticket: "abc".into() });
        assert!(server.logged_in().starts_with("230 "));
        assert_eq!(
            server.line("THUMBPRINT AAAABBBBCCCCDDDD"),
            Action::Thumbprint { nonce: "AAAABBBBCCCCDDDD".into(), sha256: false }
        );
        assert_eq!(server.thumbprint("C5:50"), "200 C5:50\r\n");
        let path = "/vmfs/volumes/a b/c (1).vmx";
        assert_eq!(server.line(&format!("CONNECT {path} mks")), Action::Connect { path: path.into() });
        assert_eq!(server.connected(path), format!("200 Connect {path}\r\n"));
    }

    #[test]
    fn what_is_out_of_order_or_unknown_gets_its_code() {
        for (lines, code) in [
            (&["PASS x"][..], 503),
            (&["CONNECT /x.vmx mks"], 530),
            (&["USER x", "THUMBPRINT abc"], 530),
            (&["PROXY nfc"], 554),
            (&["USER"], 501),
            (&["USER a b"], 501),
            (&["HELO x"], 500),
            (&["GET / HTTP/1.1"], 500),
            (&[""], 500),
            (&["quit"], 221),
            (&["USER a", "PASS b"], 530),
        ] {
            let mut server = Server::new();
            let mut answers: Vec<_> = lines.iter().map(|line| server.line(line)).collect();
            let last = answers.pop().unwrap();
            assert_eq!(reply(last), code, "{lines:?}");
        }
        let mut server = Server::new();
        server.logged_in();
        assert_eq!(reply(server.line("CONNECT /x.vmx nfc")), 554);
        assert_eq!(reply(server.line("CONNECT")), 501);
        assert_eq!(reply(server.line("THUMBPRINT a\tb")), 501);
        assert_eq!(reply(server.line("USER again")), 503);
    }

    #[test]
    fn a_guesser_is_sent_away() {
        let mut server = Server::new();
        let answers: Vec<_> = (0..=MAX_REFUSED).map(|_| server.line("XYZZY")).collect();
        assert!(matches!(answers.last(), Some(Action::Goodbye(_))));
        assert!(answers[..MAX_REFUSED as usize].iter().all(|a| matches!(a, Action::Reply(_))));
    }

    proptest! {
        #[test]
        fn nothing_reaches_the_hypervisor_before_a_login(lines in prop::collection::vec("(USER|PASS|THUMBPRINT|CONNECT|PROXY|XPAS|)[ -~]{0,20}", 0..12)) {
            let mut server = Server::new();
            for line in &lines {
                let action = server.line(line);
                let held = matches!(action, Action::Thumbprint { .. } | Action::Connect { .. });
                prop_assert!(!held, "{line:?}");
            }
        }
    }
}
