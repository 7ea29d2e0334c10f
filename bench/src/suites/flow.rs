//! Speed of the flow engine: bulk and ping-pong, one proxy thread each, contenders alternating within every round.

use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};

use crate::load::bulk::{Bulk, BulkRound};
use crate::load::contender::{Contender, MKSGATE, Running};
use crate::load::goals::{Goal, geometric_mean};
use crate::load::pingpong::{PingPong, PingPongRound};
use crate::load::wire;
use crate::run::rounds::of;
use crate::run::{Bar, Chart, Context, Group, Outcome, Series, Spread, ratios};

const SUITE: &str = "flow";

/// Who takes part when all do.
const CONTENDERS: [Contender; 4] = [Contender::Direct, MKSGATE, Contender::Haproxy, Contender::Nginx];
/// The engine's other drivers and modes, by request.
const ENGINES: [(&str, &str); 5] = [
    ("io-uring", "splice"),
    ("io-uring", "copy"),
    ("epoll", "adaptive"),
    ("epoll", "splice"),
    ("epoll", "copy"),
];

fn cases(context: &Context) -> (Vec<Bulk>, Vec<PingPong>) {
    let bulk = [1, 4, 64].into_iter();
    let bulk = bulk.flat_map(|flows| [64 << 10, 4 << 10].into_iter().map(move |write| Bulk { flows, write }));
    let ping_pong = [1, 64, 512].into_iter().map(|flows| PingPong { flows });
    let options = &context.options;
    (
        bulk.filter(|case| options.bulk.is_empty() || options.bulk.contains(&case.flows)).collect(),
        ping_pong
            .filter(|case| options.ping_pong.is_empty() || options.ping_pong.contains(&case.flows))
            .collect(),
    )
}

/// Starts everybody, runs every case.
pub fn run(context: &Context, out: &mut Outcome) -> Result<()> {
    let (listener, backend) = wire::listen()?;
    let mut contenders = CONTENDERS.to_vec();
    if context.options.engines {
        contenders.extend(ENGINES.map(|(driver, mode)| Contender::Mksgate { driver, mode }));
    }
    let mut running: Vec<Running> = Vec::new();
    for contender in contenders {
        let start = || contender.start(backend, context.dir());
        if let Some(up) = context.peer(contender.peer_name(), out, start) {
            out.version(contender.to_string(), contender.version());
            running.push(up);
        }
    }
    let (rounds, seconds) = (context.rounds(4, 2), context.seconds(1.5, 0.5));
    let (bulk, ping_pong) = cases(context);
    let (mut found, mut charts) = (Vec::new(), BulkCharts::default());
    for case in &bulk {
        let series = context.alternate(out, rounds, &mut running, |r| case.run(r, &listener, seconds))?;
        out.table(case.table(&series));
        charts.add(case, &series);
        found.extend(bulk_ratios(case, &series));
        out.raw("bulk", record(case, &series));
    }
    bulk_goals(&found, &mut out.goals);
    out.charts.extend(charts.done());
    let mut cpu = Vec::new();
    for case in &ping_pong {
        let series = context.alternate(out, rounds, &mut running, |r| case.run(r, &listener, seconds))?;
        out.table(case.table(&series));
        cpu.push(group(format!("{} flows", case.flows), &series, |r| r.proxy));
        ping_pong_goals(case, &series, &mut out.goals);
        out.raw("ping-pong", record(case, &series));
    }
    if !cpu.is_empty() {
        out.charts.push(bars("Ping-pong, 32 bytes: proxy CPU per round trip", "µs", LOWER, cpu));
    }
    Ok(())
}

const LOWER: &str = "lower is better";
const HIGHER: &str = "higher is better";

#[derive(Default)]
struct BulkCharts {
    throughput: Vec<Group>,
    proxy: Vec<Group>,
}

impl BulkCharts {
    fn add(&mut self, case: &Bulk, series: &[Series<BulkRound>]) {
        self.throughput.push(group(bulk_name(case), series, |r| r.gb_per_s));
        self.proxy.push(group(bulk_name(case), series, |r| r.proxy));
    }

