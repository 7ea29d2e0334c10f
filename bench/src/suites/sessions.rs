//! Whole consoles per second and core: TCP, TLS, ticket, limits, the host's dialogue, the first byte, and the end, through the
//! real appliance. Arrivals are open-loop: a console is due at its time whatever became of those before it.

use anyhow::Result;

use crate::load::arrivals::{ArrivalRound, Arrivals, STEPS, carried, failed, near};
use crate::load::goals::Goal;
use crate::load::rig::{Lane, Rig};
use crate::load::visitor::Door;
use crate::run::rounds::of;
use crate::run::{Chart, Context, Line, Outcome, Series, Table};

const SUITE: &str = "sessions";
/// Arrivals per second in the full run.
const RATES: &[f64] = &[50.0, 100.0, 200.0, 400.0];
/// In the quick one.
const QUICK: &[f64] = &[50.0, 200.0];
/// The rate whose percentiles are promised.
const PROMISED: f64 = 100.0;
/// Share of a core beyond which the generator, not the proxy, is the limit.
const BUSY: f64 = 0.85;

/// Measures every door, and the host without a proxy.
pub fn run(context: &Context, out: &mut Outcome) -> Result<()> {
    let mut rig = Rig::start(context, out)?;
    let mut lanes = vec![rig.door(Door::Authd)?, rig.door(Door::Mks)?, rig.door(Door::Web)?];
    if context.wants("direct") {
        lanes.push(rig.direct());
    }
    let (rounds, seconds) = (context.rounds(3, 1), context.seconds(3.0, 1.5));
    let client = rig.client.clone();
    let mut all = Vec::new();
    for &rate in context.pick(RATES, QUICK) {
        let case = Arrivals { rate, seconds, span: 0 };
        let series = context.alternate(out, rounds, &mut lanes, |lane: &mut Lane| {
            case.run(context, &lane.way, lane.pid, &client)
        })?;
        out.table(case.table(&series));
        out.raw("rates", serde_json::json!({ "case": case, "series": series }));
        say_limits(rate, &series, out);
        all.push((rate, series));
    }
    rig.appliance.alive()?;
    inside(&rig, out)?;
    steps_table(&all, out);
    charts(&all, out);
    goals(&all, out);
    Ok(())
}

fn say_limits(rate: f64, series: &[Series<ArrivalRound>], out: &mut Outcome) {
    for s in series {
        if let Some(reason) = s.rounds.iter().flat_map(|r| &r.reasons).next() {
            out.note(format!("{} at {rate}/s: {reason}", s.contender));
        }
        if s.median(|r| r.generator_share) > BUSY {
            out.note(format!(
                "{} at {rate}/s: the generator has its core for itself no longer; latencies there are its own, too",
                s.contender
            ));
        }
    }
}

/// What the appliance itself says of its steps.
fn inside(rig: &Rig, out: &mut Outcome) -> Result<()> {
    let view: serde_json::Value = serde_json::from_str(&rig.appliance.ask(&["hist", "--json"])?)?;
    out.raw("inside", &view);
    let mut table = Table::new("inside the appliance, all rounds, ms", ["", "count", "p50", "p99", "p99.9"]);
    let stages = view["stages"].as_array().or(view.as_array()).cloned().unwrap_or_default();
    for stage in stages {
        let ms = |name: &str| format!("{:.3}", stage[name].as_f64().unwrap_or(f64::NAN) * 1e3);
        table.row([
            stage["stage"].as_str().unwrap_or_default().to_owned(),
            stage["count"].to_string(),
            ms("p50"),
            ms("p99"),
            ms("p999"),
        ]);
    }
    out.table(table);
    Ok(())
}

fn steps_table(all: &[(f64, Vec<Series<ArrivalRound>>)], out: &mut Outcome) {
    let Some((rate, series)) = near(all, PROMISED) else { return };
    let head = std::iter::once("").chain(STEPS);
    let mut table =
        Table::new(format!("steps as the client sees them, medians, ms, at {rate} per second"), head);
    for s in series {
        let cells = (0..STEPS.len()).map(|n| format!("{:.2}", s.median(|r| r.steps[n])));
        table.row(std::iter::once(s.contender.clone()).chain(cells));
    }
    out.table(table);
}

fn charts(all: &[(f64, Vec<Series<ArrivalRound>>)], out: &mut Outcome) {
    let Some((rate, series)) = near(all, PROMISED) else { return };
    let merged = |s: &Series<ArrivalRound>| {
        let mut whole = s.rounds.iter().filter_map(|r| r.met.clone()).map(|met| met.total.clone());
        let mut first = whole.next()?;
        // Of the same bounds, they always add up.
        whole.for_each(|h| first.add(h).unwrap_or_default());
        Some((s.contender.clone(), first))
    };
    let distributions: Vec<_> = series.iter().filter_map(merged).collect();
    for (name, histogram) in &distributions {
        out.histograms.push((format!("{} {rate} per second", name), histogram.clone()));
    }
    let title = format!("Consoles: due until first byte, {rate} per second");
    out.charts.push(Chart::Percentiles { title, series: distributions });
    let names: Vec<String> = series.iter().map(|s| s.contender.clone()).collect();
    let line = |name: &String| Line {
        name: name.clone(),
        points: all
            .iter()
            .filter_map(|(rate, series)| Some((*rate, of(series, name)?.spread(|r| r.total[2]))))
            .collect(),
    };
    out.charts.push(Chart::Scale {
        title: "Consoles: 99th percentile of due until first byte".to_owned(),
        sizes: "consoles per second".to_owned(),
        unit: "ms".to_owned(),
        logarithmic: true,
        lines: names.iter().map(line).collect(),
    });
}

fn goals(all: &[(f64, Vec<Series<ArrivalRound>>)], out: &mut Outcome) {
    for door in [Door::Authd, Door::Mks, Door::Web] {
        let name = format!("mksgate {}", door.as_str());
        let mine: Vec<_> = all.iter().filter_map(|(rate, s)| Some((*rate, of(s, &name)?))).collect();
        let Some((_, first)) = mine.first() else { continue };
        out.goals.push(Goal::at_most(
            SUITE,
            format!("{name}: failed consoles at {}/s", mine[0].0),
            failed(first) as f64,
            0.0,
        ));
        // What a core carries, from the CPU of the busiest rate that was carried.
        let last = mine.iter().rev().find(|(rate, s)| carried(s, *rate));
        let (rate, s) = last.unwrap_or(&mine[0]);
        let per_core = s.spread(|r| 1e3 / r.proxy);
        let bound = if door == Door::Web { 600.0 } else { 1000.0 };
        let name = format!("{name}: consoles per second and core, by CPU at {rate}/s");
        out.goals.push(Goal::at_least(SUITE, name, per_core, bound));
    }
}
