//! A login's token: a note sealed with the ticket keys, so that every cell knows it.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{Person, lock};
use crate::gate::Gate;

/// Most logins that are remembered as ended before their time.
const MOST_ENDED: usize = 100_000;

/// What the note says. No field of a ticket's claims is in it, and none of its in those: neither opens as the other.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    desk_login: String,
    desk_user: String,
    desk_org: String,
    desk_until: u64,
}

/// Logins that were ended, until their time would have been over.
#[derive(Default)]
pub(super) struct Ended(BTreeMap<String, u64>);

/// A token for this person.
pub(super) fn begin(gate: &Gate, person: &Person, seconds: u64, now: SystemTime) -> Result<String, String> {
    let mut name = [0; 16];
    aws_lc_rs::rand::fill(&mut name).map_err(|_| "no random bytes".to_owned())?;
    let note = Note {
        desk_login: name.iter().map(|byte| format!("{byte:02x}")).collect(),
        desk_user: person.user.clone(),
        desk_org: person.org.clone(),
        desk_until: unix(now) + seconds,
    };
    let json = serde_json::to_vec(&note).map_err(|error| error.to_string())?;
    gate.tickets.keys().seal_note(json).map_err(|error| error.to_string())
}

/// Whose token it is, while it is good.
pub(super) fn find(gate: &Gate, token: &str, now: SystemTime) -> Option<Person> {
    let note = open(gate, token)?;
    let ended = lock(&gate.desk.ended).0.contains_key(&note.desk_login);
    let good = !ended && unix(now) < note.desk_until;
    good.then_some(Person { user: note.desk_user, org: note.desk_org })
}

/// Ends a login here. Another cell takes its token until it is over by itself.
pub(super) fn end(gate: &Gate, token: &str, now: SystemTime) {
    let Some(note) = open(gate, token) else { return };
    let mut ended = lock(&gate.desk.ended);
    ended.0.retain(|_, until| unix(now) < *until);
    if ended.0.len() < MOST_ENDED {
        ended.0.insert(note.desk_login, note.desk_until);
    }
}

fn open(gate: &Gate, token: &str) -> Option<Note> {
    let json = gate.tickets.keys().open_note(token).ok()?;
    serde_json::from_slice(&json).ok()
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ticket::Claims;

    #[test]
    fn a_login_is_no_ticket() {
        let note = Note {
            desk_login: "x".into(),
            desk_user: "ann".into(),
            desk_org: "acme".into(),
            desk_until: u64::MAX,
        };
        let json = serde_json::to_vec(&note).unwrap();
        assert!(Claims::from_json(&json).is_err());
    }
}
