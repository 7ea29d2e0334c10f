//! Sessions of clients of `/sdk`: each holds one Permit, and with it one use of its ticket.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use aws_lc_rs::rand;

use crate::backend::vcenter::SessionKey;
use crate::protocol::soap::Moref;
use crate::ticket::Permit;

/// A session nobody used for this long is over, as at a vCenter.
const IDLE: Duration = Duration::from_secs(1800);
/// Tasks and filters that a session remembers as its own; the oldest is forgotten first.
const OWN: usize = 256;
/// Sessions of one tenant per console it may have: a client opens a few for each.
const PER_CONSOLE: usize = 4;
/// Calls of one session under way at once.
pub(super) const CALLS: usize = 4;

/// A client that showed a ticket.
pub struct SdkSession {
    /// What the ticket allows.
    pub permit: Permit,
    /// The VM, at the vCenter behind.
    pub vm: Moref,
    /// The session there.
    pub key: SessionKey,
    /// The property collector there.
    pub collector: Moref,
    /// `UserSession.key`: a name, no secret.
    pub name: String,
    /// Where it was opened from.
    pub source: IpAddr,
    /// When.
    pub since: SystemTime,
    /// Keeps one client from crowding the vCenter.
    pub calls: tokio::sync::Semaphore,
    ends_at: Option<Instant>,
    own: Mutex<Vec<Moref>>,
    used: Mutex<Instant>,
}

/// What a new session is made of.
pub struct Opened {
    /// What the ticket allows.
    pub permit: Permit,
    /// The VM, at the vCenter behind.
    pub vm: Moref,
    /// The session there.
    pub key: SessionKey,
    /// The property collector there.
    pub collector: Moref,
    /// Where the client is.
    pub source: IpAddr,
}

/// Every session, by its cookie.
#[derive(Default)]
pub struct SdkSessions {
    by_cookie: Mutex<HashMap<String, Arc<SdkSession>>>,
    clients: AtomicU64,
}

impl SdkSession {
    /// Tasks and filters it got from its vCenter.
    pub fn own(&self) -> Vec<Moref> {
        lock(&self.own).clone()
    }

    /// Remembers one more.
    pub fn remember(&self, object: Moref) {
        let mut own = lock(&self.own);
        if own.len() >= OWN {
            own.remove(0);
        }
        own.push(object);
    }

    fn is_over(&self, now: Instant, clock: SystemTime) -> bool {
        now.saturating_duration_since(*lock(&self.used)) >= IDLE
            || self.ends_at.is_some_and(|end| now >= end)
            // Its ticket would no longer open another connection either.
            || clock >= self.permit.reconnect_until()
    }
}

impl SdkSessions {
    /// The number of the next client, for its own session at the vCenter.
    pub fn next_client(&self) -> u64 {
        self.clients.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Opens a session: its cookie and itself. `None` where the tenant has as many as it may.
    pub fn open(
        &self,
        opened: Opened,
        consoles: u32,
        now: Instant,
        clock: SystemTime,
    ) -> Option<(String, Arc<SdkSession>)> {
        let cookie = random()?;
        let Opened { permit, vm, key, collector, source } = opened;
        let ends_at = permit.session().and_then(|longest| now.checked_add(longest));
        let session = Arc::new(SdkSession {
            permit,
            vm,
            key,
            collector,
            name: random()?,
            source,
            since: clock,
            calls: tokio::sync::Semaphore::new(CALLS),
            ends_at,
            own: Mutex::default(),
            used: Mutex::new(now),
        });
        let mut sessions = lock(&self.by_cookie);
        let tenant = session.permit.tenant();
        let open = sessions.values().filter(|other| other.permit.tenant() == tenant).count();
        if open >= (consoles as usize).saturating_mul(PER_CONSOLE) {
            return None;
        }
        sessions.insert(cookie.clone(), session.clone());
        Some((cookie, session))
    }

    /// The session of a cookie, used now.
    pub fn find(&self, cookie: &str, now: Instant, clock: SystemTime) -> Option<Arc<SdkSession>> {
        let session = lock(&self.by_cookie).get(cookie).cloned()?;
        if session.is_over(now, clock) {
            return None;
        }
        *lock(&session.used) = now;
        Some(session)
    }

    /// Ends a session.
    pub fn close(&self, cookie: &str) -> Option<Arc<SdkSession>> {
        lock(&self.by_cookie).remove(cookie)
    }

    /// Takes out those that are over, or that `unwelcome` says should be.
    pub fn take_over(
        &self,
        now: Instant,
        clock: SystemTime,
        unwelcome: impl Fn(&SdkSession) -> bool,
    ) -> Vec<Arc<SdkSession>> {
        let mut gone = Vec::new();
        lock(&self.by_cookie).retain(|_, session| {
            let over = session.is_over(now, clock) || unwelcome(session);
            if over {
                gone.push(session.clone());
            }
            !over
        });
        gone
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        lock(&self.by_cookie).len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// 256 random bits, in hexadecimal.
fn random() -> Option<String> {
    let mut bytes = [0; 32];
    rand::fill(&mut bytes).ok()?;
    Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Nothing panics while one of these is locked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
