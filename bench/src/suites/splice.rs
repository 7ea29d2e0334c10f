//! The splice question: which way of moving bytes between two sockets costs least, for which sizes and how many flows?
//!
//! Six bare ways, each a process of its own with one thread, and the engine that the appliance uses. 32 bytes are played as
//! ping-pong, where a byte costs nothing and a turn everything; larger sizes as bulk in writes of that size.

use anyhow::Result;
use mksgate::flow::study::Way;
use serde_json::json;

use crate::load::bulk::{Bulk, BulkRound};
use crate::load::contender::{Contender, MKSGATE, Running};
use crate::load::goals::{Goal, geometric_mean};
use crate::load::pingpong::{PingPong, PingPongRound};
use crate::load::wire;
use crate::run::facts::fitting;
use crate::run::rounds::of;
use crate::run::{Chart, Context, Line, Outcome, Series, Table};

const SUITE: &str = "splice";
const SIZES: &[usize] = &[1 << 10, 4 << 10, 16 << 10, 64 << 10, 1 << 20];
const FLOWS: &[usize] = &[1, 10, 100, 1000];
const QUICK_SIZES: &[usize] = &[4 << 10, 64 << 10];
const QUICK_FLOWS: &[usize] = &[1, 100];

type Bulks = Vec<(usize, usize, Vec<Series<BulkRound>>)>;
type Pings = Vec<(usize, Vec<Series<PingPongRound>>)>;

/// Measures every way in every case, each case with fresh processes.
pub fn run(context: &Context, out: &mut Outcome) -> Result<()> {
    let (rounds, seconds) = (context.rounds(2, 1), context.seconds(0.4, 0.3));
    let (mut bulks, mut pings): (Bulks, Pings) = (Vec::new(), Vec::new());
    // Both ends of a flow are this process's.
    let most = fitting(2).min(context.options.sessions.unwrap_or(usize::MAX));
    for &wanted in context.pick(FLOWS, QUICK_FLOWS) {
        let flows = wanted.min(most);
        if flows < wanted {
            out.note(format!("{wanted} flows wanted; {flows} fit into the limits of this run"));
        }
        let (listener, backend) = wire::listen()?;
        let mut ways = start(context, out, backend)?;
        let series = context
            .alternate(out, rounds, &mut ways, |way| PingPong { flows }.run(way, &listener, seconds))?;
        out.raw("ping-pong", json!({ "flows": flows, "series": series }));
        pings.push((flows, series));
        for &write in context.pick(SIZES, QUICK_SIZES) {
            let mut ways = start(context, out, backend)?;
            let case = Bulk { flows, write };
            let series =
                context.alternate(out, rounds, &mut ways, |way| case.run(way, &listener, seconds))?;
            out.raw("bulk", json!({ "case": case, "series": series }));
            bulks.push((flows, write, series));
        }
        if flows < wanted {
            break;
        }
    }
    tables(&bulks, &pings, out);
    charts(&bulks, &pings, out);
    goals(&bulks, &pings, out);
    Ok(())
}

fn start(context: &Context, out: &mut Outcome, backend: std::net::SocketAddr) -> Result<Vec<Running>> {
    let all = Way::ALL.map(Contender::Study).into_iter().chain([MKSGATE]);
    let mut ways = Vec::new();
    for contender in all {
        let started = context.peer(contender.peer_name(), out, || contender.start(backend, context.dir()));
        ways.extend(started);
    }
    Ok(ways)
}

fn names() -> impl Iterator<Item = &'static str> {
    Way::ALL.into_iter().map(Way::as_str).chain(["mksgate"])
}

fn size(bytes: usize) -> String {
    if bytes >= 1 << 20 { format!("{} MiB", bytes >> 20) } else { format!("{} KiB", bytes >> 10) }
}

