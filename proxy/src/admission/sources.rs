//! Stage 1: connections in all, handshakes under way, and each source's share, before any TLS work.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Bucket, Denied};
use crate::config::Limits;

/// How often a full table is searched for sources to forget. Searched for every newcomer, it would cost each of them more
/// than a handshake, and whoever owns many addresses could keep everybody waiting for the lock.
const SEARCH_EVERY: Duration = Duration::from_secs(1);

/// The state of stage 1.
#[derive(Debug)]
pub struct Sources {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limits: Limits,
    /// Connections that came in and have not ended: in a handshake or handed over.
    connections: usize,
    /// Of those, the ones not handed over.
    handshakes: usize,
    known: HashMap<IpAddr, Source>,
    /// The table is not searched for sources to forget before this time.
    search_at: Option<Instant>,
}

#[derive(Debug)]
struct Source {
    handshakes: u32,
    bucket: Bucket,
}

/// A connection that passed stage 1. Its drop ends the connection's account; [`Entry::handed_over`] ends only the part of
/// the handshake.
#[derive(Debug)]
pub struct Entry {
    sources: Arc<Sources>,
    /// The source whose handshake it still is.
    handshake: Option<IpAddr>,
}

/// What counts as one source: an IPv4 address, or an IPv6 /64, of which one customer has 2^64 addresses.
pub fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(a) => IpAddr::V4(a),
        IpAddr::V6(a) => IpAddr::V6(Ipv6Addr::from(u128::from(a) >> 64 << 64)),
    }
}

impl Sources {
    /// Nobody is in yet.
    pub fn new(limits: Limits) -> Arc<Self> {
        let state = State { limits, connections: 0, handshakes: 0, known: HashMap::new(), search_at: None };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// New limits from now on; who is in stays in.
    pub fn reload(&self, limits: Limits) {
        self.lock().limits = limits;
    }

    /// Lets a connection in, or says why not.
    pub fn enter(self: &Arc<Self>, peer: IpAddr, now: Instant) -> Result<Entry, Denied> {
        let source = source_of(peer);
        let mut state = self.lock();
        let limits = state.limits;
        if state.connections >= limits.max_connections {
            return Err(Denied::Full);
        }
        if state.handshakes >= limits.handshakes {
            return Err(Denied::Handshakes);
        }
        if state.known.len() >= limits.max_sources && !state.known.contains_key(&source) {
            if state.search_at.is_none_or(|at| now >= at) {
                state.known.retain(|_, s| s.handshakes > 0 || !s.bucket.is_full(now));
                state.search_at = Some(now + SEARCH_EVERY);
            }
            // Every remembered source is active: a newcomer is refused rather than one of them forgotten.
            if state.known.len() >= limits.max_sources {
                return Err(Denied::SourceRate);
            }
        }
        let known =
            state.known.entry(source).or_insert_with(|| Source { handshakes: 0, bucket: Bucket::new(now) });
        if known.handshakes >= limits.per_source {
            return Err(Denied::SourceFull);
        }
        if !known.bucket.take(limits.source_rate, limits.source_burst, now) {
            return Err(Denied::SourceRate);
        }
        known.handshakes += 1;
        state.handshakes += 1;
        state.connections += 1;
        Ok(Entry { sources: self.clone(), handshake: Some(source) })
    }

    /// The account of a connection that another process let in; it counts, whatever the limits say.
    pub fn adopt(self: &Arc<Self>) -> Entry {
        self.lock().connections += 1;
        Entry { sources: self.clone(), handshake: None }
    }

    /// Connections in all, and those in a handshake.
    pub fn counts(&self) -> (usize, usize) {
        let state = self.lock();
        (state.connections, state.handshakes)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// The handshake is over; the connection goes on as a session.
    pub fn handed_over(&mut self) {
        let sources = self.sources.clone();
        self.end_handshake(&mut sources.lock());
    }

    fn end_handshake(&mut self, state: &mut State) {
        let Some(source) = self.handshake.take() else { return };
        state.handshakes -= 1;
        if let Some(known) = state.known.get_mut(&source) {
            known.handshakes -= 1;
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let sources = self.sources.clone();
        let mut state = sources.lock();
        self.end_handshake(&mut state);
        state.connections -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const LIMITS: Limits = Limits {
        max_connections: 6,
        handshakes: 4,
        per_source: 2,
        source_rate: 1,
        source_burst: 3,
        max_sources: 3,
    };

    fn ip(n: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, n])
    }

    #[test]
    fn every_limit_holds_and_every_slot_comes_back() {
        let (sources, now) = (Sources::new(LIMITS), Instant::now());
        let a = sources.enter(ip(1), now).unwrap();
        let b = sources.enter(ip(1), now).unwrap();
        assert_eq!(sources.enter(ip(1), now).unwrap_err(), Denied::SourceFull);
        let c = sources.enter(ip(2), now).unwrap();
        let mut d = sources.enter(ip(2), now).unwrap();
        assert_eq!(sources.enter(ip(3), now).unwrap_err(), Denied::Handshakes);
        d.handed_over();
        assert_eq!(sources.counts(), (4, 3));
        let e = sources.enter(ip(3), now).unwrap();
        drop((a, b));
        let f = sources.enter(ip(3), now).unwrap();
        assert_eq!(
            sources.enter(ip(4), now).unwrap_err(),
            Denied::SourceRate,
            "three sources are known and busy"
        );
        drop((c, d, e, f));
        assert_eq!(sources.counts(), (0, 0));
        assert!(
            sources.enter(ip(4), now + Duration::from_secs(9)).is_ok(),
            "those that rested are forgotten"
        );
    }

    #[test]
    fn a_full_table_is_searched_once_a_second_and_not_for_every_newcomer() {
        let limits = Limits { source_rate: 10, ..LIMITS };
        let (sources, now) = (Sources::new(limits), Instant::now());
        let at = |ms| now + Duration::from_millis(ms);
        (1..4).for_each(|n| drop(sources.enter(ip(n), now).unwrap()));
        assert_eq!(sources.enter(ip(4), now).unwrap_err(), Denied::SourceRate);
        assert_eq!(
            sources.enter(ip(4), at(999)).unwrap_err(),
            Denied::SourceRate,
            "others rested; nobody looked"
        );
        assert!(sources.enter(ip(1), at(999)).is_ok(), "who is known is not concerned");
        assert!(sources.enter(ip(4), at(1000)).is_ok());
    }

    #[test]
    fn a_source_that_comes_too_fast_waits_for_its_bucket() {
        let (sources, now) = (Sources::new(LIMITS), Instant::now());
        for _ in 0..3 {
            drop(sources.enter(ip(1), now).unwrap());
        }
        assert_eq!(sources.enter(ip(1), now).unwrap_err(), Denied::SourceRate);
        assert!(sources.enter(ip(1), now + Duration::from_secs(1)).is_ok());
    }

    #[test]
    fn an_ipv6_customer_is_one_source_and_a_mapped_address_is_ipv4() {
        let of = |text: &str| source_of(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), of("2001:db8:1:2::1"));
        assert_ne!(of("2001:db8:1:3::1"), of("2001:db8:1:2::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }
}
