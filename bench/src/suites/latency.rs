//! Keystroke echo through each door while other consoles play their desktops, and what is added to the same without a proxy.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use hdrhistogram::Histogram;
use rustls::ClientConfig;
use serde::Serialize;
use serde_json::json;

use crate::load::cost::{Reading, own};
use crate::load::crowd::{Crowd, Keys, histogram};
use crate::load::goals::Goal;
use crate::load::rig::{Lane, Rig};
use crate::load::visitor::Door;
use crate::run::facts::fitting;
use crate::run::rounds::{differences, of};
use crate::run::{Chart, Context, Line, Outcome, Series, Table, ratios};

const SUITE: &str = "latency";
/// Other consoles in the full run, and in the quick one.
const OTHERS: &[usize] = &[0, 100, 1000];
const QUICK: &[usize] = &[0, 100];
/// Who types: enough keys for a 99.9th percentile in some seconds, few enough to be no load.
const KEYS: Keys = Keys { consoles: 10, rate: 500.0 };
/// Until the others' desktops have begun.
const SETTLE: Duration = Duration::from_millis(700);

/// One round.
#[derive(Clone, Debug, Serialize)]
struct Round {
    /// Keys that were echoed, and those that were not.
    echoed: u64,
    lost: u64,
    /// 50th, 99th, 99.9th percentile and maximum, ms.
    echo: [f64; 4],
    /// Updates of the others per second, and MB/s.
    updates: f64,
    megabytes: f64,
    /// Consoles of the others that broke.
    broken: u64,
    /// 99th percentile of how late the others' updates were, ms.
    late: f64,
    /// Shares of a core.
    proxy_share: f64,
    generator_share: f64,
    #[serde(skip)]
    times: Option<Histogram<u64>>,
}

/// Measures every door beside the host itself and HAProxy.
pub fn run(context: &Context, out: &mut Outcome) -> Result<()> {
    let mut rig = Rig::start(context, out)?;
    let mut lanes = vec![rig.direct(), rig.door(Door::Authd)?, rig.door(Door::Mks)?, rig.door(Door::Web)?];
    lanes.extend(context.peer("haproxy", out, || rig.haproxy(context)));
    let (rounds, seconds) = (context.rounds(3, 1), context.seconds(4.0, 1.5));
    let mut all = Vec::new();
    for &wanted in context.pick(OTHERS, QUICK) {
        // Two sockets of a console are here (viewer and machine), two in the proxy.
        let others = wanted.min(fitting(2)).min(context.options.sessions.unwrap_or(usize::MAX));
        if others < wanted {
            out.note(format!("{wanted} others wanted; {others} fit into the limits of this run"));
        }
        let client = rig.client.clone();
        let series = context.alternate(out, rounds, &mut lanes, |lane: &mut Lane| {
            one(context, lane, others, seconds, &client)
        })?;
        out.table(table(others, &series));
        out.raw("others", json!({ "others": others, "series": series }));
        goals(others, &series, out);
        all.push((others, series));
    }
    rig.appliance.alive()?;
    charts(&all, out)
}

fn one(
    context: &Context,
    lane: &Lane,
    others: usize,
    seconds: f64,
    client: &Arc<ClientConfig>,
) -> Result<Round> {
    let crowd = match others {
        0 => None,
        _ => Some(Crowd::open(context, &lane.way, others, client)?),
    };
    context.stop.sleep(SETTLE)?;
    crowd.as_ref().map(Crowd::take).transpose()?;
    let (before, generator) = (Reading::take(lane.pid), own());
    let (times, lost) = KEYS.press(context, &lane.probe, client, Duration::from_secs_f64(seconds))?;
    let (cost, generator) = (before.until(&Reading::take(lane.pid)), own() - generator);
    context.stop.check()?;
    let tally = crowd.as_ref().map(Crowd::take).transpose()?;
    let at = |q| times.value_at_quantile(q) as f64 / 1e6;
    let per_s = |n: Option<u64>| n.unwrap_or(0) as f64 / cost.wall;
    Ok(Round {
        echoed: times.len(),
        lost,
        echo: [at(0.5), at(0.99), at(0.999), times.max() as f64 / 1e6],
        updates: per_s(tally.as_ref().map(|t| t.updates)),
        megabytes: per_s(tally.as_ref().map(|t| t.bytes)) / 1e6,
        broken: tally.as_ref().map_or(0, |t| t.lost),
        late: tally.as_ref().map_or(0.0, |t| t.late.value_at_quantile(0.99) as f64 / 1e6),
        proxy_share: cost.proxy / cost.wall,
        generator_share: generator / cost.wall,
        times: Some(times),
    })
}

