//! The live consoles, and how an operator names them.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::net::if_::if_indextoname;
use serde::{Deserialize, Serialize};

use tokio::sync::Notify;

use crate::flow::FlowCounters;
use crate::metrics::Door;

/// A console that was handed to the flow engine. It counts in the memory of an idle session, so strings are exactly sized; the
/// tenant's name is shared by all its sessions.
#[derive(Debug)]
pub struct Session {
    /// Unique in this process; from [`Registry::next_id`].
    pub id: u64,
    /// Where the client came in.
    pub door: Door,
    /// The tenant's name.
    pub tenant: Arc<str>,
    /// The person, as the ticket says.
    pub user: Box<str>,
    /// The VM, as the ticket says.
    pub vm: Box<str>,
    /// The ticket's own name.
    pub jti: Box<str>,
    /// The tenant's number: the mark on both sockets, where the process may set it.
    pub mark: u32,
    /// The client, as the PROXY protocol says where a load balancer is in front, else the same as `peer`.
    pub source: SocketAddr,
    /// Other end of the client's socket (getpeername).
    pub peer: SocketAddr,
    /// Our end of the client's socket (getsockname).
    pub local: SocketAddr,
    /// Our end of the hypervisor's socket.
    pub backend_local: SocketAddr,
    /// Other end of the hypervisor's socket.
    pub backend: SocketAddr,
    /// When it was handed over: for people.
    pub started: SystemTime,
    /// When it was handed over: for durations, whatever the wall clock does.
    pub since: Instant,
    /// Bytes delivered, written by the flow engine.
    pub counters: Arc<FlowCounters>,
}

/// Which sessions an operator means. All fields that are set must match; a selector without any matches nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selector {
    /// The session's number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// The ticket that opened it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jti: Option<String>,
    /// The tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
    /// The client's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// The hypervisor's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<IpAddr>,
    /// Address and port of any end of either socket, as `ss` prints it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
}

/// A session as the admin API shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionView {
    /// The session's number.
    pub id: u64,
    /// Where the client came in.
    pub door: Door,
    /// The tenant's name.
    pub tenant: String,
    /// The person.
    pub user: String,
    /// The VM.
    pub vm: String,
    /// The ticket that opened it.
    pub jti: String,
    /// The mark on both sockets (`fwmark` of `ss -e`), 0 where none could be set.
    pub mark: u32,
    /// Who it is; differs from `client.peer` behind a load balancer.
    pub source: String,
    /// The client's socket.
    pub client: SocketView,
    /// The hypervisor's socket.
    pub backend: SocketView,
    /// RFC 3339.
    pub started: String,
    /// Seconds since the hand-over.
    pub age_seconds: f64,
    /// Seconds since the last byte in either direction.
    pub idle_seconds: f64,
    /// Bytes delivered to the hypervisor.
    pub up_bytes: u64,
    /// Bytes delivered to the client.
    pub down_bytes: u64,
}

/// Both ends of a socket, exactly as `ss -tn` prints them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketView {
    /// Our end.
    pub local: String,
    /// The other end.
    pub peer: String,
}

/// Every live session of the process.
pub struct Registry {
    sessions: Mutex<HashMap<u64, Arc<Session>>>,
    next: AtomicU64,
    epoch: Instant,
    emptied: Notify,
}

impl Registry {
    /// `epoch` is the flow engine's start, from which [`FlowCounters::last_ms`] counts.
    pub fn new(epoch: Instant) -> Arc<Self> {
        Arc::new(Self { sessions: Mutex::default(), next: AtomicU64::new(1), epoch, emptied: Notify::new() })
    }

