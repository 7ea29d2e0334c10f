//! Who was on which console, from where, for how long: one JSON line per open, close and refusal, to a file, the journal, or both.
//!
//! Whoever reports never waits: records go through a bounded queue to a thread that writes them. When the disk is full, the path
//! is unwritable or the journal is gone, consoles go on; what is lost is counted, exported and said in the log.

mod record;
mod sink;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};
use std::{io, mem};

use record::{Event, Record};
use sink::{FileSink, JournalSink};

use crate::flow::FlowEnd;
use crate::metrics::{Door, Samples};
use crate::session::Session;
use crate::xdp::DropEvent;

/// Records that wait for the writer; more are lost and counted.
const QUEUE: usize = 8192;
/// Records written with one write(2).
const BATCH: usize = 256;
/// How long the writer of a busy appliance gathers: woken for each record, it would cost two switches of threads per console.
const GATHER: Duration = Duration::from_millis(10);
/// Records within [`GATHER`] that make it busy; up to so many are written at once.
const BUSY: usize = 8;
/// Refusals recorded each second; a flood of bad clients must not fill the disk. The next record tells how many were left out.
const REFUSALS_PER_SECOND: u32 = 50;
/// systemd-journald's native socket (systemd.io/JOURNAL_NATIVE_PROTOCOL).
const JOURNAL: &str = "/run/systemd/journal/socket";

/// The audit trail.
pub struct Audit {
    queue: Option<SyncSender<Message>>,
    writer: Option<JoinHandle<()>>,
    counters: Arc<Counters>,
    refusals: Mutex<Window>,
}

/// A connection that did not become a console, as far as it got.
#[derive(Clone, Copy, Debug)]
pub struct Refusal<'a> {
    /// Where it came in.
    pub door: Door,
    /// Who it is, after the PROXY protocol.
    pub source: SocketAddr,
    /// The tenant of the ticket; "" before one was open.
    pub tenant: &'a str,
    /// The person of the ticket; "" before one was open.
    pub user: &'a str,
    /// The ticket's own name; "" before one was open.
    pub jti: &'a str,
    /// One of a closed list; the same as in the metrics.
    pub reason: &'static str,
}

enum Message {
    Record(Box<Record>),
    Reopen,
    Flush(SyncSender<()>),
}

#[derive(Default)]
struct Counters {
    written: AtomicU64,
    queue_full: AtomicU64,
    file: AtomicU64,
    journal: AtomicU64,
    suppressed: AtomicU64,
    /// Asked for by [`Audit::reopen`]; a flag as well as a message, since the queue may be full.
    reopen: AtomicBool,
}

/// Refusals of the current second.
#[derive(Default)]
struct Window {
    began: Option<Instant>,
    recorded: u32,
    suppressed: u64,
}

