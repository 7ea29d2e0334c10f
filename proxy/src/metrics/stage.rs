//! What is timed, and which doors there are: the closed lists behind the labels.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A step of a console's way whose duration is kept as a histogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Accept until the client's TLS handshake was complete.
    TlsDone,
    /// Opening the ticket: decryption, times, use-tracking.
    Ticket,
    /// The tenant's, the user's and the ticket's limits.
    Admission,
    /// TCP connect to the hypervisor.
    BackendConnect,
    /// TLS and dialogue with the hypervisor until it said yes.
    BackendHandshake,
    /// Accept until the first console byte was sent to the client.
    FirstByte,
    /// One turn of the flow engine: a leg was readable until its bytes were sent on the other.
    FlowTurn,
    /// Hand-over until both legs were closed.
    Session,
    /// Smoothed round-trip time of the client's connection at its end (TCP_INFO).
    ClientRtt,
    /// Smoothed round-trip time of the hypervisor's connection at its end (TCP_INFO).
    BackendRtt,
}

/// Upper bounds in seconds of what happens inside the appliance.
const INSIDE: &[f64] = &[
    0.000_005, 0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05,
    0.1,
];
/// Upper bounds in seconds of what takes round trips.
const NETWORK: &[f64] = &[
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
/// Upper bounds in seconds of how long a person looks at a console.
const HUMAN: &[f64] =
    &[1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0, 14_400.0, 28_800.0, 86_400.0];

impl Stage {
    /// How many there are.
    pub const COUNT: usize = 10;

    /// Every stage, in the order of a connection.
    pub const ALL: [Stage; Self::COUNT] = [
        Self::TlsDone,
        Self::Ticket,
        Self::Admission,
        Self::BackendConnect,
        Self::BackendHandshake,
        Self::FirstByte,
        Self::FlowTurn,
        Self::Session,
        Self::ClientRtt,
        Self::BackendRtt,
    ];

    /// The tag in HdrHistogram logs and the name on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TlsDone => "tls_done",
            Self::Ticket => "ticket",
            Self::Admission => "admission",
            Self::BackendConnect => "backend_connect",
            Self::BackendHandshake => "backend_handshake",
            Self::FirstByte => "first_byte",
            Self::FlowTurn => "flow_turn",
            Self::Session => "session",
            Self::ClientRtt => "client_rtt",
            Self::BackendRtt => "backend_rtt",
        }
    }

    /// The stage of this name.
    pub fn parse(name: &str) -> Option<Stage> {
        Self::ALL.into_iter().find(|stage| stage.as_str() == name)
    }

    /// Name and help of the Prometheus histogram.
    pub(super) fn family(self) -> (&'static str, &'static str) {
        match self {
            Self::TlsDone => {
                ("mksgate_tls_done_seconds", "Accept until the client's TLS handshake was complete")
            }
            Self::Ticket => ("mksgate_ticket_open_seconds", "Opening a ticket"),
            Self::Admission => {
                ("mksgate_admission_seconds", "Checking the limits of tenant, user and ticket")
            }
            Self::BackendConnect => ("mksgate_backend_connect_seconds", "TCP connect to the hypervisor"),
            Self::BackendHandshake => {
                ("mksgate_backend_handshake_seconds", "TLS and dialogue with the hypervisor")
            }
            Self::FirstByte => {
                ("mksgate_first_byte_seconds", "Accept until the first console byte was sent to the client")
            }
            Self::FlowTurn => ("mksgate_flow_turn_seconds", "A leg was readable until its bytes were sent"),
            Self::Session => ("mksgate_session_seconds", "Hand-over until both legs were closed"),
            Self::ClientRtt => {
                ("mksgate_client_rtt_seconds", "Smoothed round-trip time of the client at the session's end")
            }
            Self::BackendRtt => (
                "mksgate_backend_rtt_seconds",
                "Smoothed round-trip time of the hypervisor at the session's end",
            ),
        }
    }

    /// Upper bounds of the Prometheus buckets, seconds, without +Inf.
    pub(super) fn bounds(self) -> &'static [f64] {
        match self {
            Self::Ticket | Self::Admission | Self::FlowTurn => INSIDE,
            Self::Session => HUMAN,
            _ => NETWORK,
        }
    }

    /// The longest duration that is told apart; anything longer is counted as this.
    pub(super) fn longest(self) -> Duration {
        match self {
            Self::Session => Duration::from_secs(30 * 86_400),
            _ => Duration::from_secs(3600),
        }
    }
}

/// The way in which a client came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Door {
    /// TCP 902, as an ESXi host.
    Authd,
    /// TLS 443, `GET /mks`.
    Mks,
    /// TLS 443, `GET /ticket/{ticket}` and `GET /{port};{ticket}`: a WebSocket.
    Web,
    /// TLS 443, `GET /console/`: the page.
    Page,
    /// TLS 443, `POST /sdk`: as a vCenter.
    Sdk,
    /// TLS 443, `/api/…` and `/v1/…`: the ticket desk.
    Desk,
}

impl Door {
    /// Which listener it stands behind: `authd` or `tls`.
    pub fn listener(self) -> &'static str {
        match self {
            Self::Authd => "authd",
            _ => "tls",
        }
    }

    /// How many there are.
    pub const COUNT: usize = 6;

    /// Every door.
    pub const ALL: [Door; Self::COUNT] =
        [Self::Authd, Self::Mks, Self::Web, Self::Page, Self::Sdk, Self::Desk];

    /// The label value, and the name in audit records and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Authd => "authd",
            Self::Mks => "mks",
            Self::Web => "web",
            Self::Page => "page",
            Self::Sdk => "sdk",
            Self::Desk => "desk",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_their_stage() {
        for (i, stage) in Stage::ALL.into_iter().enumerate() {
            assert_eq!(stage as usize, i);
            assert_eq!(Stage::parse(stage.as_str()), Some(stage));
        }
        assert_eq!(Stage::parse("flow"), None);
    }

    #[test]
    fn bounds_rise_and_stay_below_the_longest() {
        for stage in Stage::ALL {
            assert!(stage.bounds().windows(2).all(|w| w[0] < w[1]), "{stage:?}");
            assert!(stage.bounds().last().copied().unwrap_or(0.0) < stage.longest().as_secs_f64());
        }
    }
}