    /// A number that no session of this process had.
    pub fn next_id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// The number that [`Registry::next_id`] gives next.
    pub fn peek_id(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// Goes on after the numbers of another process.
    pub fn resume(&self, next: u64) {
        self.next.fetch_max(next, Ordering::Relaxed);
    }

    /// Makes a session visible.
    pub fn insert(&self, session: Arc<Session>) {
        self.lock().insert(session.id, session);
    }

    /// Forgets a session; `None` if it was not there.
    pub fn remove(&self, id: u64) -> Option<Arc<Session>> {
        let mut sessions = self.lock();
        let session = sessions.remove(&id);
        // After a flood the table gives its memory back.
        if sessions.capacity() > 4096 && sessions.len() < sessions.capacity() / 8 {
            sessions.shrink_to_fit();
        }
        if sessions.is_empty() {
            self.emptied.notify_waiters();
        }
        session
    }

    /// The session of this number.
    pub fn get(&self, id: u64) -> Option<Arc<Session>> {
        self.lock().get(&id).cloned()
    }

    /// How many are live.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether none is live.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Returns as soon as none is live.
    pub async fn emptied(&self) {
        loop {
            let notified = self.emptied.notified();
            if self.is_empty() {
                return;
            }
            notified.await;
        }
    }

    /// All live sessions, oldest first.
    pub fn list(&self) -> Vec<Arc<Session>> {
        let mut all: Vec<_> = self.lock().values().cloned().collect();
        all.sort_unstable_by_key(|session| session.id);
        all
    }

    /// Numbers of the sessions that the selector means, oldest first.
    pub fn find(&self, selector: &Selector) -> Vec<u64> {
        self.list().iter().filter(|session| selector.matches(session)).map(|session| session.id).collect()
    }

    /// The session as the admin API shows it.
    pub fn view(&self, session: &Session, now: Instant) -> SessionView {
        session.view(self.epoch, now)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// Time since the last byte, or since the hand-over where none has passed yet.
    pub fn idle(&self, epoch: Instant, now: Instant) -> Duration {
        let last = epoch + Duration::from_millis(self.counters.last_ms.load(Ordering::Relaxed));
        now.saturating_duration_since(last.max(self.since))
    }

    fn view(&self, epoch: Instant, now: Instant) -> SessionView {
        SessionView {
            id: self.id,
            door: self.door,
            tenant: self.tenant.to_string(),
            user: self.user.to_string(),
            vm: self.vm.to_string(),
            jti: self.jti.to_string(),
            mark: self.mark,
            source: self.source.to_string(),
            client: SocketView::new(self.local, self.peer),
            backend: SocketView::new(self.backend_local, self.backend),
            started: rfc3339(self.started),
            age_seconds: millis(now.saturating_duration_since(self.since)),
            idle_seconds: millis(self.idle(epoch, now)),
            up_bytes: self.counters.up.load(Ordering::Relaxed),
            down_bytes: self.counters.down.load(Ordering::Relaxed),
        }
    }
}

impl SocketView {
    pub(crate) fn new(local: SocketAddr, peer: SocketAddr) -> Self {
        Self { local: as_ss_prints(local, true), peer: as_ss_prints(peer, false) }
    }
}

impl Selector {
    /// Whether nothing is selected: such a selector matches no session, so that a forgotten filter closes none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the session is meant.
    pub fn matches(&self, session: &Session) -> bool {
        let is = |wanted: &Option<String>, have: &str| wanted.as_deref().is_none_or(|wanted| wanted == have);
        let comes_from = |wanted: Option<IpAddr>, have: SocketAddr| {
            wanted.is_none_or(|wanted| wanted.to_canonical() == have.ip().to_canonical())
        };
        !self.is_empty()
            && self.id.is_none_or(|id| id == session.id)
            && is(&self.jti, &session.jti)
            && is(&self.tenant, &session.tenant)
            && is(&self.user, &session.user)
            && is(&self.vm, &session.vm)
            && comes_from(self.source, session.source)
            && comes_from(self.backend, session.backend)
            && self.socket.as_deref().is_none_or(|wanted| has_end(session, wanted))
    }
}

fn has_end(session: &Session, wanted: &str) -> bool {
    let ours = [session.local, session.backend_local].map(|addr| as_ss_prints(addr, true));
    let theirs = [session.peer, session.backend].map(|addr| as_ss_prints(addr, false));
    ours.iter().chain(&theirs).any(|end| end == wanted)
}

/// An address as `ss -n` prints it: `1.2.3.4:5`, `[::1]:5`, and our own end of a link-local connection with its interface,
/// `[fe80::1]%eth0:5` (iproute2, misc/ss.c `inet_addr_print`).
fn as_ss_prints(addr: SocketAddr, ours: bool) -> String {
    match addr {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => {
            let name = ours.then(|| if_indextoname(v6.scope_id()).ok()).flatten();
            match name.as_deref().and_then(|name| name.to_str().ok()) {
                Some(name) => format!("[{}]%{name}:{}", v6.ip(), v6.port()),
                None => format!("[{}]:{}", v6.ip(), v6.port()),
            }
        }
        other => other.to_string(),
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_millis() as f64 / 1e3
}

/// The time as RFC 3339 in UTC with milliseconds. A time before 1970 is shown as 1970.
pub fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
}

/// Year, month and day of the days since 1970-01-01 (H. Hinnant, chrono-compatible low-level date algorithms, `civil_from_days`).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(id: u64, tenant: &str, source: &str) -> Arc<Session> {
        let source = source.parse().unwrap();
        Arc::new(Session {
            id,
            door: Door::Authd,
            tenant: tenant.into(),
            user: "ann".into(),
            vm: "[ds] a/a.vmx".into(),
            jti: format!("t-{id}").into(),
            mark: 7,
            source,
            peer: source,
            local: "192.0.2.1:902".parse().unwrap(),
            backend_local: "10.0.0.1:40000".parse().unwrap(),
            backend: "10.0.0.9:902".parse().unwrap(),
            started: UNIX_EPOCH,
            since: Instant::now(),
            counters: Arc::default(),
        })
    }