    fn done(self) -> impl Iterator<Item = Chart> {
        let charts = [
            bars("Bulk: throughput", "GB/s", HIGHER, self.throughput),
            bars("Bulk: proxy CPU", "s/GB", LOWER, self.proxy),
        ];
        charts.into_iter().filter(|chart| !matches!(chart, Chart::Bars { groups, .. } if groups.is_empty()))
    }
}

fn bars(title: &str, unit: &str, better: &'static str, groups: Vec<Group>) -> Chart {
    Chart::Bars { title: title.to_owned(), unit: unit.to_owned(), better, groups }
}

fn group<R>(name: String, series: &[Series<R>], of: impl Fn(&R) -> f64) -> Group {
    let bar = |s: &Series<R>| Bar { name: s.contender.clone(), value: s.spread(&of) };
    // Where there is no proxy, its CPU is no bar.
    Group { name, bars: series.iter().map(bar).filter(|bar| bar.value.median > 0.0).collect() }
}

fn bulk_name(case: &Bulk) -> String {
    format!("{} flows, {} KiB", case.flows, case.write >> 10)
}

/// Ours over HAProxy's, round by round.
struct Ratio {
    case: String,
    proxy: Spread,
    throughput: Spread,
    system: Spread,
}

fn pair<R>(series: &[Series<R>]) -> Option<(&Series<R>, &Series<R>)> {
    Some((of(series, "mksgate")?, of(series, "haproxy")?))
}

fn bulk_ratios(case: &Bulk, series: &[Series<BulkRound>]) -> Option<Ratio> {
    let (ours, theirs) = pair(series)?;
    Some(Ratio {
        case: bulk_name(case),
        proxy: ratios(ours, theirs, |r| r.proxy),
        throughput: ratios(ours, theirs, |r| r.gb_per_s),
        system: ratios(ours, theirs, |r| r.system),
    })
}

fn bulk_goals(ratios: &[Ratio], goals: &mut Vec<Goal>) {
    if ratios.is_empty() {
        return;
    }
    let mean = |of: fn(&Ratio) -> f64| geometric_mean(ratios.iter().map(of));
    goals.push(Goal::at_most(SUITE, "bulk: proxy CPU / HAProxy's, mean", mean(|r| r.proxy.median), 0.6));
    let throughput = mean(|r| r.throughput.median);
    goals.push(Goal::at_least(SUITE, "bulk: throughput / HAProxy's, mean", throughput, 1.1));
    goals.push(Goal::at_most(SUITE, "bulk: system CPU / HAProxy's, mean", mean(|r| r.system.median), 0.9));
    for r in ratios {
        let name = |what: &str| format!("bulk, {}: {what} / HAProxy's", r.case);
        goals.push(Goal::at_most(SUITE, name("proxy CPU"), r.proxy, 1.0));
        goals.push(Goal::at_least(SUITE, name("throughput"), r.throughput, 1.0));
        goals.push(Goal::at_most(SUITE, name("system CPU"), r.system, 1.0));
    }
}

fn ping_pong_goals(case: &PingPong, series: &[Series<PingPongRound>], goals: &mut Vec<Goal>) {
    let Some((ours, theirs)) = pair(series) else { return };
    let name = |what: &str| format!("ping-pong, {} flows: {what} / HAProxy's", case.flows);
    goals.push(Goal::at_most(SUITE, name("proxy CPU"), ratios(ours, theirs, |r| r.proxy), 0.6));
    goals.push(Goal::at_least(SUITE, name("throughput"), ratios(ours, theirs, |r| r.per_s), 1.0));
    goals.push(Goal::at_most(SUITE, name("p99"), ratios(ours, theirs, |r| r.p99), 1.0));
}

fn record<R: Serialize>(case: &impl Serialize, series: &[Series<R>]) -> Value {
    json!({ "case": case, "series": series })
}
