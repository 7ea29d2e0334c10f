//! How hosts do, from what became of real connections: nothing is asked for its own sake.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::BackendError;
use crate::metrics::Samples;

/// Hosts that are remembered; beyond that the one that was silent longest is forgotten.
pub const MOST: usize = 4096;

/// Hosts by how tickets and vCenters name them: `host:port`.
#[derive(Default)]
pub struct Hosts(Mutex<State>);

#[derive(Default)]
struct State {
    known: HashMap<String, Host>,
    answered: u64,
    failed: u64,
}

/// What became of connections to one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Connections that it answered as a host does, a refused ticket included.
    pub answered: u64,
    /// Connections that came to nothing.
    pub failed: u64,
    /// Failures since the last answer.
    pub in_a_row: u64,
    /// The last connection, whatever became of it.
    pub last: SystemTime,
    /// Why the last failure was one, and when.
    pub last_failure: Option<(SystemTime, String)>,
}

impl Host {
    /// Whether the last connection came to nothing.
    pub fn is_failing(&self) -> bool {
        self.in_a_row > 0
    }
}

impl Hosts {
    /// Notes what became of a connection. An error that is not the host's own changes nothing.
    pub fn note<T>(&self, host: &str, port: u16, outcome: &Result<T, BackendError>, now: SystemTime) {
        let failure = match outcome {
            Ok(_) => None,
            Err(error) if error.is_of_host() => Some(error.to_string()),
            Err(error) if error.is_answer_of_host() => None,
            Err(_) => return,
        };
        let mut state = self.lock();
        let name = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        if state.known.len() >= MOST && !state.known.contains_key(&name) {
            let oldest = state.known.iter().min_by_key(|(_, host)| host.last).map(|(name, _)| name.clone());
            oldest.map(|name| state.known.remove(&name));
        }
        let fresh = Host { answered: 0, failed: 0, in_a_row: 0, last: now, last_failure: None };
        let host = state.known.entry(name).or_insert(fresh);
        host.last = now;
        match failure {
            None => {
                host.answered += 1;
                host.in_a_row = 0;
                state.answered += 1;
            }
            Some(why) => {
                host.failed += 1;
                host.in_a_row += 1;
                host.last_failure = Some((now, why));
                state.failed += 1;
            }
        }
    }

    /// All that are known, by name.
    pub fn list(&self) -> Vec<(String, Host)> {
        let mut all: Vec<_> =
            self.lock().known.iter().map(|(name, host)| (name.clone(), host.clone())).collect();
        all.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// For `/metrics`. Hosts are named by tickets, so their names are no labels.
    pub fn sample(&self, out: &mut Samples) {
        let state = self.lock();
        let failing = state.known.values().filter(|host| host.is_failing()).count();
        for (name, count) in [("ok", state.known.len() - failing), ("failing", failing)] {
            let help = "Hosts that consoles were opened at, by what became of the last connection";
            out.gauge("mksgate_hosts", help, &[("state", name)], count as i64);
        }
        for (name, count) in [("answered", state.answered), ("failed", state.failed)] {
            let help = "Connections to hosts, by whether the host answered as one";
            out.counter("mksgate_host_connections", help, &[("result", name)], count);
        }
    }

    /// Nothing panics while it is locked.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::time::Duration;

    fn down() -> Result<(), BackendError> {
        let address = "192.0.2.1:902".parse().unwrap();
        Err(BackendError::Unreachable { address, error: io::ErrorKind::ConnectionRefused.into() })
    }

    #[test]
    fn the_last_connection_says_how_a_host_does() {
        let (hosts, now) = (Hosts::default(), SystemTime::now());
        let one = |hosts: &Hosts| hosts.list()[0].1.clone();
        hosts.note("esx", 902, &down(), now);
        hosts.note("esx", 902, &down(), now);
        assert!(one(&hosts).is_failing() && one(&hosts).in_a_row == 2);
        // A host that refuses a ticket is there.
        hosts.note::<()>(
            "esx",
            902,
            &Err(BackendError::Refused { code: 530, step: super::super::Step::Login }),
            now,
        );
        assert!(!one(&hosts).is_failing());
        let outside = BackendError::OutsideTargets("192.0.2.1:902".parse().unwrap());
        hosts.note::<()>("never-asked", 902, &Err(outside), now);
        hosts.note("2001:db8::1", 902, &Ok(()), now);
        let names: Vec<_> = hosts.list().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["[2001:db8::1]:902", "esx:902"]);
        assert_eq!((one(&hosts).answered, hosts.list()[1].1.failed), (1, 2));
    }

    #[test]
    fn a_flood_of_names_is_bounded_and_the_silent_go_first() {
        let (hosts, start) = (Hosts::default(), SystemTime::UNIX_EPOCH);
        for n in 0..MOST as u64 + 10 {
            hosts.note(&format!("h{n}"), 902, &Ok(()), start + Duration::from_secs(n));
            hosts.note("busy", 902, &Ok(()), start + Duration::from_secs(n));
        }
        let all = hosts.list();
        assert_eq!(all.len(), MOST);
        assert!(
            all.iter().any(|(name, _)| name == "busy:902") && all.iter().all(|(name, _)| name != "h0:902")
        );
    }
}
