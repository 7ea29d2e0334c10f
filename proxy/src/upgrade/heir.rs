//! The process that takes over, as seen from the one that goes: told of every console that begins or ends here meanwhile.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use super::channel::Channel;
use super::message::{SessionState, ToElder, ToHeir, counts};
use crate::flow::FlowEnd;
use crate::gate::Gate;
use crate::session::{Account, CloseReason, Session, opened_here};

/// How often the heir hears how many bytes went through what stays here.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// How long a look for its words may take, and so how late an end of this process may be noticed.
const LISTEN: Duration = Duration::from_millis(200);
/// How long it may leave its socket full.
const PATIENCE: Duration = Duration::from_secs(30);

/// The process that takes over.
pub(crate) struct Heir {
    channel: Arc<Channel>,
    stage: Mutex<Stage>,
    gone: AtomicBool,
}

enum Stage {
    /// It may still fail: what happens is kept, and done here if it does.
    Trying(Vec<Event>),
    /// It is in charge.
    Sure(mpsc::Sender<Event>),
    /// It failed, or its socket broke; this process does the accounts it still has to do.
    Lost,
}

/// Who accounts for a flow.
pub(super) type OnClose = Box<dyn FnOnce(FlowEnd) + Send>;

/// The end of a flow that left its engine and did not arrive.
pub(super) const NOT_MOVED: FlowEnd =
    FlowEnd { reason: CloseReason::Internal, up: 0, down: 0, rtt_us: [None, None] };

enum Event {
    Opened(Arc<Session>),
    Ended(Account, FlowEnd),
    /// A flow that moves, and who accounts for it if it cannot.
    Flow(ToHeir, Vec<u8>, Vec<OwnedFd>, OnClose),
    Tell(ToHeir),
}

impl Heir {
    pub(super) fn new(channel: Arc<Channel>) -> Self {
        Self { channel, stage: Mutex::new(Stage::Trying(Vec::new())), gone: AtomicBool::new(false) }
    }

    /// A console whose client was on his way when the state was written.
    pub(crate) fn opened(&self, gate: &Gate, session: &Arc<Session>) {
        if let Some(Event::Opened(session)) = self.take(Event::Opened(session.clone())) {
            opened_here(gate, &session);
        }
    }

    /// A console of this process is over.
    pub(crate) fn ended(&self, account: Account, end: &FlowEnd) {
        if let Some(Event::Ended(account, end)) = self.take(Event::Ended(account, *end)) {
            account.settle(&end);
        }
    }

    /// Sends a flow; if that fails, `on_close` is told.
    pub(super) fn send_flow(&self, flow: ToHeir, bytes: Vec<u8>, files: Vec<OwnedFd>, on_close: OnClose) {
        if let Some(Event::Flow(.., on_close)) = self.take(Event::Flow(flow, bytes, files, on_close)) {
            on_close(NOT_MOVED);
        }
    }

    /// Says something.
    pub(super) fn tell(&self, message: ToHeir) {
        drop(self.take(Event::Tell(message)));
    }

    /// Whether it can no longer be told anything.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Gives the event back if it is this process's own business.
    fn take(&self, event: Event) -> Option<Event> {
        match &mut *self.stage() {
            Stage::Trying(kept) => kept.push(event),
            Stage::Sure(queue) => return queue.send(event).err().map(|refused| refused.0),
            Stage::Lost => return Some(event),
        }
        None
    }

    /// It failed: what was kept is done here after all. The caller has taken it out of the gate already.
    pub(super) fn give_up(&self, gate: &Gate) {
        let Stage::Trying(kept) = std::mem::replace(&mut *self.stage(), Stage::Lost) else { return };
        kept.into_iter().for_each(|event| event.here(gate));
    }