fn tables(bulks: &Bulks, pings: &Pings, out: &mut Outcome) {
    let head = || std::iter::once("").chain(names());
    let mut table = Table::new("bulk: GB/s · proxy CPU s/GB · system CPU s/GB", head());
    for (flows, write, series) in bulks {
        let cell = |name| {
            of(series, name).map_or_else(String::new, |s| {
                let [gb, proxy, system] =
                    [s.median(|r| r.gb_per_s), s.median(|r| r.proxy), s.median(|r| r.system)];
                format!("{gb:.2} · {proxy:.2} · {system:.2}")
            })
        };
        table.row(std::iter::once(format!("{flows} flows, {}", size(*write))).chain(names().map(cell)));
    }
    out.table(table);
    let mut table =
        Table::new("ping-pong of 32 bytes: thousand round trips/s · proxy CPU µs · p99 µs", head());
    for (flows, series) in pings {
        let cell = |name| {
            of(series, name).map_or_else(String::new, |s| {
                let [rate, proxy, p99] = [s.median(|r| r.per_s), s.median(|r| r.proxy), s.median(|r| r.p99)];
                format!("{:.1} · {proxy:.1} · {p99:.0}", rate / 1e3)
            })
        };
        table.row(std::iter::once(format!("{flows} flows")).chain(names().map(cell)));
    }
    out.table(table);
}

fn charts(bulks: &Bulks, pings: &Pings, out: &mut Outcome) {
    let mut flows: Vec<usize> = bulks.iter().map(|(flows, ..)| *flows).collect();
    flows.dedup();
    let mut chart = |title: String, unit: &str, of_round: fn(&BulkRound) -> f64, flows: usize| {
        let line = |name: &str| Line {
            name: name.to_owned(),
            points: bulks
                .iter()
                .filter(|(n, ..)| *n == flows)
                .filter_map(|(_, write, series)| {
                    Some((*write as f64 / 1024.0, of(series, name)?.spread(of_round)))
                })
                .collect(),
        };
        out.charts.push(Chart::Scale {
            title,
            sizes: "KiB per write".to_owned(),
            unit: unit.to_owned(),
            logarithmic: true,
            lines: names().map(line).collect(),
        });
    };
    for n in flows {
        chart(format!("Bulk, {n} flows: proxy CPU"), "s/GB", |r| r.proxy, n);
        chart(format!("Bulk, {n} flows: throughput"), "GB/s", |r| r.gb_per_s, n);
    }
    let line = |name: &str| Line {
        name: name.to_owned(),
        points: pings
            .iter()
            .filter_map(|(flows, series)| Some((*flows as f64, of(series, name)?.spread(|r| r.proxy))))
            .collect(),
    };
    out.charts.push(Chart::Scale {
        title: "Ping-pong of 32 bytes: proxy CPU per round trip".to_owned(),
        sizes: "flows".to_owned(),
        unit: "µs".to_owned(),
        logarithmic: true,
        lines: names().map(line).collect(),
    });
}

/// The engine chooses a way by what a direction does; it should not be far from whoever is best at it.
fn goals(bulks: &Bulks, pings: &Pings, out: &mut Outcome) {
    fn beside_best<R>(series: &[Series<R>], of_round: fn(&R) -> f64) -> Option<f64> {
        let cost = |name| of(series, name).map(|s| s.median(of_round));
        let best = Way::ALL.into_iter().filter_map(|way| cost(way.as_str())).fold(f64::INFINITY, f64::min);
        Some(cost("mksgate")? / best)
    }
    let bulk: Vec<f64> = bulks.iter().filter_map(|(.., series)| beside_best(series, |r| r.proxy)).collect();
    let ping: Vec<f64> = pings.iter().filter_map(|(_, series)| beside_best(series, |r| r.proxy)).collect();
    for (what, ratios) in [("bulk", bulk), ("ping-pong", ping)] {
        if !ratios.is_empty() {
            let name = format!("{what}: mksgate's CPU / the best way's of each case, mean");
            out.goals.push(Goal::at_most(SUITE, name, geometric_mean(ratios), 1.25));
        }
    }
}
