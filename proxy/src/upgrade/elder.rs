//! The processes that went before, as seen from the one in charge: they still hold consoles that cannot move, or have not
//! moved yet. Those count here, are listed here and are closed from here.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::channel::{Channel, Message};
use super::heir::lost_end;
use super::message::{FlowMessage, SessionState, ToElder, ToHeir, set_counts};
use crate::admission::Admission;
use crate::gate::Gate;
use crate::session::{CloseReason, Held, opened_here};
use crate::ticket::TicketUse;

/// How long a look for an elder's words may take, and so how long another upgrade waits for its ear.
const LISTEN: Duration = Duration::from_millis(50);
/// How long it may leave its socket full: it reads a few words at a time.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sessions whose flows are in another process.
#[derive(Default)]
pub(crate) struct Elders {
    elsewhere: Mutex<HashMap<u64, Elsewhere>>,
    all: Mutex<Vec<Arc<Elder>>>,
}

struct Elsewhere {
    held: Held,
    elder: Arc<Elder>,
    /// It is to end, and was on its way here when that was said.
    close: Option<CloseReason>,
}

/// One process.
pub(super) struct Elder {
    channel: Arc<Channel>,
    /// Slots of clients that were on their way to a console of that process.
    reserved: Mutex<Vec<(Option<Admission>, Option<TicketUse>)>>,
    moved: AtomicBool,
    /// Somebody else is to hear it from now on.
    deaf: AtomicBool,
    ended: AtomicBool,
}

impl Elder {
    pub(super) fn new(channel: Arc<Channel>, moved: bool) -> Arc<Self> {
        Arc::new(Self {
            channel,
            reserved: Mutex::default(),
            moved: AtomicBool::new(moved),
            deaf: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        })
    }

    pub(super) fn reserve(&self, slots: (Option<Admission>, Option<TicketUse>)) {
        lock(&self.reserved).push(slots);
    }
}

impl Elders {
    /// Ends a session that is in another process; false if it is none.
    pub(crate) fn close(&self, id: u64, reason: CloseReason) -> bool {
        let mut elsewhere = lock(&self.elsewhere);
        let Some(session) = elsewhere.get_mut(&id) else { return false };
        session.close.get_or_insert(reason);
        if let Err(error) = session.elder.channel.send(&ToElder::Close { id, reason }, &[], &[]) {
            tracing::error!(%error, session = id, "the process that holds this console does not listen");
        }
        true
    }

    /// How many sessions are elsewhere.
    pub(crate) fn len(&self) -> usize {
        lock(&self.elsewhere).len()
    }

    /// A session that an elder holds.
    pub(super) fn add(&self, elder: &Arc<Elder>, held: Held) {
        let elsewhere = Elsewhere { elder: elder.clone(), close: None, held };
        lock(&self.elsewhere).insert(elsewhere.held.session().id, elsewhere);
    }

    /// Hears the elder from now on, on a thread of its own.
    pub(super) fn hear(&self, gate: &Arc<Gate>, elder: Arc<Elder>) -> io::Result<()> {
        elder.channel.set_patience(LISTEN, PATIENCE)?;
        lock(&self.all).push(elder.clone());
        let gate = gate.clone();
        std::thread::Builder::new()
            .name("elder".into())
            .spawn(move || gate.succession.elders.listen(&gate, &elder))?;
        Ok(())
    }

