//! Which tickets were used, since when, from where and how often at once.
//!
//! The table is bounded: when it is full, tickets that were never used are refused. A used ticket is forgotten only when
//! it can no longer be valid: not for a first use any more, and past its reconnect window or its `exp`. Should the policy be
//! relaxed later (a reload), [`Table::forgotten`] keeps the tickets of the forgotten entries' time from coming back.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Claims, Refusal, Revocation, TicketPolicy, TicketUse};

/// Everything the ticket store remembers, to be handed to the process that takes over. Times are since the Unix epoch.
/// It holds no secret: names, times and addresses only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketState {
    pub(super) uses: Vec<(Box<str>, Entry)>,
    pub(super) revocations: Vec<(Revocation, Duration)>,
    pub(super) forgotten: Option<Duration>,
    pub(super) all_revoked: Option<Duration>,
}

/// One used ticket.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    iat: u64,
    tenant: Box<str>,
    user: Box<str>,
    /// The address of the first use.
    source: IpAddr,
    /// The end of its reconnect window; fixed at the first use.
    reconnect_until: Duration,
    /// After this time it cannot be valid any more.
    forget_after: Duration,
    revoked: bool,
    /// Connections open now. Those of another process are not ours: the count starts anew after an import.
    #[serde(skip)]
    live: Arc<AtomicU32>,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        let key = |e: &Self| (e.iat, e.source, e.reconnect_until, e.forget_after, e.revoked);
        key(self) == key(other) && self.tenant == other.tenant && self.user == other.user
    }
}

impl Eq for Entry {}

/// A use that was granted.
pub(super) struct Granted {
    pub(super) held: TicketUse,
    pub(super) reconnect_until: Duration,
    pub(super) first: bool,
}

/// When an entry may be forgotten, and its jti.
pub(super) type Place = (Duration, Arc<str>);

#[derive(Debug, Default)]
pub(super) struct Table {
    entries: HashMap<Arc<str>, Entry>,
    by_end: BTreeSet<Place>,
    /// The youngest `iat` among the tickets that were used and forgotten. An unknown ticket that is not younger may be one of
    /// them. Under an unchanged policy such a ticket is too old for a first use anyway.
    pub(super) forgotten: Option<Duration>,
    pub(super) refused_full: u64,
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Forgets what can no longer be valid.
    pub(super) fn prune(&mut self, now: Duration) {
        while self.by_end.first().is_some_and(|(end, _)| *end < now) {
            let Some((_, jti)) = self.by_end.pop_first() else { return };
            if let Some(entry) = self.entries.remove(&jti) {
                self.forgotten = self.forgotten.max(Some(entry.iat()));
            }
        }
    }

    /// Another use of a ticket that was used before; `None` if it was not.
    pub(super) fn again(
        &mut self,
        policy: &TicketPolicy,
        claims: &Claims,
        source: IpAddr,
        now: Duration,
    ) -> Option<Result<Granted, Refusal>> {
        let entry = self.entries.get_mut(claims.jti.as_str())?;
        Some(entry.again(policy, claims, source, now))
    }

    /// The first use. The caller knows that the ticket is not in the table and not revoked.
    pub(super) fn first(
        &mut self,
        policy: &TicketPolicy,
        claims: &Claims,
        source: IpAddr,
        now: Duration,
    ) -> Result<Granted, Refusal> {
        let until = policy.first_use_until(claims);
        if now > until || self.forgotten.is_some_and(|iat| Duration::from_secs(claims.iat) <= iat) {
            return Err(Refusal::UsedTooLate { late: now.saturating_sub(until) });
        }
        let limit = policy.connections(claims);
        if limit == 0 {
            return Err(Refusal::TooManyConnections { limit });
        }
        if self.entries.len() >= policy.max_tracked {
            self.refused_full += 1;
            return Err(Refusal::TableFull { capacity: policy.max_tracked });
        }
        let reconnect_until = now.saturating_add(policy.reconnect).min(policy.expiry(claims));
        let entry = Entry {
            iat: claims.iat,
            tenant: claims.tenant.as_str().into(),
            user: claims.user.as_str().into(),
            source,
            reconnect_until,
            forget_after: until.max(reconnect_until),
            revoked: false,
            live: Arc::default(),
        };
        let held = TicketUse::take(&entry.live);
        self.insert(claims.jti.as_str().into(), entry);
        Ok(Granted { held, reconnect_until, first: true })
    }

