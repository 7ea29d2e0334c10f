//! Which tickets were used and revoked, in a file: what a restart and a crash find again.
//!
//! Each first use is one write(2) of one line, done before anybody is let in with it; a revocation likewise. It reaches the
//! page cache, which outlives the process; nothing waits for a disk. After the machine has gone down, tickets minted before it
//! came up are refused unless the file knows them. What is known is written anew to a second file, by a thread of its own and a
//! few lines at a time, when the first has grown to twice of that; then it takes the first one's name.
//!
//! What cannot be written is counted, said and made up for once it can. What cannot be read counts as used: where a line is
//! broken, tickets minted before the start open only if the rest of the file knows them.

mod file;
mod record;
mod replay;
mod scribe;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};
use thiserror::Error;

pub(super) use record::Record;
pub use record::line;
pub use replay::{Replayed, replay, write};
pub(super) use scribe::{begin, run};

use crate::metrics::Samples;
use crate::trouble::Trouble;

/// A journal below this is not written anew: some 4000 uses.
const FLOOR: u64 = 1 << 20;

/// What to do about an error of the system.
const REMEDY: &str = "make the path writable and give it space";

/// How a process begins.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// Now.
    pub now: SystemTime,
    /// When the machine came up.
    pub booted: SystemTime,
    /// The process before it has given it everything.
    pub heir: bool,
}

impl Start {
    /// As the clocks say.
    pub fn of_this_process(heir: bool) -> Self {
        let now = SystemTime::now();
        // The clock is there since Linux 2.6.39; without it nothing counts as of another boot.
        let up = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::MAX, Duration::from);
        Self { now, booted: now.checked_sub(up).unwrap_or(SystemTime::UNIX_EPOCH), heir }
    }
}

/// Why a process does not begin.
#[derive(Debug, Error)]
pub enum JournalError {
    /// Two gates that know nothing of each other would let a ticket be used twice.
    #[error("{} is held by another mksgate (`fuser -v` on it shows which); stop that one, or name another file in tickets.journal", .0.display())]
    Held(PathBuf),
    /// The thread.
    #[error("the thread of the ticket journal cannot be started: {0}")]
    Thread(#[from] io::Error),
}

/// What would keep a process of this user from using the file, without touching it.
pub fn examine(path: &Path) -> Result<(), String> {
    match file::examine(path) {
        Ok(()) => Ok(()),
        // Not made yet.
        Err(error) if error.is_absence() && path.parent().is_some_and(Path::is_dir) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// The journal of a running process.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    /// `None`: it cannot be opened.
    file: Option<File>,
    len: u64,
    /// What it was when it was written anew.
    base: u64,
    /// Is being written anew: gets what is new, too. Whoever takes it out removes its name.
    next: Option<(File, PathBuf)>,
    /// It lacks something.
    behind: bool,
    /// It is not to be written anew.
    still: bool,
    /// The thread was told that there is something to do.
    called: bool,
    written: u64,
    lost: u64,
    trouble: Trouble,
    line: Vec<u8>,
}

impl Journal {
    fn new(path: &Path) -> Self {
        Self {
            path: path.into(),
            file: None,
            len: 0,
            base: 0,
            next: None,
            behind: true,
            still: false,
            called: false,
            written: 0,
            lost: 0,
            trouble: Trouble::default(),
            line: Vec::with_capacity(512),
        }
    }

    /// Writes a line, or counts that it could not.
    pub(super) fn append(&mut self, record: &Record<'_>) {
        self.line.clear();
        if !record.encode(&mut self.line) {
            return;
        }
        if self.next.as_ref().is_some_and(|(next, _)| file::append(next, &self.line).is_err()) {
            self.give_up();
        }
        let Some(file) = &self.file else { return self.lose(None) };
        match file::append(file, &self.line) {
            Ok(()) => {
                self.len += self.line.len() as u64;
                self.written += 1;
            }
            Err(error) => {
                file::mark(file);
                if file.set_len(self.len).is_err() {
                    // It ends within a line, and another one must not follow.
                    self.file = None;
                }
                self.lose(Some(&error));
            }
        }
    }

    /// The second file will not take the first one's place.
    fn give_up(&mut self) {
        if let Some((_, name)) = self.next.take() {
            // What stays is removed before it is made again.
            let _ = fs::remove_file(name);
        }
    }

    fn lose(&mut self, error: Option<&io::Error>) {
        self.lost += 1;
        self.behind = true;
        match error {
            Some(error) => self.say(1, &format_args!("{error}; {REMEDY}")),
            None => self.say(1, &"it could not be opened"),
        }
    }

    fn say(&mut self, lost: u64, why: &dyn std::fmt::Display) {
        let Some(lost) = self.trouble.say(lost) else { return };
        let (path, error) = (self.path.display(), why);
        if self.behind {
            tracing::error!(
                %path, %error, lost,
                "ticket uses are not in the journal: a crash now would forget them; consoles go on"
            );
        } else {
            tracing::error!(%path, %error, "the ticket journal is whole, but cannot be written anew, so it grows");
        }
    }

    fn over(&mut self) {
        if let Some(lost) = self.trouble.over() {
            tracing::warn!(path = %self.path.display(), lost, "the ticket journal is whole again");
        }
    }

    /// Whether there is something for the thread to do that it was not told of yet.
    pub(super) fn calls(&mut self) -> bool {
        let before = self.called;
        self.called = self.wants();
        self.called && !before
    }

    /// Whether it is to be written anew.
    fn wants(&self) -> bool {
        !self.still && (self.behind || self.len > self.base.saturating_mul(2).saturating_add(FLOOR))
    }

    /// Whether it is to be left as it is, but for new lines.
    pub(super) fn hold(&mut self, still: bool) {
        self.still = still;
        if still {
            self.give_up();
        }
    }

    pub(super) fn sample(&self, out: &mut Samples) {
        let name = "mksgate_ticket_journal_records";
        out.counter(name, "Uses and revocations of tickets written to the journal", &[], self.written);
        let help = "Uses and revocations of tickets that could not be written when they came";
        out.counter("mksgate_ticket_journal_lost", help, &[], self.lost);
        let help = "Whether the journal lacks something that is remembered";
        out.gauge("mksgate_ticket_journal_behind", help, &[], i64::from(self.behind));
        let bytes = i64::try_from(self.len).unwrap_or(i64::MAX);
        out.gauge("mksgate_ticket_journal_bytes", "Size of the journal", &[], bytes);
    }
}