    /// Stops hearing all of them, so that another process may: each with the sessions it holds. `None`: consoles are still
    /// on their way from one of them.
    pub(super) fn pass_on(&self) -> Option<Vec<(Arc<Channel>, Vec<u64>)>> {
        let all: Vec<_> =
            lock(&self.all).iter().filter(|elder| !elder.ended.load(Ordering::Acquire)).cloned().collect();
        if !all.iter().all(|elder| elder.moved.load(Ordering::Acquire)) {
            return None;
        }
        all.iter().for_each(|elder| elder.deaf.store(true, Ordering::Release));
        let until = Instant::now() + PATIENCE;
        while all.iter().any(|elder| !elder.ended.load(Ordering::Acquire)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        let elsewhere = lock(&self.elsewhere);
        let held = |elder: &Arc<Elder>| {
            elsewhere.iter().filter(|(_, s)| Arc::ptr_eq(&s.elder, elder)).map(|(id, _)| *id).collect()
        };
        Some(all.iter().map(|elder| (elder.channel.clone(), held(elder))).collect())
    }

    /// The sessions that are elsewhere are another process's business from now on: forgets them and their slots.
    pub(super) fn forget(&self) {
        lock(&self.all).clear();
        let all = std::mem::take(&mut *lock(&self.elsewhere));
        drop(all);
    }

    /// After an upgrade that failed: hears them again.
    pub(super) fn hear_again(&self, gate: &Arc<Gate>) {
        let all: Vec<_> = std::mem::take(&mut *lock(&self.all));
        for elder in all.into_iter().filter(|elder| elder.deaf.swap(false, Ordering::AcqRel)) {
            elder.ended.store(false, Ordering::Release);
            if let Err(error) = self.hear(gate, elder) {
                tracing::error!(%error, "consoles of an older process are no longer followed");
            }
        }
    }

    fn listen(&self, gate: &Arc<Gate>, elder: &Arc<Elder>) {
        while !elder.deaf.load(Ordering::Acquire) {
            match elder.channel.receive::<ToHeir>() {
                Ok(Some(message)) => self.on_message(gate, elder, message),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(None) => {
                    self.bury(gate, elder);
                    break;
                }
                Err(error) => {
                    tracing::error!(%error, "an older process cannot be understood");
                    self.bury(gate, elder);
                    break;
                }
            }
        }
        elder.ended.store(true, Ordering::Release);
    }

    fn on_message(&self, gate: &Arc<Gate>, elder: &Arc<Elder>, message: Message<ToHeir>) {
        let Message { head, bytes, files } = message;
        match head {
            ToHeir::Flow(flow) => self.arrived(gate, elder, flow, bytes, files),
            ToHeir::Ended { id, end } => {
                if let Some(session) = lock(&self.elsewhere).remove(&id) {
                    session.held.end(&end.into());
                }
            }
            ToHeir::Counters(all) => {
                let elsewhere = lock(&self.elsewhere);
                for (id, up, down, last_ms) in all {
                    if let Some(session) = elsewhere.get(&id) {
                        set_counts(&session.held.session().counters, up, down, last_ms);
                    }
                }
            }
            ToHeir::Opened(state) => {
                let held = adopt(gate, *state);
                let session = held.session().clone();
                gate.registry.insert(session.clone());
                opened_here(gate, &session);
                self.add(elder, held);
                if let Some(reason) = gate.no_longer_welcome(&session) {
                    gate.close(session.id, reason);
                }
            }
            ToHeir::Moved => {
                lock(&elder.reserved).clear();
                elder.moved.store(true, Ordering::Release);
            }
            ToHeir::Offer { .. } | ToHeir::State(_) | ToHeir::Elder { .. } | ToHeir::Yours => {}
        }
    }

    /// A flow came: its session lives here from now on.
    fn arrived(
        &self,
        gate: &Arc<Gate>,
        elder: &Elder,
        flow: FlowMessage,
        bytes: Vec<u8>,
        files: Vec<OwnedFd>,
    ) {
        // Whoever closes it finds it here or in the engine.
        let mut elsewhere = lock(&self.elsewhere);
        let id = flow.id;
        // Before a byte of it moves: where this cannot be said, the other process goes on with it.
        if let Err(error) = elder.channel.send(&ToElder::Arrived { id }, &[], &[]) {
            tracing::error!(%error, session = id, "a console came from a process that does not listen");
            return;
        }
        let Some(session) = elsewhere.remove(&id) else {
            tracing::error!(session = id, "a console came that nobody knows; it is closed");
            return;
        };
        flow.begin(gate, session.held, bytes, files);
        if let Some(reason) = session.close {
            gate.engines.close(id, reason);
        }
    }

    /// The elder is gone: what it still held is over.
    fn bury(&self, gate: &Arc<Gate>, elder: &Arc<Elder>) {
        lock(&elder.reserved).clear();
        elder.moved.store(true, Ordering::Release);
        let mut elsewhere = lock(&self.elsewhere);
        let gone: Vec<u64> =
            elsewhere.iter().filter(|(_, s)| Arc::ptr_eq(&s.elder, elder)).map(|(id, _)| *id).collect();
        let gone: Vec<_> = gone.iter().filter_map(|id| elsewhere.remove(id)).collect();
        drop(elsewhere);
        if !gone.is_empty() {
            tracing::error!(sessions = gone.len(), "an older process ended with consoles open");
        }
        for session in gone {
            let end = lost_end(session.held.session());
            session.held.end(&end);
        }
        lock(&gate.succession.elders.all).retain(|other| !Arc::ptr_eq(other, elder));
    }
}

/// A session of another process with slots of this one.
pub(super) fn adopt(gate: &Arc<Gate>, state: SessionState) -> Held {
    let session = Arc::new(state.into_session(gate.engines.epoch()));
    let slots = (
        gate.sources.adopt(),
        gate.tickets.adopt(&session.jti),
        gate.tenants.adopt(&session.tenant, &session.user),
    );
    Held::new(gate.clone(), session, slots)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
