//! What happened on a host, in order, to be awaited by a test.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Events kept for readers that have not come yet; older ones are forgotten.
const KEPT: usize = 65_536;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Number of the connection, from 1 in the order of their acceptance.
    pub conn: u64,
    /// What happened to it.
    pub kind: EventKind,
}

/// What happened to a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// TCP was accepted.
    Accepted {
        /// Where it came from.
        peer: SocketAddr,
    },
    /// TLS no. 1 stands.
    Tls1,
    /// `230` was sent.
    LoggedIn {
        /// The ticket.
        ticket: String,
    },
    /// A refusal was sent.
    Refused {
        /// The reply line.
        reply: String,
    },
    /// `200 Connect` was sent.
    Connected {
        /// The machine.
        vm: String,
    },
    /// TLS no. 2 stands and the nonce was right; or the raw stream was given to the screen.
    ScreenOpen {
        /// The machine.
        vm: String,
    },
    /// It is over; always the last event of a connection.
    Closed {
        /// How.
        how: Closed,
        /// Bytes the screen received, TLS taken off.
        received: u64,
        /// Bytes the screen sent, TLS taken off.
        sent: u64,
    },
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Closed {
    /// The client left (FIN or `close_notify`).
    Client,
    /// The client's RST, or a write to a client that was gone.
    ClientReset,
    /// This host ended it in the ordinary way.
    Host,
    /// A configured fault.
    Fault,
    /// [`Esxi::cut`](super::Esxi::cut) or the end of the host.
    Cut,
    /// Something was wrong: what the client sent, or the screen behind.
    Error(String),
}

#[derive(Default)]
struct Log {
    first: u64,
    events: VecDeque<Event>,
}

#[derive(Default)]
pub(super) struct Journal {
    log: Mutex<Log>,
    woken: Condvar,
    notify: Notify,
}

impl Journal {
    pub(super) fn record(&self, conn: u64, kind: EventKind) {
        let mut log = self.lock();
        log.events.push_back(Event { conn, kind });
        if log.events.len() > KEPT {
            log.events.pop_front();
            log.first += 1;
        }
        drop(log);
        self.woken.notify_all();
        self.notify.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reader of the events, from the host's start; each reader has its own place.
#[derive(Clone)]
pub struct Events {
    journal: Arc<Journal>,
    next: u64,
}

impl Events {
    pub(super) fn new(journal: Arc<Journal>) -> Self {
        Self { journal, next: 0 }
    }

    /// The first unread event that `wanted` accepts; those before it are read over. `None` when `within` passed.
    pub async fn wait(&mut self, within: Duration, wanted: impl Fn(&Event) -> bool) -> Option<Event> {
        let journal = self.journal.clone();
        let search = async {
            loop {
                // Registered before looking, or an event between the two would be slept through.
                let notified = journal.notify.notified();
                if let Some(event) = self.find(&wanted) {
                    return event;
                }
                notified.await;
            }
        };
        tokio::time::timeout(within, search).await.ok()
    }

    /// [`wait`](Self::wait) for a thread without a runtime.
    pub fn wait_blocking(&mut self, within: Duration, wanted: impl Fn(&Event) -> bool) -> Option<Event> {
        let journal = self.journal.clone();
        let deadline = Instant::now() + within;
        let mut log = journal.lock();
        loop {
            if let Some(event) = take(&mut self.next, &log, &wanted) {
                return Some(event);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            log = journal.woken.wait_timeout(log, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The next end of a connection: its number and how it ended.
    pub async fn closed(&mut self, within: Duration) -> Option<(u64, Closed)> {
        let event = self.wait(within, |event| matches!(event.kind, EventKind::Closed { .. })).await?;
        match event.kind {
            EventKind::Closed { how, .. } => Some((event.conn, how)),
            _ => None,
        }
    }

    /// Everything unread, without waiting.
    pub fn drain(&mut self) -> Vec<Event> {
        let log = self.journal.lock();
        let skip = self.next.saturating_sub(log.first) as usize;
        self.next = log.first + log.events.len() as u64;
        log.events.iter().skip(skip).cloned().collect()
    }

    fn find(&mut self, wanted: &impl Fn(&Event) -> bool) -> Option<Event> {
        take(&mut self.next, &self.journal.lock(), wanted)
    }
}

fn take(next: &mut u64, log: &Log, wanted: &impl Fn(&Event) -> bool) -> Option<Event> {
    let skip = next.saturating_sub(log.first) as usize;
    let found = log.events.iter().enumerate().skip(skip).find(|(_, event)| wanted(event));
    *next = log.first + found.map_or(log.events.len(), |(at, _)| at + 1) as u64;
    found.map(|(_, event)| event.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connected(vm: &str) -> EventKind {
        EventKind::Connected { vm: vm.to_owned() }
    }

    #[test]
    fn a_reader_reads_over_what_it_does_not_want_and_never_twice() {
        let journal = Arc::new(Journal::default());
        for (conn, vm) in [(1, "a"), (2, "b"), (3, "a")] {
            journal.record(conn, connected(vm));
        }
        let mut events = Events::new(journal.clone());
        let mut other = events.clone();
        let is_a = |event: &Event| event.kind == connected("a");
        assert_eq!(events.wait_blocking(Duration::ZERO, is_a).unwrap().conn, 1);
        assert_eq!(events.wait_blocking(Duration::ZERO, is_a).unwrap().conn, 3);
        assert_eq!(events.wait_blocking(Duration::ZERO, is_a), None);
        journal.record(4, connected("a"));
        assert_eq!(events.wait_blocking(Duration::ZERO, is_a).unwrap().conn, 4);
        assert_eq!(other.drain().len(), 4);
        assert!(other.drain().is_empty());
    }

    #[test]
    fn old_events_are_forgotten_not_piled_up() {
        let journal = Arc::new(Journal::default());
        for conn in 0..KEPT as u64 + 10 {
            journal.record(conn, EventKind::Tls1);
        }
        let mut events = Events::new(journal);
        assert_eq!(events.wait_blocking(Duration::ZERO, |_| true).unwrap().conn, 10);
        assert_eq!(events.drain().len(), KEPT - 1);
    }
}
