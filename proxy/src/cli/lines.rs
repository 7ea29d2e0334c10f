//! The log's lines on their way to the standard error: at once while they are few, several with one write(2) where they come
//! close together. Two lines for each console would else be two system calls for each console.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// How long lines of a busy appliance are gathered. A process that is killed loses the lines of so long.
const GATHER: Duration = Duration::from_millis(10);
/// Lines within [`GATHER`] that are written at once.
const AT_ONCE: usize = 8;
/// Bytes that are written without waiting for more.
const MOST: usize = 64 * 1024;

/// Where lines go.
#[derive(Clone)]
pub(super) struct Lines {
    shared: Arc<Mutex<Waiting>>,
    /// The thread that writes what nothing followed; `None`: everything is written at once.
    writer: Option<Thread>,
}

struct Waiting {
    to: Box<dyn Write + Send>,
    bytes: Vec<u8>,
    since: Instant,
    lines: usize,
}

impl Lines {
    /// Writes to the standard error.
    pub(super) fn to_stderr() -> Self {
        Self::new(Box::new(io::stderr()))
    }

    fn new(to: Box<dyn Write + Send>) -> Self {
        let waiting = Waiting { to, bytes: Vec::new(), since: Instant::now(), lines: 0 };
        let shared = Arc::new(Mutex::new(waiting));
        let writer = thread::Builder::new().name("log".into()).spawn({
            let shared = Arc::clone(&shared);
            move || {
                loop {
                    thread::park();
                    thread::sleep(GATHER);
                    lock(&shared).write();
                }
            }
        });
        Self { shared, writer: writer.ok().map(|writer| writer.thread().clone()) }
    }

    fn take(&self, line: &[u8], urgent: bool, now: Instant) {
        let mut waiting = lock(&self.shared);
        let first = waiting.bytes.is_empty();
        waiting.bytes.extend_from_slice(line);
        if waiting.pace(now) || urgent || waiting.bytes.len() >= MOST {
            waiting.write();
            return;
        }
        drop(waiting);
        match &self.writer {
            Some(writer) if first => writer.unpark(),
            Some(_) => {}
            None => lock(&self.shared).write(),
        }
    }
}

/// Nothing panics while it is locked; were it so, the lines are still lines.
fn lock(shared: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Waiting {
    /// Counts a line; whether it is one of few.
    fn pace(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) >= GATHER {
            (self.since, self.lines) = (now, 0);
        }
        self.lines += 1;
        self.lines <= AT_ONCE
    }

    fn write(&mut self) {
        // Nobody is left to tell that the log cannot be written.
        let _ = self.to.write_all(&self.bytes);
        self.bytes.clear();
        self.bytes.shrink_to(MOST);
    }
}

/// Writes what waits when the service ends.
pub(super) struct Flush(pub(super) Lines);

impl Drop for Flush {
    fn drop(&mut self) {
        lock(&self.0.shared).write();
    }
}

/// One event's line.
pub(super) struct Line<'a> {
    lines: &'a Lines,
    urgent: bool,
}

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.lines.take(line, self.urgent, Instant::now());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        Line { lines: self, urgent: true }
    }

    /// Warnings and errors may be the last that this process says.
    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Self::Writer {
        Line { lines: self, urgent: *meta.level() <= Level::WARN }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    struct Pipe(Sender<Vec<u8>>);

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines() -> (Lines, Receiver<Vec<u8>>) {
        let (to, written) = channel();
        (Lines::new(Box::new(Pipe(to))), written)
    }

    #[test]
    fn few_lines_are_written_at_once_each() {
        let (lines, written) = lines();
        let now = Instant::now();
        for n in 0..AT_ONCE {
            lines.take(format!("{n}\n").as_bytes(), false, now);
            assert_eq!(written.try_recv(), Ok(format!("{n}\n").into_bytes()));
        }
    }

    #[test]
    fn many_lines_are_written_together_in_their_order_without_being_asked_for() {
        let (lines, written) = lines();
        let now = Instant::now();
        let all: Vec<String> = (0..1000).map(|n| format!("{n}\n")).collect();
        all.iter().for_each(|line| lines.take(line.as_bytes(), false, now));
        let (mut got, mut writes) = (Vec::new(), 0);
        while got.len() < all.concat().len() {
            got.extend(written.recv_timeout(Duration::from_secs(20)).expect("the rest of the lines"));
            writes += 1;
        }
        assert_eq!(String::from_utf8(got).unwrap(), all.concat());
        assert!(writes < all.len() / 2, "{writes} writes of {} lines", all.len());
    }

    #[test]
    fn a_warning_waits_for_nobody_and_takes_along_what_waited() {
        let (lines, written) = lines();
        let now = Instant::now();
        (0..AT_ONCE).for_each(|_| lines.take(b"x", false, now));
        assert_eq!(written.try_iter().count(), AT_ONCE);
        lines.take(b"info\n", false, now);
        lines.take(b"warning\n", true, now);
        let all: Vec<u8> = written.try_iter().flatten().collect();
        assert_eq!(all, b"info\nwarning\n");
    }

    #[test]
    fn the_last_lines_are_written_at_the_end() {
        let (lines, written) = lines();
        let now = Instant::now();
        (0..AT_ONCE + 3).for_each(|_| lines.take(b"x", false, now));
        drop(Flush(lines));
        assert_eq!(written.try_iter().flatten().count(), AT_ONCE + 3);
    }
}
