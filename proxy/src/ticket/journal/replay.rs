//! From the journal's bytes to what it remembers: no more memory than the table may have, and nothing that was not written.

use std::io::{self, BufRead, Read};
use std::time::{Duration, SystemTime};

use super::record::{LONGEST, Record};
use crate::ticket::state::State;
use crate::ticket::{TicketPolicy, TicketState, since_epoch};

/// Lines that one broken byte breaks at most.
const BROKEN_BY_ONE: u64 = 2;

/// What was found besides what is remembered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Whole lines that say what was written.
    pub records: u64,
    /// Lines that do not.
    pub broken: u64,
    /// Uses beyond `max_tracked`; tickets that were minted with them or before are refused.
    pub left_out: u64,
    /// Bytes behind the last whole line: of a write that was cut off, and so of a use that was not granted.
    pub torn: u64,
    /// Something else than a journal: nothing of it was read, and it is not to be written over.
    pub foreign: bool,
}

/// Reads a journal. Broken lines are counted and left out; what to make of them is the caller's business.
///
/// # Errors
/// Those of reading.
pub fn replay(
    from: impl BufRead,
    policy: &TicketPolicy,
    now: SystemTime,
) -> io::Result<(TicketState, Replayed)> {
    let (state, found) = read(from, policy, since_epoch(now))?;
    Ok((state.export(), found))
}

/// Whether it is something else than a journal, by its first lines.
pub(super) fn is_foreign(mut from: impl BufRead) -> io::Result<bool> {
    let (mut line, mut seen) = (Vec::new(), false);
    for _ in 0..=BROKEN_BY_ONE {
        let whole = next_line(&mut from, &mut line)?;
        if Record::decode(&line).is_some() || (whole.is_none() && is_begun(&line) && !seen) {
            return Ok(false);
        }
        if whole.is_none() {
            return Ok(true);
        }
        seen = true;
    }
    Ok(true)
}

/// The lines of a journal that says this, as a reader of [`replay`] gets them.
pub fn write(what: TicketState) -> Vec<u8> {
    let mut state = State::default();
    state.import(what);
    let mut out = Vec::new();
    super::scribe::head(&state, &mut out);
    super::scribe::some(&state, None, usize::MAX, &mut out);
    out
}

fn read(mut from: impl BufRead, policy: &TicketPolicy, now: Duration) -> io::Result<(State, Replayed)> {
    let (mut state, mut found) = (State::default(), Replayed::default());
    let mut line = Vec::with_capacity(256);
    loop {
        let whole = next_line(&mut from, &mut line)?;
        let record = Record::decode(&line);
        if whole.is_none() && line.is_empty() {
            break;
        }
        if whole.is_none() {
            found.torn = line.len() as u64;
            found.foreign |= found.records == 0 && record.is_none() && !is_begun(&line);
        }
        match record {
            Some(record) => {
                found.records += 1;
                found.left_out += u64::from(!state.apply(record, policy, now));
            }
            None if whole.is_some() => found.broken += 1,
            None => {}
        }
        if found.records == 0 && found.broken > BROKEN_BY_ONE {
            found.foreign = true;
        }
        if whole.is_none() || found.foreign {
            break;
        }
    }
    found.foreign |= found.records == 0 && found.broken > 0;
    if found.foreign {
        state = State::default();
    }
    state.prune(policy, now);
    Ok((state, found))
}

/// A first line that was cut off.
fn is_begun(line: &[u8]) -> bool {
    let mut first = Vec::new();
    Record::first().encode(&mut first) && first.starts_with(line)
}