    fn filled() -> Arc<Registry> {
        let registry = Registry::new(Instant::now());
        registry.insert(session(1, "acme", "198.51.100.1:5000"));
        registry.insert(session(2, "acme", "[::ffff:198.51.100.2]:5000"));
        registry.insert(session(3, "globex", "[2001:db8::1]:5000"));
        registry
    }

    #[test]
    fn a_selector_means_all_its_fields_and_an_empty_one_nothing() {
        let registry = filled();
        let find = |selector| registry.find(&selector);
        assert!(find(Selector::default()).is_empty());
        assert_eq!(find(Selector { tenant: Some("acme".into()), ..Default::default() }), [1, 2]);
        let both = Selector { tenant: Some("acme".into()), jti: Some("t-2".into()), ..Default::default() };
        assert_eq!(find(both), [2]);
        assert_eq!(find(Selector { source: "198.51.100.2".parse().ok(), ..Default::default() }), [2]);
        assert_eq!(find(Selector { backend: "10.0.0.9".parse().ok(), ..Default::default() }), [1, 2, 3]);
        let socket = Selector { socket: Some("[2001:db8::1]:5000".into()), ..Default::default() };
        assert_eq!(find(socket), [3]);
    }

    #[test]
    fn what_is_removed_is_gone() {
        let registry = filled();
        assert_eq!(registry.remove(2).unwrap().id, 2);
        assert!(registry.remove(2).is_none());
        assert_eq!(registry.list().iter().map(|s| s.id).collect::<Vec<_>>(), [1, 3]);
    }

    #[test]
    fn idle_counts_from_the_last_byte_or_the_hand_over() {
        let registry = Registry::new(Instant::now() - Duration::from_secs(100));
        let session = session(1, "acme", "198.51.100.1:5000");
        let now = session.since + Duration::from_secs(10);
        assert_eq!(registry.view(&session, now).idle_seconds, 10.0);
        let last = session.since + Duration::from_secs(4) - registry.epoch;
        session.counters.last_ms.store(last.as_millis() as u64, Ordering::Relaxed);
        let view = registry.view(&session, now);
        assert!((5.99..6.01).contains(&view.idle_seconds), "{}", view.idle_seconds);
        assert_eq!(view.age_seconds, 10.0);
    }

    #[test]
    fn a_link_local_end_of_ours_carries_its_interface() {
        let scoped = SocketAddr::V6(std::net::SocketAddrV6::new("fe80::1".parse().unwrap(), 9, 0, 1));
        assert_eq!(as_ss_prints(scoped, true), "[fe80::1]%lo:9");
        assert_eq!(as_ss_prints(scoped, false), "[fe80::1]:9");
    }

    #[test]
    fn times_are_rfc_3339() {
        let at = |s: u64, ms: u64| rfc3339(UNIX_EPOCH + Duration::from_millis(s * 1000 + ms));
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_827_696, 789), "2000-02-29T12:34:56.789Z");
        assert_eq!(at(1_735_689_599, 0), "2024-12-31T23:59:59.000Z");
        assert_eq!(at(4_107_542_400, 5), "2100-03-01T00:00:00.005Z");
    }

    #[test]
    fn an_idle_session_is_small() {
        assert!(size_of::<Session>() <= 320, "{}", size_of::<Session>());
    }
}
