//! Memory of idle raw sessions.

use anyhow::Result;
use serde_json::json;

use super::Outcome;
use crate::load::contender::{Contender, MKSGATE};
use crate::load::goals::Goal;
use crate::load::{idle, wire};

const SUITE: &str = "idle";

/// Holds `sessions` through each contender, one after the other.
pub fn run(sessions: usize, contenders: &[Contender]) -> Result<Outcome> {
    let (listener, backend) = wire::listen()?;
    let dir = tempfile::tempdir()?;
    let mut found = Vec::new();
    println!("\n{sessions} idle raw sessions");
    for contender in contenders {
        let Some(running) = contender.start(backend, dir.path())? else {
            println!("{contender} is not installed; left out");
            continue;
        };
        let round = idle::run(&running, &listener, sessions)?;
        println!("  {:<26} {:>8.2} KiB per session", contender.to_string(), round.per_session / 1024.0);
        found.push((*contender, round));
    }
    let of = |who| found.iter().find(|(c, _)| *c == who).map(|(_, round)| round.per_session);
    let mut goals = Vec::new();
    if let Some(ours) = of(MKSGATE) {
        goals.push(Goal::at_most(SUITE, "KiB resident per idle raw session", ours / 1024.0, 2.0));
        if let Some(theirs) = of(Contender::Haproxy) {
            goals.push(Goal::at_most(SUITE, "resident per idle raw session / HAProxy's", ours / theirs, 0.6));
        }
    }
    let raw: Vec<_> =
        found.iter().map(|(c, round)| json!({ "contender": c.to_string(), "round": round })).collect();
    Ok(Outcome { goals, raw: json!({ "sessions": raw }) })
}
