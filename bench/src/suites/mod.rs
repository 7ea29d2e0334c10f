//! The suites of `bench`.
//!
//! To add one, write `suites/NAME.rs` with
//!
//! ```ignore
//! pub fn run(context: &Context, out: &mut Outcome) -> Result<()>
//! ```
//!
//! and set `run: Some(NAME::run)` in its line of [`ALL`]. In it:
//!
//! * `context.peer("haproxy", out, || …)` starts who takes part: one that is not installed, does not start or was not asked
//!   for is left out and named. [`Process::listening`](crate::run::Process::listening) starts a program on a free port and
//!   ends it when dropped, and when the benchmark dies.
//! * `context.alternate(out, context.rounds(5, 2), &mut contenders, |c| …)` measures in turns; where that does not fit,
//!   `context.watch(|| …)` around each measurement. Both record the noise of the machine; who was too noisy to conclude is
//!   said by the report.
//! * [`ratios`](crate::run::ratios) compares round by round; `Goal::at_most(SUITE, name, ratio, bound)` takes such a spread.
//! * Push goals, tables, charts and raw rounds into `out` case by case: what is there when Ctrl-C or an error comes is
//!   reported. In long waits `context.stop.check()?`.
//! * `bail!(Skip::because("needs root"))` where the machine cannot run it at all.
//! * All of `--quick` takes under 5 minutes, everything under 45: `context.pick(full, quick)`.

pub mod flood;
pub mod flow;
pub mod idle;
pub mod latency;
pub mod scale;
pub mod sessions;
pub mod soak;
pub mod splice;
pub mod tls;
pub mod upgrade;
pub mod vcenter;
pub mod xdp;

use anyhow::Result;

use crate::run::{Context, Outcome};

/// Measures, and fills the outcome as it goes.
pub type Run = fn(&Context, &mut Outcome) -> Result<()>;

/// One suite.
pub struct Suite {
    /// For `--suite`.
    pub name: &'static str,
    /// One line.
    pub about: &'static str,
    /// For `--peers`: those it can measure beside mksgate.
    pub peers: &'static [&'static str],
    /// `None`: declared, not there yet.
    pub run: Option<Run>,
}

/// Every suite, in the order in which they run.
pub const ALL: &[Suite] = &[
    Suite {
        name: "flow",
        about: "flow engine: bulk and ping-pong, one proxy thread",
        peers: &["direct", "haproxy", "nginx"],
        run: Some(flow::run),
    },
    Suite {
        name: "idle",
        about: "memory of idle raw sessions",
        peers: &["haproxy", "nginx"],
        run: Some(idle::run),
    },
    Suite {
        name: "tls",
        about: "TLS and WebSocket in, plain TCP out: bulk, ping-pong, idle sessions, handshakes",
        peers: &["haproxy", "nginx", "stunnel", "websockify"],
        run: Some(tls::run),
    },
    Suite {
        name: "sessions",
        about: "whole consoles per second and core",
        peers: &["direct"],
        run: Some(sessions::run),
    },
    Suite {
        name: "latency",
        about: "keystroke echo beside other consoles",
        peers: &["haproxy"],
        run: Some(latency::run),
    },
    Suite {
        name: "scale",
        about: "CPU and memory per console as their number grows",
        peers: &["haproxy"],
        run: Some(scale::run),
    },
    Suite {
        name: "splice",
        about: "six ways to move bytes between two sockets",
        peers: &[],
        run: Some(splice::run),
    },
    Suite {
        name: "upgrade",
        about: "how long consoles at full rate stand still for an upgrade",
        peers: &[],
        run: Some(upgrade::run),
    },
    Suite { name: "vcenter", about: "consoles by way of a vCenter", peers: &[], run: Some(vcenter::run) },
    Suite { name: "xdp", about: "ns per packet of the XDP program", peers: &[], run: Some(xdp::run) },
    Suite {
        name: "flood",
        about: "a tenant's set-up latency during floods",
        peers: &[],
        run: Some(flood::run),
    },
    Suite { name: "soak", about: "churn with faults: does anything leak?", peers: &[], run: Some(soak::run) },
];

/// The suite of this name.
pub fn find(name: &str) -> Option<&'static Suite> {
    ALL.iter().find(|suite| suite.name == name)
}

/// Names for an error message.
pub fn names() -> String {
    ALL.iter().map(|suite| suite.name).collect::<Vec<_>>().join(", ")
}

/// Whether some suite knows this peer.
pub fn peer_exists(name: &str) -> bool {
    name == "mksgate" || ALL.iter().any(|suite| suite.peers.contains(&name))
}

/// Every peer of every suite, for an error message.
pub fn peers() -> String {
    let mut all: Vec<&str> = ALL.iter().flat_map(|suite| suite.peers).copied().collect();
    all.sort_unstable();
    all.dedup();
    all.join(", ")
}