fn table(others: usize, series: &[Series<Round>]) -> Table {
    let head = [
        "",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "added p50",
        "added p99",
        "added p99.9",
        "lost",
        "others: MB/s",
        "updates late p99",
        "proxy core",
        "generator core",
    ];
    let mut table = Table::new(format!("keystroke echo, {others} other consoles"), head);
    let direct = of(series, "direct");
    for s in series {
        let ms = |n: usize| format!("{:.3}", s.median(|r| r.echo[n]));
        let added = |n: usize| match direct {
            Some(direct) if direct.contender != s.contender => {
                format!("{:+.3}", differences(s, direct, |r| r.echo[n]).median)
            }
            _ => String::new(),
        };
        table.row([
            s.contender.clone(),
            ms(0),
            ms(1),
            ms(2),
            added(0),
            added(1),
            added(2),
            format!("{:.0}", s.rounds.iter().map(|r| r.lost as f64).sum::<f64>()),
            format!("{:.1}", s.median(|r| r.megabytes)),
            format!("{:.2}", s.median(|r| r.late)),
            format!("{:.0}%", s.median(|r| r.proxy_share) * 100.0),
            format!("{:.0}%", s.median(|r| r.generator_share) * 100.0),
        ]);
    }
    table
}

fn goals(others: usize, series: &[Series<Round>], out: &mut Outcome) {
    let Some(direct) = of(series, "direct") else { return };
    for (door, p50, p99) in [(Door::Authd, 0.1, 1.0), (Door::Mks, 0.1, 1.0), (Door::Web, 0.15, 2.0)] {
        let Some(ours) = of(series, &format!("mksgate {}", door.as_str())) else { continue };
        let name = |what: &str| format!("{}, {others} others: {what}", ours.contender);
        let added = |n: usize| differences(ours, direct, |r| r.echo[n]);
        out.goals.push(Goal::at_most(SUITE, name("added p50, ms"), added(0), p50));
        out.goals.push(Goal::at_most(SUITE, name("added p99, ms"), added(1), p99));
        let lost = ours.rounds.iter().map(|r| (r.lost + r.broken) as f64).sum::<f64>();
        out.goals.push(Goal::at_most(SUITE, name("keys and consoles lost"), lost, 0.0));
    }
    if let (Some(ours), Some(theirs)) = (of(series, "mksgate authd"), of(series, "haproxy")) {
        let name = |what: &str| format!("mksgate authd, {others} others: {what} / HAProxy's");
        out.goals.push(Goal::at_most(SUITE, name("echo p50"), ratios(ours, theirs, |r| r.echo[0]), 1.0));
        out.goals.push(Goal::at_most(SUITE, name("echo p99"), ratios(ours, theirs, |r| r.echo[1]), 1.0));
    }
}

fn charts(all: &[(usize, Vec<Series<Round>>)], out: &mut Outcome) -> Result<()> {
    for (others, series) in all {
        let mut distributions = Vec::new();
        for s in series {
            let mut whole = histogram()?;
            for times in s.rounds.iter().filter_map(|r| r.times.as_ref()) {
                whole.add(times)?;
            }
            out.histograms.push((format!("{} {others} others", s.contender), whole.clone()));
            distributions.push((s.contender.clone(), whole));
        }
        let title = format!("Keystroke echo, {others} other consoles");
        out.charts.push(Chart::Percentiles { title, series: distributions });
    }
    let names: Vec<String> = all
        .first()
        .map(|(_, series)| series.iter().map(|s| s.contender.clone()).collect())
        .unwrap_or_default();
    let line = |name: &String| Line {
        name: name.clone(),
        points: all
            .iter()
            .filter_map(|(others, series)| Some((*others as f64, of(series, name)?.spread(|r| r.echo[1]))))
            .collect(),
    };
    out.charts.push(Chart::Scale {
        title: "Keystroke echo: 99th percentile".to_owned(),
        sizes: "other consoles".to_owned(),
        unit: "ms".to_owned(),
        logarithmic: true,
        lines: names.iter().map(line).collect(),
    });
    Ok(())
}