    /// It is in charge: what was kept is sent, and everything from now on. Ends when [`Heir::finish`] is called or its
    /// socket breaks.
    pub(super) fn follow(self: &Arc<Self>, gate: &Arc<Gate>) -> io::Result<Vec<JoinHandle<()>>> {
        self.channel.set_patience(LISTEN, PATIENCE)?;
        let (queue, events) = mpsc::channel();
        let (heir, of) = (self.clone(), gate.clone());
        let writer =
            std::thread::Builder::new().name("heir-tell".into()).spawn(move || heir.write(&of, &events))?;
        let (heir, of) = (self.clone(), gate.clone());
        let reader = std::thread::Builder::new().name("heir-hear".into()).spawn(move || heir.read(&of))?;
        let mut stage = self.stage();
        if let Stage::Trying(kept) = std::mem::replace(&mut *stage, Stage::Sure(queue.clone())) {
            for event in kept {
                // The writer lives as long as this queue.
                let _ = queue.send(event);
            }
        }
        Ok(vec![writer, reader])
    }

    /// Nothing more is to be told; the threads end with what was.
    pub(super) fn finish(&self) {
        *self.stage() = Stage::Lost;
    }

    fn write(&self, gate: &Arc<Gate>, events: &mpsc::Receiver<Event>) {
        loop {
            match events.recv_timeout(TELL_EVERY) {
                Ok(event) => self.send(gate, event),
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    let all = gate.registry.list();
                    let all = all.iter().map(|session| {
                        let (up, down, last) = counts(&session.counters);
                        (session.id, up, down, last)
                    });
                    self.send(gate, Event::Tell(ToHeir::Counters(all.collect())));
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
        }
        self.gone.store(true, Ordering::Release);
    }

    fn send(&self, gate: &Arc<Gate>, event: Event) {
        let epoch = gate.engines.epoch();
        let sent = match &event {
            _ if self.is_gone() => Err(io::ErrorKind::BrokenPipe.into()),
            Event::Opened(session) => {
                self.patiently(&ToHeir::Opened(Box::new(SessionState::new(session, epoch))), &[], &[])
            }
            Event::Ended(account, end) => {
                self.patiently(&ToHeir::Ended { id: account.session().id, end: (*end).into() }, &[], &[])
            }
            Event::Flow(message, bytes, files, _) => self.patiently(message, bytes, files),
            Event::Tell(message) => self.patiently(message, &[], &[]),
        };
        if let Err(error) = sent {
            if !self.gone.swap(true, Ordering::AcqRel) {
                tracing::error!(%error, "the process that took over is gone; what stayed here is accounted here");
                *self.stage() = Stage::Lost;
            }
            event.here(gate);
        }
    }

    fn patiently(&self, message: &ToHeir, bytes: &[u8], files: &[OwnedFd]) -> io::Result<()> {
        let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        self.channel.send(message, bytes, &files)
    }

    /// What it asks for: the end of consoles that stayed here.
    fn read(&self, gate: &Arc<Gate>) {
        while !self.is_gone() {
            match self.channel.receive::<ToElder>() {
                Ok(Some(message)) => {
                    if let ToElder::Close { id, reason } = message.head {
                        gate.engines.close(id, reason);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(None) | Err(_) => {
                    if !self.gone.swap(true, Ordering::AcqRel) {
                        *self.stage() = Stage::Lost;
                    }
                    return;
                }
            }
        }
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Event {
    /// Does it in this process.
    fn here(self, gate: &Gate) {
        match self {
            Self::Opened(session) => opened_here(gate, &session),
            Self::Ended(account, end) => account.settle(&end),
            // Its sockets close with the message.
            Self::Flow(.., on_close) => on_close(NOT_MOVED),
            Self::Tell(_) => {}
        }
    }
}

/// How a session ends whose process is gone.
pub(super) fn lost_end(session: &Session) -> FlowEnd {
    let (up, down, _) = counts(&session.counters);
    FlowEnd { reason: CloseReason::Internal, up, down, rtt_us: [None, None] }
}
