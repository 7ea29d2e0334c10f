//! Speed of the flow engine: bulk and ping-pong, one proxy thread each, contenders alternating within every round.

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Value, json};

use super::Outcome;
use crate::load::bulk::{Bulk, BulkRound};
use crate::load::contender::{Contender, MKSGATE, Running};
use crate::load::goals::{Goal, geometric_mean, median};
use crate::load::pingpong::{PingPong, PingPongRound};
use crate::load::wire;

const SUITE: &str = "flow";

/// How much to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Rounds per case.
    pub rounds: usize,
    /// Seconds per round.
    pub seconds: f64,
    /// Who takes part.
    pub contenders: Vec<Contender>,
    /// Bulk cases: flows and size of a write.
    pub bulk: Vec<Bulk>,
    /// Ping-pong cases.
    pub ping_pong: Vec<PingPong>,
}

impl Plan {
    /// Every case of the promise.
    pub fn full(rounds: usize, seconds: f64) -> Self {
        let bulk = [1, 4, 64]
            .into_iter()
            .flat_map(|flows| [64 << 10, 4 << 10].into_iter().map(move |write| Bulk { flows, write }));
        Self {
            rounds,
            seconds,
            contenders: vec![Contender::Direct, MKSGATE, Contender::Haproxy, Contender::Nginx],
            bulk: bulk.collect(),
            ping_pong: [1, 64, 512].into_iter().map(|flows| PingPong { flows }).collect(),
        }
    }
}

/// All rounds of one case by one contender.
struct Series<R> {
    contender: Contender,
    rounds: Vec<R>,
}

impl<R> Series<R> {
    fn median(&self, of: impl Fn(&R) -> f64) -> f64 {
        median(self.rounds.iter().map(of))
    }
}

/// Runs the plan.
pub fn run(plan: &Plan) -> Result<Outcome> {
    let (listener, backend) = wire::listen()?;
    let dir = tempfile::tempdir()?;
    let mut running = Vec::new();
    for contender in &plan.contenders {
        match contender.start(backend, dir.path())? {
            Some(up) => running.push(up),
            None => println!("{contender} is not installed; left out"),
        }
    }
    let (mut goals, mut raw) = (Vec::new(), Vec::new());
    let mut ratios = Vec::new();
    for case in &plan.bulk {
        let series = rounds(plan.rounds, &running, |r| case.run(r, &listener, plan.seconds))?;
        println!("\nbulk, {} flows, writes of {} KiB", case.flows, case.write >> 10);
        show_bulk(&series);
        ratios.extend(bulk_ratios(case, &series));
        raw.push(record("bulk", case, &series));
    }
    bulk_goals(&ratios, &mut goals);
    for case in &plan.ping_pong {
        let series = rounds(plan.rounds, &running, |r| case.run(r, &listener, plan.seconds))?;
        println!("\nping-pong, {} flows, 32 bytes", case.flows);
        show_ping_pong(&series);
        ping_pong_goals(case, &series, &mut goals);
        raw.push(record("ping-pong", case, &series));
    }
    Ok(Outcome { goals, raw: json!({ "versions": versions(&running), "cases": raw }) })
}

fn rounds<R>(
    count: usize,
    running: &[Running],
    mut run: impl FnMut(&Running) -> Result<R>,
) -> Result<Vec<Series<R>>> {
    let mut all: Vec<_> =
        running.iter().map(|r| Series { contender: r.contender, rounds: Vec::new() }).collect();
    for round in 0..count {
        for n in 0..running.len() {
            // Another order every round: whoever follows a heavy neighbour is not always the same.
            let n = (n + round) % running.len();
            let result = run(&running[n]).with_context(|| format!("{}", running[n].contender))?;
            all[n].rounds.push(result);
        }
    }
    Ok(all)
}

fn show_bulk(series: &[Series<BulkRound>]) {
    println!(
        "  {:<26} {:>8} {:>12} {:>12} {:>7} {:>7}",
        "", "GB/s", "proxy s/GB", "system s/GB", "noise", "steal"
    );
    for s in series {
        println!(
            "  {:<26} {:>8.2} {:>12.3} {:>12.3} {:>6.1}% {:>6.1}%",
            s.contender.to_string(),
            s.median(|r| r.gb_per_s),
            s.median(|r| r.proxy),
            s.median(|r| r.system),
            s.median(|r| r.noise) * 100.0,
            s.median(|r| r.steal) * 100.0
        );
    }
}