    /// Marks every used ticket that is meant.
    pub(super) fn revoke(&mut self, what: &Revocation) {
        if let Revocation::Jti(jti) = what {
            if let Some(entry) = self.entries.get_mut(jti.as_str()) {
                entry.revoked = true;
            }
            return;
        }
        for (jti, entry) in &mut self.entries {
            entry.revoked |= what.matches(jti, &entry.tenant, &entry.user);
        }
    }

    /// Whether a used ticket was revoked.
    pub(super) fn is_revoked(&self, jti: &str) -> bool {
        self.entries.get(jti).is_some_and(|entry| entry.revoked)
    }

    /// A use for a session that was opened by the process before this one; `None` for a ticket that is forgotten.
    pub(super) fn adopt(&self, jti: &str) -> Option<TicketUse> {
        self.entries.get(jti).map(|entry| TicketUse::take(&entry.live))
    }

    /// Connections open now, by jti.
    pub(super) fn live(&self) -> Vec<(Box<str>, u32)> {
        let live =
            self.entries.iter().map(|(jti, entry)| (Box::from(&**jti), entry.live.load(Ordering::Acquire)));
        live.filter(|(_, n)| *n > 0).collect()
    }

    /// A used ticket.
    pub(super) fn get(&self, jti: &str) -> Option<&Entry> {
        self.entries.get(jti)
    }

    /// Those behind `last`, in the order in which they will be forgotten, each with its place.
    pub(super) fn after(&self, last: Option<&Place>) -> impl Iterator<Item = (&Place, &Entry)> {
        let from = last.map_or(Bound::Unbounded, Bound::Excluded);
        let places = self.by_end.range((from, Bound::Unbounded));
        places.filter_map(|place| Some((place, self.entries.get(&place.1)?)))
    }

    pub(super) fn export(&self) -> Vec<(Box<str>, Entry)> {
        self.entries.iter().map(|(jti, entry)| (Box::from(&**jti), entry.clone())).collect()
    }

    /// Takes over what another process remembered, even beyond the capacity: a used ticket is never forgotten early.
    pub(super) fn import(&mut self, uses: Vec<(Box<str>, Entry)>, forgotten: Option<Duration>) {
        self.forgotten = self.forgotten.max(forgotten);
        for (jti, entry) in uses {
            match self.entries.get_mut(&*jti) {
                Some(known) => known.revoked |= entry.revoked,
                None => self.insert(jti.into(), Entry { live: Arc::default(), ..entry }),
            }
        }
    }

    fn insert(&mut self, jti: Arc<str>, entry: Entry) {
        self.by_end.insert((entry.forget_after, jti.clone()));
        self.entries.insert(jti, entry);
    }
}

impl Entry {
    /// When it was minted.
    pub(super) fn iat(&self) -> Duration {
        Duration::from_secs(self.iat)
    }

    fn again(
        &mut self,
        policy: &TicketPolicy,
        claims: &Claims,
        source: IpAddr,
        now: Duration,
    ) -> Result<Granted, Refusal> {
        if (self.iat, &*self.tenant, &*self.user) != (claims.iat, &*claims.tenant, &*claims.user) {
            return Err(Refusal::JtiReused);
        }
        if self.revoked {
            return Err(Refusal::Revoked);
        }
        if now >= self.reconnect_until {
            return Err(Refusal::ReconnectOver { late: now - self.reconnect_until });
        }
        if policy.bind_source && claims.source.is_none() && self.source != source {
            return Err(Refusal::OtherSource);
        }
        let limit = policy.connections(claims);
        if self.live.load(Ordering::Acquire) >= limit {
            return Err(Refusal::TooManyConnections { limit });
        }
        let held = TicketUse::take(&self.live);
        Ok(Granted { held, reconnect_until: self.reconnect_until, first: false })
    }
}
