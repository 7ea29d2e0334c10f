//! The ticket store: opens tickets, tracks their use, knows the revocations.

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;

use super::journal::{self, Journal, JournalError, Start};
use super::jwe::Sealed;
use super::state::State;
use super::table::Granted;
use super::{
    Bearer, Claims, JweError, KeyRing, Permit, Refusal, Revocation, TicketError, TicketPolicy, TicketState,
    TicketUse, since_epoch,
};
use crate::metrics::Samples;

/// Opens tickets. Shared between threads; decryption runs outside the lock.
#[derive(Debug)]
pub struct Tickets {
    shared: Arc<Shared>,
    /// Writes the journal anew, where there is one.
    scribe: OnceLock<JoinHandle<()>>,
}

/// What the journal's thread sees, too.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: ArcSwap<Settings>,
    state: Mutex<State>,
    /// There is something for the journal's thread to do.
    pub(super) wake: Condvar,
}

#[derive(Debug)]
pub(super) struct Settings {
    pub(super) policy: TicketPolicy,
    keys: KeyRing,
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
        let settings = ArcSwap::from_pointee(Settings { policy, keys });
        let shared = Shared { settings, state: Mutex::default(), wake: Condvar::new() };
        Self { shared: Arc::new(shared), scribe: OnceLock::new() }
    }

    /// Opens a ticket that came from `source` at `now` and counts the use. An IPv4 address in IPv6 form is the IPv4 address.
    pub fn open(&self, sealed: &str, source: IpAddr, now: SystemTime) -> Result<Permit, TicketError> {
        let settings = self.shared.settings.load();
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
        self.shared.settings.store(Arc::new(Settings { policy, keys }));
    }

    /// Refuses what is meant from now on: used tickets of it, and unused ones minted until `now` (plus the clock skew; a
    /// jti's whenever minted). Closing the live sessions is the caller's business ([`Revocation::matches`]).
    ///
    /// As many revocations are remembered as tickets (`max_tracked`). One more revokes every ticket that was minted until
    /// now and not used yet: an unremembered revocation must not be a void one.
    pub fn revoke(&self, what: &Revocation, now: SystemTime) {
        let settings = self.shared.settings.load();
        let (policy, now) = (&settings.policy, since_epoch(now));
        let iat = now.saturating_add(policy.clock_skew);
        let mut state = self.state();
        state.prune(policy, now);
        state.revoke(what, iat, policy.max_tracked);
        state.note_revocation(what, iat);
        self.wake(state);
    }

    /// Whether a used ticket was revoked: asked again once its session can be seen by those who close revoked ones.
    pub fn is_revoked(&self, jti: &str) -> bool {
        self.state().table.is_revoked(jti)
    }

    /// The numbers for the metrics.
    pub fn stats(&self) -> TicketStats {
        let settings = self.shared.settings.load();
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
        self.shared.settings.load().keys.clone()
    }

    /// What is remembered, for the process that takes over.
    pub fn export(&self) -> TicketState {
        self.state().export()
    }

    /// Uses held now, by jti: sessions, and clients on their way to one.
    pub fn live(&self) -> Vec<(Box<str>, u32)> {
        self.state().table.live()
    }

    /// Takes over what another process remembered. Sessions that came along get their uses back by [`Tickets::adopt`].
    pub fn import(&self, from: TicketState) {
        self.state().import(from);
    }

    /// From now on remembers in a file, too, and first what stands in it: of the process before this one, if that was ended
    /// or killed. One that gave everything to this one (`heir`) lets this one write the file anew.
    ///
    /// # Errors
    /// Another process has it, or the thread that keeps it short could not be started. A file that cannot be used is no
    /// error: that is said in the log, tried again, and counted.
    pub fn keep_journal(&self, path: &Path, start: Start) -> Result<(), JournalError> {
        journal::begin(&self.shared, path, start)?;
        let shared = self.shared.clone();
        let scribe = thread::Builder::new().name("journal".into()).spawn(move || journal::run(&shared))?;
        // There was none: a process begins once.
        let _ = self.scribe.set(scribe);
        Ok(())
    }

    /// Lets the journal grow, or be, as it is: another process may be about to take it over. `false` takes that back.
    pub fn hold_journal(&self, still: bool) {
        let mut state = self.state();
        if let Some(journal) = &mut state.journal {
            journal.hold(still);
        }
        self.wake(state);
    }

    /// The journal is another process's from now on.
    pub fn leave_journal(&self) {
        self.state().journal = None;
        self.shared.wake.notify_one();
    }

    /// A source of the metrics.
    pub fn sample_journal(&self, out: &mut Samples) {
        if let Some(journal) = &self.state().journal {
            journal.sample(out);
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
        if state.is_of_another_boot(claims, now) {
            let late = now.saturating_sub(policy.first_use_until(claims));
            return Err(Refusal::UsedTooLate { late });
        }
        let granted = state.table.first(policy, claims, source, now)?;
        // Before anybody is let in with it: should the process end now, the next one knows.
        state.note_use(&claims.jti);
        self.wake(state);
        Ok(granted)
    }

    /// Lets the journal's thread know where it has something to do.
    fn wake(&self, mut state: MutexGuard<'_, State>) {
        if state.journal.as_mut().is_some_and(Journal::calls) {
            self.shared.wake.notify_one();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }
}

impl Shared {
    /// Nothing panics while it is locked; were it so, what the table says still holds.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Tickets {
    fn drop(&mut self) {
        let Some(scribe) = self.scribe.take() else { return };
        self.state().journal = None;
        self.shared.wake.notify_one();
        // It ends without a journal; if it panicked, there is nothing left to write with.
        let _ = scribe.join();
    }
}