fn show_ping_pong(series: &[Series<PingPongRound>]) {
    println!(
        "  {:<26} {:>8} {:>12} {:>12} {:>9} {:>9} {:>7} {:>7}",
        "", "k/s", "proxy µs", "system µs", "p50 µs", "p99 µs", "noise", "steal"
    );
    for s in series {
        println!(
            "  {:<26} {:>8.1} {:>12.2} {:>12.2} {:>9.1} {:>9.1} {:>6.1}% {:>6.1}%",
            s.contender.to_string(),
            s.median(|r| r.per_s) / 1e3,
            s.median(|r| r.proxy),
            s.median(|r| r.system),
            s.median(|r| r.p50),
            s.median(|r| r.p99),
            s.median(|r| r.noise) * 100.0,
            s.median(|r| r.steal) * 100.0
        );
    }
}

/// Ours over HAProxy's.
struct Ratio {
    case: String,
    proxy: f64,
    throughput: f64,
    system: f64,
}

fn pick<R>(series: &[Series<R>], contender: Contender) -> Option<&Series<R>> {
    series.iter().find(|s| s.contender == contender)
}

fn bulk_ratios(case: &Bulk, series: &[Series<BulkRound>]) -> Option<Ratio> {
    let (ours, theirs) = (pick(series, MKSGATE)?, pick(series, Contender::Haproxy)?);
    let ratio = |of: fn(&BulkRound) -> f64| ours.median(of) / theirs.median(of);
    Some(Ratio {
        case: format!("{} flows, {} KiB", case.flows, case.write >> 10),
        proxy: ratio(|r| r.proxy),
        throughput: ratio(|r| r.gb_per_s),
        system: ratio(|r| r.system),
    })
}

fn bulk_goals(ratios: &[Ratio], goals: &mut Vec<Goal>) {
    if ratios.is_empty() {
        return;
    }
    let mean = |of: fn(&Ratio) -> f64| geometric_mean(ratios.iter().map(of));
    goals.push(Goal::at_most(SUITE, "bulk: proxy CPU / HAProxy's, mean", mean(|r| r.proxy), 0.6));
    goals.push(Goal::at_least(SUITE, "bulk: throughput / HAProxy's, mean", mean(|r| r.throughput), 1.1));
    goals.push(Goal::at_most(SUITE, "bulk: system CPU / HAProxy's, mean", mean(|r| r.system), 0.9));
    for r in ratios {
        goals.push(Goal::at_most(SUITE, format!("bulk, {}: proxy CPU / HAProxy's", r.case), r.proxy, 1.0));
        goals.push(Goal::at_least(
            SUITE,
            format!("bulk, {}: throughput / HAProxy's", r.case),
            r.throughput,
            1.0,
        ));
        goals.push(Goal::at_most(SUITE, format!("bulk, {}: system CPU / HAProxy's", r.case), r.system, 1.0));
    }
}

fn ping_pong_goals(case: &PingPong, series: &[Series<PingPongRound>], goals: &mut Vec<Goal>) {
    let (Some(ours), Some(theirs)) = (pick(series, MKSGATE), pick(series, Contender::Haproxy)) else {
        return;
    };
    let ratio = |of: fn(&PingPongRound) -> f64| ours.median(of) / theirs.median(of);
    let name = |what: &str| format!("ping-pong, {} flows: {what} / HAProxy's", case.flows);
    goals.push(Goal::at_most(SUITE, name("proxy CPU"), ratio(|r| r.proxy), 0.6));
    goals.push(Goal::at_least(SUITE, name("throughput"), ratio(|r| r.per_s), 1.0));
    goals.push(Goal::at_most(SUITE, name("p99"), ratio(|r| r.p99), 1.0));
}

fn record<R: Serialize>(kind: &str, case: &impl Serialize, series: &[Series<R>]) -> Value {
    let series: Vec<_> =
        series.iter().map(|s| json!({ "contender": s.contender.to_string(), "rounds": s.rounds })).collect();
    json!({ "kind": kind, "case": case, "series": series })
}

fn versions(running: &[Running]) -> Value {
    running.iter().map(|r| (r.contender.to_string(), json!(r.contender.version()))).collect()
}