/// The next line without its end; `None` where that is missing. A line beyond [`LONGEST`] is kept up to there, which nobody
/// takes for a record.
fn next_line(from: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Option<()>> {
    line.clear();
    from.by_ref().take(LONGEST as u64).read_until(b'\n', line)?;
    if line.pop_if(|last| *last == b'\n').is_some() {
        return Ok(Some(()));
    }
    if line.len() < LONGEST {
        return Ok(None);
    }
    loop {
        let buffer = from.fill_buf()?;
        if buffer.is_empty() {
            return Ok(None);
        }
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(buffer.len(), |at| at + 1);
        from.consume(taken);
        if end.is_some() {
            return Ok(Some(()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    type Named = (String, u32, String, bool);

    /// What a gate may remember of some tickets and revocations. Times are such that nothing is forgotten at the epoch.
    fn state(uses: &[Named], revoked: &[(String, u32)], forgotten: Option<u32>) -> TicketState {
        let time = |secs: u32| json!({"secs": secs, "nanos": 5});
        let uses = uses.iter().enumerate().map(|(n, (name, iat, user, revoked))| {
            json!([format!("{n}-{name}"), {
                "iat": iat, "tenant": "acme", "user": user, "source": "192.0.2.7", "reconnect_until": time(*iat),
                "forget_after": time(*iat), "revoked": revoked,
            }])
        });
        let revoked = revoked
            .iter()
            .enumerate()
            .map(|(n, (user, iat))| json!([{"jti": format!("{n}{user}")}, time(*iat)]));
        let state = json!({
            "uses": uses.collect::<Vec<_>>(), "revocations": revoked.collect::<Vec<_>>(),
            "forgotten": forgotten.map(time), "all_revoked": forgotten.map(time),
        });
        serde_json::from_value(state).unwrap()
    }

    fn any_state() -> impl Strategy<Value = TicketState> {
        let name = || "\\PC{0,24}";
        let uses = proptest::collection::vec((name(), any::<u32>(), name(), any::<bool>()), 0..8);
        let revoked = proptest::collection::vec((name(), any::<u32>()), 0..4);
        (uses, revoked, any::<Option<u32>>()).prop_map(|(uses, revoked, end)| state(&uses, &revoked, end))
    }

    /// Everything that is remembered, a text each.
    fn facts(state: &TicketState) -> BTreeSet<String> {
        let Value::Object(all) = serde_json::to_value(state).unwrap() else { panic!("an object") };
        let each = all.into_iter().flat_map(|(what, value)| match value {
            Value::Array(several) => several.into_iter().map(|one| format!("{what} {one}")).collect(),
            Value::Null => vec![],
            one => vec![format!("{what} {one}")],
        });
        each.collect()
    }

    fn read(bytes: &[u8], policy: &TicketPolicy) -> (BTreeSet<String>, Replayed) {
        let (state, found) = replay(bytes, policy, SystemTime::UNIX_EPOCH).unwrap();
        (facts(&state), found)
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(state in any_state()) {
            let (known, found) = read(&write(state.clone()), &TicketPolicy::default());
            prop_assert_eq!(known, facts(&state));
            prop_assert_eq!((found.broken, found.torn, found.left_out, found.foreign), (0, 0, 0, false));
        }

        #[test]
        fn a_cut_loses_the_end_and_is_no_breakage(state in any_state(), at in any::<prop::sample::Index>()) {
            let bytes = write(state.clone());
            let cut = &bytes[..at.index(bytes.len())];
            let (known, found) = read(cut, &TicketPolicy::default());
            prop_assert!(known.is_subset(&facts(&state)));
            prop_assert!(!found.foreign && found.broken == 0);
            let whole = cut.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            prop_assert_eq!(found.torn as usize, cut.len() - whole);
        }

        #[test]
        fn a_broken_byte_is_noticed_and_makes_up_nothing(
            state in any_state(), at in any::<prop::sample::Index>(), with in 1..=255_u8,
        ) {
            let mut bytes = write(state.clone());
            let at = at.index(bytes.len());
            bytes[at] ^= with;
            let (known, found) = read(&bytes, &TicketPolicy::default());
            prop_assert!(known.is_subset(&facts(&state)), "{known:?}");
            prop_assert!(found.broken > 0 || found.torn > 0 || found.foreign, "{found:?}");
        }

        #[test]
        fn no_more_is_kept_than_may_be_and_the_rest_counts_as_used(state in any_state(), room in 1..4_usize) {
            let policy = TicketPolicy { max_tracked: room, ..TicketPolicy::default() };
            let (known, found) = replay(&*write(state.clone()), &policy, SystemTime::UNIX_EPOCH).unwrap();
            prop_assert!(known.uses.len() <= room && known.revocations.len() <= room);
            prop_assert_eq!(found.left_out as usize, state.uses.len() - known.uses.len());
            for (jti, entry) in &state.uses {
                let kept = known.uses.iter().any(|(known, _)| known == jti);
                prop_assert!(kept || known.forgotten >= Some(entry.iat()));
            }
        }
    }

    #[test]
    fn something_else_than_a_journal_is_left_alone() {
        let policy = TicketPolicy::default();
        for text in
            ["{\"event\":\"open\"}\n{\"event\":\"close\"}\n", "[tickets]\n", "no line at all", "\0\0\0\0"]
        {
            assert!(read(text.as_bytes(), &policy).1.foreign, "{text:?}");
        }
        assert!(read(&vec![b'x'; 10 * LONGEST], &policy).1.foreign);
        assert_eq!(read(b"", &policy), (BTreeSet::new(), Replayed::default()));
        // A line without an end among good ones is one broken line.
        let good = write(state(&[("a".into(), 7, "ann".into(), false)], &[], None));
        let mut bytes = good.clone();
        bytes.extend(vec![b'x'; 3 * LONGEST]);
        bytes.push(b'\n');
        bytes.extend(&good);
        let (known, found) = read(&bytes, &policy);
        assert_eq!((known.len(), found.records, found.broken), (1, 4, 1));
    }
}
