//! How the journal begins, and the thread that writes it anew.

use std::fs;
use std::io::{BufReader, ErrorKind};
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use super::file::{self, FileError};
use super::{Journal, JournalError, Record, Replayed, Start, replay};
use crate::ticket::state::State;
use crate::ticket::tickets::Shared;
use crate::ticket::{since_epoch, table::Place};

/// How often writing anew is tried where it fails.
const RETRY: Duration = Duration::from_secs(1);
/// Entries written between two looks of others at the table.
const AT_ONCE: usize = 128;

/// Takes the file over, and what stands in it into the table.
pub(in crate::ticket) fn begin(shared: &Shared, path: &Path, start: Start) -> Result<(), JournalError> {
    shared.state().journal = Some(Journal::new(path));
    let attached = attach(shared, start.now, start.heir);
    if matches!(attached, Err(FileError::Held)) {
        return Err(JournalError::Held(path.into()));
    }
    // A portal's clock may be ahead by so much.
    let skew = shared.settings.load().policy.clock_skew;
    let (now, booted) = (since_epoch(start.now), since_epoch(start.booted));
    let mut state = shared.state();
    state.booted = Some((now, booted.saturating_add(skew)));
    // An heir knows everything without it.
    if lacks_something(&state, &attached) && !start.heir {
        state.forget(Some(now.saturating_add(skew)));
    }
    if state.table.forgotten > Some(now.saturating_add(skew)) {
        tracing::warn!(
            path = %path.display(),
            "the ticket journal knows of tickets minted in the future: the clock went back; until it has come there, others are refused (ticket_used_too_late) unless the file is removed while the service is stopped"
        );
    }
    if let (Err(error), Some(journal)) = (&attached, &mut state.journal) {
        journal.say(0, error);
    }
    let wants = state.journal.as_ref().is_some_and(Journal::wants);
    drop(state);
    if wants || start.heir {
        // Where it fails, the thread tries it again and says so.
        let _ = rewrite(shared);
    }
    let state = shared.state();
    tracing::info!(path = %path.display(), uses = state.table.len(), revocations = state.revoked.len(), "ticket journal");
    Ok(())
}

/// Whether tickets may have been used that the table does not know.
fn lacks_something(state: &State, attached: &Result<Found, FileError>) -> bool {
    match attached {
        Ok(Found { known: Replayed { broken: 0, .. }, incomplete: false }) => false,
        Ok(Found { known: Replayed { broken, .. }, incomplete }) => {
            let path = state.journal.as_ref().map_or(Path::new(""), |journal| &journal.path);
            tracing::error!(
                path = %path.display(), broken, incomplete,
                "the ticket journal lacks uses; tickets minted before now open only if the rest of it knows them; portals mint others; see to the disk or file system it is on"
            );
            true
        }
        // Nothing was ever written there.
        Err(error) => !error.is_absence(),
    }
}

