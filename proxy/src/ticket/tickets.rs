//! The ticket store: opens tickets, tracks their use, knows the revocations.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;

use super::jwe::Sealed;
use super::revocation::Revoked;
use super::table::{Granted, Table};
use super::{
    Bearer, Claims, JweError, KeyRing, Permit, Refusal, Revocation, TicketError, TicketPolicy, TicketState,
    TicketUse, since_epoch,
};

/// Revocations are remembered at least this long, so that a portal whose clock runs ahead cannot outlive them.
const REVOCATION_KEPT: Duration = Duration::from_secs(3600);

/// Opens tickets. Shared between threads; decryption runs outside the lock.
#[derive(Debug)]
pub struct Tickets {
    settings: ArcSwap<Settings>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct Settings {
    policy: TicketPolicy,
    keys: KeyRing,
}

#[derive(Debug, Default)]
struct State {
    table: Table,
    revoked: Revoked,
    /// Every unused ticket minted up to this `iat` is revoked: set when more revocations came than are remembered one by one.
    all_revoked: Option<Duration>,
}

/// What the metrics show of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TicketStats {
    /// Used tickets that are remembered.
    pub tracked: usize,
    /// How many may be.
    pub capacity: usize,
    /// First uses refused because no more could be remembered.
    pub refused_full: u64,
    /// Revocations that are remembered.
    pub revocations: usize,
    /// Keys that open tickets.
    pub keys: usize,
}

impl Tickets {
    /// A store in which nothing was used yet.
    pub fn new(policy: TicketPolicy, keys: KeyRing) -> Self {
        Self { settings: ArcSwap::from_pointee(Settings { policy, keys }), state: Mutex::default() }
    }

    /// Opens a ticket that came from `source` at `now` and counts the use. An IPv4 address in IPv6 form is the IPv4 address.
    pub fn open(&self, sealed: &str, source: IpAddr, now: SystemTime) -> Result<Permit, TicketError> {
        let settings = self.settings.load();
        let parsed = Sealed::parse(sealed)?;
        let key = settings.keys.find(&parsed.kid).ok_or(JweError::UnknownKey)?;
        let claims = Claims::from_json(&parsed.open(key)?)?;
        match self.grant(&settings.policy, &claims, source.to_canonical(), since_epoch(now)) {
            Ok(granted) => Ok(Permit::new(Box::new(claims), granted)),
            Err(why) => {
                let Claims { jti, tenant, user, .. } = claims;
                Err(TicketError::Refused { why, bearer: Box::new(Bearer { jti, tenant, user }) })
            }
        }
    }

    /// Takes another policy and other keys from now on. What was used stays used, with the windows it got then.
    pub fn reload(&self, policy: TicketPolicy, keys: KeyRing) {
        self.settings.store(Arc::new(Settings { policy, keys }));
    }

    /// Refuses what is meant from now on: used tickets of it, and unused ones minted until `now` (plus the clock skew; a
    /// jti's whenever minted). Closing the live sessions is the caller's business ([`Revocation::matches`]).
    ///
    /// As many revocations are remembered as tickets (`max_tracked`). One more revokes every ticket that was minted until
    /// now and not used yet: an unremembered revocation must not be a void one.
    pub fn revoke(&self, what: &Revocation, now: SystemTime) {
        let settings = self.settings.load();
        let (policy, now) = (&settings.policy, since_epoch(now));
        let iat = now.saturating_add(policy.clock_skew);
        let mut state = self.state();
        state.prune(policy, now);
        state.table.revoke(what);
        if !state.revoked.insert(what.clone(), iat, policy.max_tracked) {
            state.all_revoked = state.all_revoked.max(Some(iat));
        }
    }

    /// Whether a used ticket was revoked: asked again once its session can be seen by those who close revoked ones.
    pub fn is_revoked(&self, jti: &str) -> bool {
        self.state().table.is_revoked(jti)
    }

    /// The numbers for the metrics.
    pub fn stats(&self) -> TicketStats {
        let settings = self.settings.load();
        let state = self.state();
        TicketStats {
            tracked: state.table.len(),
            capacity: settings.policy.max_tracked,
            refused_full: state.table.refused_full,
            revocations: state.revoked.len(),
            keys: settings.keys.len(),
        }
    }

    /// The newest key of the ring in use, for components of the gate that mint tickets themselves.
    pub fn keys(&self) -> KeyRing {
        self.settings.load().keys.clone()
    }

    /// What is remembered, for the process that takes over.
    pub fn export(&self) -> TicketState {
        let state = self.state();
        TicketState {
            uses: state.table.export(),
            revocations: state.revoked.export(),
            forgotten: state.table.forgotten,
            all_revoked: state.all_revoked,
        }
    }

    /// Uses held now, by jti: sessions, and clients on their way to one.
    pub fn live(&self) -> Vec<(Box<str>, u32)> {
        self.state().table.live()
    }

    /// Takes over what another process remembered. Sessions that came along get their uses back by [`Tickets::adopt`].
    pub fn import(&self, from: TicketState) {
        let mut state = self.state();
        state.table.import(from.uses, from.forgotten);
        state.all_revoked = state.all_revoked.max(from.all_revoked);
        for (what, iat) in from.revocations {
            state.revoked.insert(what, iat, usize::MAX);
        }
    }

    /// The use of a session that another process opened with this ticket; `None` when the ticket is forgotten, so that
    /// nothing can be opened with it anyway.
    pub fn adopt(&self, jti: &str) -> Option<TicketUse> {
        self.state().table.adopt(jti)
    }

    fn grant(
        &self,
        policy: &TicketPolicy,
        claims: &Claims,
        source: IpAddr,
        now: Duration,
    ) -> Result<Granted, Refusal> {
        policy.check(claims, now)?;
        if claims.source.is_some_and(|bound| bound.to_canonical() != source) {
            return Err(Refusal::OtherSource);
        }
        let mut state = self.state();
        state.prune(policy, now);
        if let Some(known) = state.table.again(policy, claims, source, now) {
            return known;
        }
        if state.is_revoked(claims) {
            return Err(Refusal::Revoked);
        }
        state.table.first(policy, claims, source, now)
    }

    /// Nothing panics while it is locked; were it so, what the table says still holds.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn prune(&mut self, policy: &TicketPolicy, now: Duration) {
        self.table.prune(now);
        let keep = policy.first_use_span().max(policy.reconnect).max(REVOCATION_KEPT);
        let forgotten = self.revoked.prune(keep, now);
        self.table.forgotten = self.table.forgotten.max(forgotten);
    }

    fn is_revoked(&self, claims: &Claims) -> bool {
        let iat = Duration::from_secs(claims.iat);
        self.all_revoked.is_some_and(|until| iat <= until)
            || self.revoked.covers(&claims.jti, &claims.tenant, &claims.user, iat)
    }
}
