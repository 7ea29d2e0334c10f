//! The process that takes over, as seen from the one that goes: told of every console that begins or ends here meanwhile.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use super::channel::Channel;
use super::message::{FlowMessage, SessionState, ToElder, ToHeir, counts};
use super::transit::Transit;
use crate::flow::{Flow, FlowEnd};
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
    transit: Transit,
}

enum Stage {
    /// It may still fail: what happens is kept, and done here if it does.
    Trying(Vec<Event>),
    /// It is in charge.
    Sure(mpsc::Sender<Event>),
    /// It failed, or its socket broke; this process does the accounts it still has to do.
    Lost,
}

enum Event {
    Opened(Arc<Session>),
    Ended(Account, FlowEnd),
    /// A flow that moves: its bytes, and copies of its sockets. It is among those in transit itself.
    Flow(ToHeir, Vec<u8>, Vec<OwnedFd>),
    Tell(ToHeir),
}

impl Heir {
    pub(super) fn new(channel: Arc<Channel>) -> Self {
        Self {
            channel,
            stage: Mutex::new(Stage::Trying(Vec::new())),
            gone: AtomicBool::new(false),
            transit: Transit::default(),
        }
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

    /// Moves these flows and waits until the other process has them. What cannot move goes on here; returns whether there
    /// was anything of that kind.
    pub(super) fn move_flows(&self, gate: &Gate, flows: impl Iterator<Item = Flow>) -> bool {
        let mut stayed = false;
        for flow in flows {
            match FlowMessage::pack(&flow, gate.engines.epoch()) {
                Ok((message, bytes, files)) => {
                    self.transit.put(flow);
                    // Where it is refused, nobody listens any more.
                    drop(self.take(Event::Flow(ToHeir::Flow(message), bytes, files)));
                }
                Err(error) => {
                    tracing::warn!(%error, session = flow.id, "a console stays in this process");
                    gate.engines.take_back(flow);
                    stayed = true;
                }
            }
        }
        if !self.transit.wait(PATIENCE) {
            tracing::error!("the process that took over does not answer");
            self.lose();
            self.channel.shut_down();
            // The thread that hears it has only to look.
            self.transit.wait(PATIENCE);
        }
        let back = self.transit.take_back(&gate.engines);
        if back > 0 {
            tracing::warn!(consoles = back, "consoles that were on their way go on in this process");
        }
        stayed || back > 0
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
            Event::Flow(message, bytes, files) => self.patiently(message, bytes, files),
            Event::Tell(message) => self.patiently(message, &[], &[]),
        };
        if let Err(error) = sent {
            if self.lose() {
                tracing::error!(%error, "the process that took over is gone; what stayed here is accounted here");
            }
            event.here(gate);
        }
    }

    fn patiently(&self, message: &ToHeir, bytes: &[u8], files: &[OwnedFd]) -> io::Result<()> {
        let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        self.channel.send(message, bytes, &files)
    }

    /// Nothing can be told to it any more. Whether this is news.
    fn lose(&self) -> bool {
        let news = !self.gone.swap(true, Ordering::AcqRel);
        if news {
            *self.stage() = Stage::Lost;
        }
        news
    }

    /// What it says: which flows have arrived, and the end of consoles that stayed here.
    fn read(&self, gate: &Gate) {
        while !self.is_gone() {
            match self.channel.receive::<ToElder>() {
                Ok(Some(message)) => self.obey(gate, &message.head),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(None) | Err(_) => break,
            }
        }
        self.lose();
        // From here on it cannot say that a flow arrived; what it said before is still to be read.
        self.channel.shut_down();
        while let Ok(Some(message)) = self.channel.receive::<ToElder>() {
            self.obey(gate, &message.head);
        }
        self.transit.fall_silent();
    }

    fn obey(&self, gate: &Gate, word: &ToElder) {
        match *word {
            ToElder::Close { id, reason } => gate.engines.close(id, reason),
            ToElder::Arrived { id } => self.transit.arrived(id),
            ToElder::Hello { .. } | ToElder::Failed { .. } | ToElder::Prepared | ToElder::Took => {}
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
            Self::Flow(..) | Self::Tell(_) => {}
        }
    }
}

/// How a session ends whose process is gone.
pub(super) fn lost_end(session: &Session) -> FlowEnd {
    let (up, down, _) = counts(&session.counters);
    FlowEnd { reason: CloseReason::Internal, up, down, rtt_us: [None, None] }
}
