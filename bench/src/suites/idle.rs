//! Memory of idle raw sessions.

use anyhow::Result;
use serde_json::json;

use crate::load::contender::{Contender, MKSGATE};
use crate::load::goals::Goal;
use crate::load::{idle, wire};
use crate::run::facts::fitting;
use crate::run::{Bar, Chart, Context, Group, Outcome, Spread, Table};

const SUITE: &str = "idle";

/// Holds sessions through each contender, one after the other.
pub fn run(context: &Context, out: &mut Outcome) -> Result<()> {
    let wanted = context.options.sessions.unwrap_or(context.pick(5000, 1000));
    // Both ends of a session are this process's; the proxies have two sockets of their own for each, too.
    let sessions = wanted.min(fitting(2));
    if sessions < wanted {
        out.note(format!("{wanted} sessions asked for; the limit of open files lets {sessions} fit"));
    }
    let (listener, backend) = wire::listen()?;
    let mut found: Vec<(Contender, idle::IdleRound)> = Vec::new();
    let mut table = Table::new(format!("{sessions} idle raw sessions"), ["", "KiB per session"]);
    for contender in [MKSGATE, Contender::Haproxy, Contender::Nginx] {
        context.stop.check()?;
        let start = || contender.start(backend, context.dir());
        let Some(running) = context.peer(contender.peer_name(), out, start) else { continue };
        out.version(contender.to_string(), contender.version());
        let round = match context.watch(|| idle::run(&running, &listener, sessions)) {
            Ok(round) => round,
            Err(error) => {
                out.note(format!("{contender} failed: {error:#}"));
                continue;
            }
        };
        table.row([contender.to_string(), format!("{:.2}", round.per_session / 1024.0)]);
        out.raw("sessions", json!({ "contender": contender.to_string(), "round": round }));
        found.push((contender, round));
    }
    out.table(table);
    let of = |who| found.iter().find(|(c, _)| *c == who).map(|(_, round)| round.per_session);
    if let Some(ours) = of(MKSGATE) {
        out.goals.push(Goal::at_most(SUITE, "KiB resident per idle raw session", ours / 1024.0, 2.0));
        if let Some(theirs) = of(Contender::Haproxy) {
            out.goals.push(Goal::at_most(
                SUITE,
                "resident per idle raw session / HAProxy's",
                ours / theirs,
                0.6,
            ));
        }
    }
    let bar = |(contender, round): &(Contender, idle::IdleRound)| Bar {
        name: contender.to_string(),
        value: Spread::from(round.per_session / 1024.0),
    };
    out.charts.push(Chart::Bars {
        title: "Resident memory per idle raw session".to_owned(),
        unit: "KiB".to_owned(),
        better: "lower is better",
        groups: vec![Group { name: format!("{sessions} sessions"), bars: found.iter().map(bar).collect() }],
    });
    Ok(())
}
