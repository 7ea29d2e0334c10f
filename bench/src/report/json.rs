//! JSON: `goals` at the top, every round of every suite below.

use serde_json::{Map, Value, json};

use super::{Ended, Ran};
use crate::run::facts::Host;

/// Everything that was measured.
pub fn all(host: &Host, suites: &[Ran]) -> Value {
    let goals: Vec<_> = suites.iter().flat_map(|ran| &ran.outcome.goals).collect();
    let each: Map<String, Value> = suites.iter().map(|ran| (ran.name.to_owned(), one(ran))).collect();
    json!({ "goals": goals, "host": host, "suites": each })
}

fn one(ran: &Ran) -> Value {
    let (ended, why) = match &ran.ended {
        Ended::Complete => ("complete", None),
        Ended::Skipped(why) => ("skipped", Some(why)),
        Ended::Failed(why) => ("failed", Some(why)),
        Ended::Interrupted => ("interrupted", None),
    };
    let foreign =
        |of: fn(&crate::run::context::Foreign) -> f64| ran.foreign.iter().map(of).collect::<Vec<_>>();
    json!({
        "about": ran.about,
        "ended": ended,
        "why": why,
        "seconds": ran.seconds,
        "too_noisy": ran.too_noisy(),
        "noise": foreign(|f| f.noise),
        "steal": foreign(|f| f.steal),
        "versions": ran.outcome.versions,
        "notes": ran.outcome.notes,
        "tables": ran.outcome.tables,
        "raw": ran.outcome.raw,
    })
}