/// The thread. Ends when there is no journal any more.
pub(in crate::ticket) fn run(shared: &Arc<Shared>) {
    let mut state = shared.state();
    loop {
        let Some(journal) = &mut state.journal else { return };
        if !journal.wants() {
            journal.called = false;
            state = shared.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        journal.called = true;
        drop(state);
        let done = rewrite(shared);
        state = shared.state();
        let Some(journal) = &mut state.journal else { return };
        match done {
            Ok(()) => journal.over(),
            // Not now, says who holds it still.
            Err(_) if journal.still => {}
            Err(error) => {
                journal.say(0, &error);
                let waited = shared.wake.wait_timeout(state, RETRY);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }
}

/// What a file told.
struct Found {
    known: Replayed,
    incomplete: bool,
}

/// Opens the file and learns what stands in it.
fn attach(shared: &Shared, now: SystemTime, heir: bool) -> Result<Found, FileError> {
    let settings = shared.settings.load();
    let path = shared.state().journal.as_ref().map(|journal| journal.path.clone());
    let Some(path) = path else { return Err(FileError::Held) };
    let file = file::open(&path, heir)?;
    let incomplete = file::is_marked(&file)?;
    let (known, told) = replay(BufReader::new(&file), &settings.policy, now)?;
    if told.foreign {
        return Err(FileError::Foreign);
    }
    if told.left_out > 0 {
        tracing::warn!(
            uses = told.left_out,
            "the ticket journal has more uses than tickets.max_tracked: consoles of those cannot reconnect; raise it"
        );
    }
    let mut len = file.metadata()?.len();
    if told.torn > 0 {
        // A new line must not follow half of one.
        len = len.saturating_sub(told.torn);
        file.set_len(len)?;
    }
    let mut state = shared.state();
    state.import(known);
    if let Some(journal) = &mut state.journal {
        journal.behind = incomplete || told.records == 0 || told.broken > 0 || told.torn > 0;
        (journal.file, journal.len) = (Some(file), len);
    }
    Ok(Found { known: told, incomplete })
}

/// Writes what is known to a second file, which then takes the first one's place.
fn rewrite(shared: &Shared) -> Result<(), FileError> {
    let (path, open) = match &shared.state().journal {
        Some(journal) => (journal.path.clone(), journal.file.is_some()),
        None => return Ok(()),
    };
    if !open {
        // It may be somebody else's meanwhile, or know something.
        attach(shared, SystemTime::now(), false)?;
    }
    let done = fill(shared, &path);
    if done.is_err()
        && let Some(journal) = &mut shared.state().journal
    {
        journal.give_up();
    }
    done
}

/// What is known, a few lines at a time, and between them what is new: each with the table locked, so that they stand in the
/// order in which they were true.
fn fill(shared: &Shared, path: &Path) -> Result<(), FileError> {
    let mut lines = Vec::new();
    {
        let mut state = shared.state();
        head(&state, &mut lines);
        let journal = state.journal.as_mut().filter(|journal| !journal.still).ok_or(FileError::Held)?;
        let (next, name) = file::fresh(path)?;
        let written = file::append(&next, &lines);
        journal.next = Some((next, name));
        written?;
    }
    let mut last = None;
    loop {
        lines.clear();
        let mut state = shared.state();
        let place = some(&state, last.as_ref(), AT_ONCE, &mut lines);
        let forgotten = state.table.forgotten;
        let journal = state.journal.as_mut().ok_or(FileError::Held)?;
        // Given up, by whoever found no room in it or wants the file left alone.
        let (next, _) = journal.next.as_ref().ok_or(FileError::Io(ErrorKind::StorageFull.into()))?;
        if place.is_none() {
            // What was forgotten meanwhile.
            forgotten.map(|iat| Record::Forgotten(iat).encode(&mut lines));
        }
        if !lines.is_empty() {
            file::append(next, &lines)?;
        }
        if place.is_none() {
            return replace(journal, path);
        }
        last = place;
        drop(state);
        thread::yield_now();
    }
}

fn replace(journal: &mut Journal, path: &Path) -> Result<(), FileError> {
    let (next, name) = journal.next.as_ref().ok_or(FileError::Held)?;
    let len = next.metadata()?.len();
    fs::rename(name, path)?;
    journal.file = journal.next.take().map(|(next, _)| next);
    (journal.len, journal.base, journal.behind) = (len, len, false);
    Ok(())
}

/// The first lines: all but the uses.
pub(super) fn head(state: &State, out: &mut Vec<u8>) {
    Record::first().encode(out);
    let marks = [state.table.forgotten.map(Record::Forgotten), state.all_revoked.map(Record::AllRevoked)];
    for record in marks.into_iter().flatten() {
        record.encode(out);
    }
    for (what, iat) in state.revoked.export() {
        Record::Revoked(std::borrow::Cow::Owned(what), iat).encode(out);
    }
}

/// The lines of up to `most` uses behind `last`; where the last of them is, `None` if there was none.
pub(super) fn some(state: &State, last: Option<&Place>, most: usize, out: &mut Vec<u8>) -> Option<Place> {
    let mut end = None;
    for (place, entry) in state.table.after(last).take(most) {
        Record::Use((&*place.1).into(), std::borrow::Cow::Borrowed(entry)).encode(out);
        end = Some(place);
    }
    end.cloned()
}