impl Audit {
    /// Starts the writer. An unwritable file is no error: it is said in the log, tried again, and its losses are counted.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn open(file: Option<&Path>, journal: bool) -> io::Result<Arc<Self>> {
        Self::start(file, journal.then_some(Path::new(JOURNAL)))
    }

    /// Like [`Audit::open`] with another journal socket.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn start(file: Option<&Path>, journal: Option<&Path>) -> io::Result<Arc<Self>> {
        let counters = Arc::new(Counters::default());
        let (queue, messages) = mpsc::sync_channel(QUEUE);
        let (file, journal) = (file.map(PathBuf::from), journal.map(PathBuf::from));
        let writer = thread::Builder::new().name("audit".into()).spawn({
            let counters = counters.clone();
            move || write_all(&messages, file.map(FileSink::new), journal.map(JournalSink::new), &counters)
        })?;
        Ok(Arc::new(Self { queue: Some(queue), writer: Some(writer), counters, refusals: Mutex::default() }))
    }

    /// A console was handed over.
    pub fn opened(&self, session: &Arc<Session>) {
        self.record(Event::Open(session.clone()));
    }

    /// A console ended.
    pub fn closed(&self, session: &Arc<Session>, end: &FlowEnd) {
        self.record(Event::Close(session.clone(), *end, session.since.elapsed()));
    }

    /// A connection was refused at `now`. At most so many are recorded each second; the next record says how many were left out.
    pub fn refused(&self, refusal: &Refusal<'_>, now: Instant) {
        let mut window = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        match window.take(now) {
            Some(left_out) => self.record(Event::refused(refusal, left_out)),
            None => {
                self.counters.suppressed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// The XDP gate shed a SYN; it samples them, so this is not every one.
    pub fn shed(&self, dropped: &DropEvent) {
        self.record(Event::Shed(dropped.clone()));
    }

    /// Closes the file and opens its path again: after log rotation.
    pub fn reopen(&self) {
        self.counters.reopen.store(true, Ordering::Release);
        self.send(Message::Reopen);
        self.hurry();
    }

    /// Waits until everything recorded so far was written or lost; false if that took longer.
    pub fn flush(&self, longest: Duration) -> bool {
        let (done, wait) = mpsc::sync_channel(1);
        let until = Instant::now() + longest;
        while !self.send(Message::Flush(done.clone())) {
            if Instant::now() >= until {
                return false;
            }
            thread::yield_now();
        }
        self.hurry();
        wait.recv_timeout(until.saturating_duration_since(Instant::now())).is_ok()
    }

    /// Records that were lost so far, whatever the cause.
    pub fn lost(&self) -> u64 {
        let c = &self.counters;
        [&c.queue_full, &c.file, &c.journal].iter().map(|n| n.load(Ordering::Relaxed)).sum()
    }

    /// A source of the metrics.
    pub fn sample(&self, out: &mut Samples) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let c = &self.counters;
        out.counter("mksgate_audit_records", "Audit records written", &[], load(&c.written));
        for (cause, count) in [("queue_full", &c.queue_full), ("file", &c.file), ("journal", &c.journal)] {
            out.counter("mksgate_audit_lost", "Audit records lost", &[("cause", cause)], load(count));
        }
        let help = "Refusals left out of the audit trail by its rate limit";
        out.counter("mksgate_audit_suppressed", help, &[], load(&c.suppressed));
    }

    fn record(&self, event: Event) {
        let record = Record { at: SystemTime::now(), event };
        if !self.send(Message::Record(Box::new(record))) {
            self.counters.queue_full.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The writer gathers no longer.
    fn hurry(&self) {
        if let Some(writer) = &self.writer {
            writer.thread().unpark();
        }
    }

    fn send(&self, message: Message) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.try_send(message).is_ok())
    }
}

impl Drop for Audit {
    /// Writes what is queued.
    fn drop(&mut self) {
        drop(self.queue.take());
        self.hurry();
        if let Some(writer) = self.writer.take() {
            // It ends once the queue is empty; if it panicked there is nothing left to write with.
            let _ = writer.join();
        }
    }
}

impl Window {
    /// How many were left out since the last record, if one may be recorded now.
    fn take(&mut self, now: Instant) -> Option<u64> {
        if self.began.is_none_or(|began| now.saturating_duration_since(began) >= Duration::from_secs(1)) {
            (self.began, self.recorded) = (Some(now), 0);
        }
        if self.recorded < REFUSALS_PER_SECOND {
            self.recorded += 1;
            Some(mem::take(&mut self.suppressed))
        } else {
            self.suppressed += 1;
            None
        }
    }
}

/// How much was written lately.
struct Pace {
    since: Instant,
    records: usize,
}

impl Pace {
    /// Rests after a batch, where records come close together. [`Audit::hurry`] ends the rest.
    fn rest(&mut self, written: usize) {
        let now = Instant::now();
        if now.duration_since(self.since) >= GATHER {
            (self.since, self.records) = (now, 0);
        }
        self.records += written;
        if self.records > BUSY {
            thread::park_timeout(GATHER);
        }
    }
}

/// The writer thread: until every sender is gone and the queue is empty.
fn write_all(
    messages: &Receiver<Message>,
    mut file: Option<FileSink>,
    mut journal: Option<JournalSink>,
    counters: &Counters,
) {
    if let Some(file) = &mut file {
        file.reopen();
    }
    let mut batch: Vec<(String, Box<Record>)> = Vec::with_capacity(BATCH);
    let mut pace = Pace { since: Instant::now(), records: 0 };
    while let Ok(first) = messages.recv() {
        let mut flushes = Vec::new();
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Record(record) => batch.push((record.line(), record)),
                Message::Reopen => {}
                Message::Flush(done) => flushes.push(done),
            }
            next = if batch.len() < BATCH { messages.try_recv().ok() } else { None };
        }
        if counters.reopen.swap(false, Ordering::Acquire)
            && let Some(file) = &mut file
        {
            file.reopen();
        }
        let mut written = batch.len();
        if let Some(file) = &mut file {
            let lost = file.write(&batch);
            counters.file.fetch_add(lost as u64, Ordering::Relaxed);
            written -= lost;
        }
        if let Some(journal) = &mut journal {
            let lost = journal.write(&batch);
            counters.journal.fetch_add(lost as u64, Ordering::Relaxed);
            written = written.min(batch.len() - lost);
        }
        counters.written.fetch_add(written as u64, Ordering::Relaxed);
        let records = batch.len();
        batch.clear();
        let waited_for = !flushes.is_empty();
        for done in flushes {
            let _ = done.try_send(());
        }
        // A full batch left others behind, and somebody who waits may ask again.
        if records < BATCH && !waited_for {
            pace.rest(records);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_leaves_a_bounded_number_of_records_and_their_count() {
        let mut window = Window::default();
        let start = Instant::now();
        let recorded = (0..1000).filter(|_| window.take(start).is_some()).count();
        assert_eq!(recorded, REFUSALS_PER_SECOND as usize);
        assert_eq!(window.take(start + Duration::from_secs(1)), Some(1000 - u64::from(REFUSALS_PER_SECOND)));
        assert_eq!(window.take(start + Duration::from_secs(1)), Some(0));
    }
}
