//! CPU and memory per console as their number grows, and what one host can carry.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Result;
use mksgate::flow::FlowConfig;
use serde::Serialize;
use serde_json::json;

use crate::load::cost::{Reading, cores, own, resident};
use crate::load::crowd::Crowd;
use crate::load::goals::Goal;
use crate::load::rig::Rig;
use crate::load::visitor::Door;
use crate::report::goals::figure;
use crate::run::facts::{Host, fitting};
use crate::run::rounds::of;
use crate::run::{Chart, Context, Line, Outcome, Series, Skip, Spread, Table, ratios};

const SUITE: &str = "scale";
/// Consoles in the full run, and in the quick one.
const SIZES: &[usize] = &[1, 10, 100, 1000, 5000];
const QUICK: &[usize] = &[1, 100];
/// Most consoles through the WebSocket door: their TLS is the generator's work, too.
const WEB: usize = 1000;
/// Until every desktop has begun.
const SETTLE: Duration = Duration::from_secs(1);
/// Share of a core beyond which the generator, not the proxy, is the limit.
const BUSY: f64 = 0.85;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Through {
    Door(Door),
    Haproxy,
}

impl fmt::Display for Through {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Door(door) => write!(f, "mksgate {}", door.as_str()),
            Self::Haproxy => f.write_str("haproxy"),
        }
    }
}

/// One round: a fresh proxy, so many consoles.
#[derive(Clone, Debug, Serialize)]
struct Round {
    consoles: usize,
    /// Share of a core per console.
    share: f64,
    /// Proxy CPU per update, µs.
    per_update: f64,
    /// Resident memory per console, KiB.
    resident: f64,
    /// Kernel memory of all TCP sockets of the machine, per console, KiB (two sockets of four are the proxy's).
    kernel: f64,
    /// Open files per console.
    files: f64,
    /// Pooled pipes per console, those in use and those that were: two files each, which `files` has too.
    pipes: f64,
    updates: f64,
    megabytes: f64,
    /// 50th and 99th percentile of how late updates were, ms.
    late: [f64; 2],
    lost: u64,
    proxy_share: f64,
    generator_share: f64,
}

/// Measures the curve.
pub fn run(context: &Context, out: &mut Outcome) -> Result<()> {
    let (rounds, seconds) = (context.rounds(2, 1), context.seconds(6.0, 2.0));
    let mut all = Vec::new();
    let most = fitting(2).min(context.options.sessions.unwrap_or(usize::MAX));
    for &wanted in context.pick(SIZES, QUICK) {
        let consoles = wanted.min(most);
        if consoles < wanted {
            out.note(format!("{wanted} consoles wanted; {consoles} fit into the limits of this run"));
        }
        let mut through = vec![Through::Door(Door::Authd)];
        if consoles <= WEB {
            through.push(Through::Door(Door::Web));
        }
        if context.wants("haproxy") {
            through.push(Through::Haproxy);
        }
        let mut notes = Outcome::default();
        let series = context.alternate(out, rounds, &mut through, |through| {
            one(context, *through, consoles, seconds, &mut notes)
        })?;
        for note in notes.notes {
            if !out.notes.contains(&note) {
                out.notes.push(note);
            }
        }
        out.versions.extend(notes.versions);
        out.table(table(consoles, &series));
        out.raw("sizes", json!({ "consoles": consoles, "series": series }));
        say_limits(consoles, &series, out);
        all.push((consoles, series));
        if consoles < wanted {
            break;
        }
    }
    capacity(&all, out);
    goals(&all, out);
    charts(&all, out);
    Ok(())
}

fn one(
    context: &Context,
    through: Through,
    consoles: usize,
    seconds: f64,
    out: &mut Outcome,
) -> Result<Round> {
    let mut rig = Rig::start(context, out)?;
    let lane = match through {
        Through::Door(door) => rig.door(door)?,
        Through::Haproxy => match rig.haproxy(context)? {
            Some(lane) => lane,
            None => return Err(Skip::because("haproxy is not installed").into()),
        },
    };
    let pid = lane.pid.unwrap_or_default();
    let files = || std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count) as f64;
    // A first console pays for the first pages of everything. Its own two sockets must be gone before anything is counted.
    let first = Crowd::open(context, &lane.way, 1, &rig.client)?;
    let with_one = files();
    drop(first);
    let limit = Instant::now() + SETTLE;
    while files() > with_one - 2.0 && Instant::now() < limit {
        context.stop.sleep(Duration::from_millis(5))?;
    }
    let (memory, kernel, open) = (resident(pid), kernel_memory(), files());
    let crowd = Crowd::open(context, &lane.way, consoles, &rig.client)?;
    context.stop.sleep(SETTLE)?;
    crowd.take()?;
    let (before, generator) = (Reading::take(lane.pid), own());
    context.stop.sleep(Duration::from_secs_f64(seconds))?;
    let (cost, generator) = (before.until(&Reading::take(lane.pid)), own() - generator);
    let tally = crowd.take()?;
    let each = |n: f64| n / consoles as f64;
    let late = |q| tally.late.value_at_quantile(q) as f64 / 1e6;
    Ok(Round {
        consoles,
        share: each(cost.proxy / cost.wall),
        // Of a silent while there is nothing to tell.
        per_update: if tally.updates > 0 { cost.proxy * 1e6 / tally.updates as f64 } else { f64::NAN },
        resident: each(resident(pid).saturating_sub(memory) as f64) / 1024.0,
        kernel: each((kernel_memory() - kernel).max(0.0)) / 1024.0,
        files: each(files() - open),
        pipes: if through == Through::Haproxy {
            0.0
        } else {
            each(rig.appliance.metrics()?.sum("mksgate_flow_pipes", &[]))
        },
        updates: tally.updates as f64 / cost.wall,
        megabytes: tally.bytes as f64 / cost.wall / 1e6,
        late: [late(0.5), late(0.99)],
        lost: tally.lost,
        proxy_share: cost.proxy / cost.wall,
        generator_share: generator / cost.wall,
    })
}

/// Bytes that TCP holds in buffers (proc_net_sockstat: `mem`, in pages).
fn kernel_memory() -> f64 {
    let text = std::fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
    let tcp = text.lines().find(|line| line.starts_with("TCP:")).unwrap_or_default();
    let words: Vec<&str> = tcp.split_whitespace().collect();
    let pages = words.windows(2).find(|w| w[0] == "mem").and_then(|w| w[1].parse::<f64>().ok());
    pages.unwrap_or(0.0) * 4096.0
}

fn table(consoles: usize, series: &[Series<Round>]) -> Table {
    let head = [
        "",
        "CPU per console",
        "per update µs",
        "resident KiB",
        "kernel KiB",
        "files",
        "updates/s",
        "MB/s",
        "late p50 ms",
        "late p99 ms",
        "proxy core",
        "generator core",
    ];
    let mut table = Table::new(format!("{consoles} consoles that play"), head);
    for s in series {
        table.row([
            s.contender.clone(),
            format!("{:.4}%", s.median(|r| r.share) * 100.0),
            figure(s.median(|r| r.per_update)),
            format!("{:.1}", s.median(|r| r.resident)),
            format!("{:.1}", s.median(|r| r.kernel)),
            format!("{:.1}", s.median(|r| r.files)),
            format!("{:.0}", s.median(|r| r.updates)),
            format!("{:.1}", s.median(|r| r.megabytes)),
            format!("{:.2}", s.median(|r| r.late[0])),
            format!("{:.2}", s.median(|r| r.late[1])),
            format!("{:.0}%", s.median(|r| r.proxy_share) * 100.0),
            format!("{:.0}%", s.median(|r| r.generator_share) * 100.0),
        ]);
    }
    table
}

fn say_limits(consoles: usize, series: &[Series<Round>], out: &mut Outcome) {
    for s in series {
        if s.median(|r| r.generator_share) > BUSY {
            out.note(format!(
                "{} with {consoles} consoles: the generator fills its core; lateness there is its own, too",
                s.contender
            ));
        }
        let lost = s.rounds.iter().map(|r| r.lost).sum::<u64>();
        if lost > 0 {
            out.note(format!("{} with {consoles} consoles: {lost} broke", s.contender));
        }
    }
}

type All = [(usize, Vec<Series<Round>>)];

/// The largest size that a way was measured at.
fn largest<'a>(all: &'a All, name: &str) -> Option<(usize, &'a Series<Round>)> {
    all.iter().rev().find_map(|(consoles, series)| Some((*consoles, of(series, name)?)))
}

fn at<'a>(all: &'a All, consoles: usize, name: &str) -> Option<&'a Series<Round>> {
    all.iter().find(|(n, _)| *n == consoles).and_then(|(_, series)| of(series, name))
}

/// What the largest size says of this whole host. Extrapolated, and called so.
fn capacity(all: &All, out: &mut Outcome) {
    let host = Host::here();
    let head = ["", "measured at", "cores", "open files", "pipes", "memory", "next limit"];
    // One pool per flow thread, one thread per core. Past it nobody is refused: bulk directions are copied.
    let pool = (FlowConfig::default().max_pipes * cores()) as f64;
    let title = "consoles that this host could carry, EXTRAPOLATED from the largest size: not measured";
    let mut table = Table::new(title, head);
    for name in ["mksgate authd", "mksgate web"] {
        let Some((consoles, s)) = largest(all, name) else { continue };
        let memory = s.median(|r| r.resident + r.kernel / 2.0) * 1024.0;
        let limits = [
            // To three quarters: a full core has no latency to show.
            ("cores", 0.75 * cores() as f64 / s.median(|r| r.share)),
            ("open files", host.open_files as f64 / s.median(|r| r.files)),
            ("pipes", pool / s.median(|r| r.pipes)),
            ("memory", 0.75 * host.memory as f64 / memory),
        ];
        let next = limits.into_iter().min_by(|a, b| a.1.total_cmp(&b.1)).map_or("", |(what, _)| what);
        let cells =
            limits.map(|(_, n)| if n.is_finite() { format!("{n:.0}") } else { "no limit met".into() });
        let head = [name.to_owned(), consoles.to_string()];
        table.row(head.into_iter().chain(cells).chain([next.to_owned()]));
        out.raw(
            "extrapolated",
            json!({ "through": name, "measured_at": consoles, "limits": limits, "next": next }),
        );
    }
    out.table(table);
}

fn goals(all: &All, out: &mut Outcome) {
    for name in ["mksgate authd", "mksgate web"] {
        let Some((most, last)) = largest(all, name) else { continue };
        if let Some(hundred) = at(all, 100, name)
            && most > 100
        {
            let flat = |of: fn(&Round) -> f64| ratios(last, hundred, of);
            let goal = |what: &str| format!("{name}: {what} with {most} consoles / with 100");
            out.goals.push(Goal::at_most(SUITE, goal("CPU per update"), flat(|r| r.per_update), 1.2));
            out.goals.push(Goal::at_most(SUITE, goal("resident per console"), flat(|r| r.resident), 1.2));
        }
        let lost = last.rounds.iter().map(|r| r.lost as f64).sum::<f64>();
        out.goals.push(Goal::at_most(SUITE, format!("{name}: consoles lost of {most}"), lost, 0.0));
    }
    // Below, what a process has once (buffers of the ring, tables) is most of it.
    for (consoles, series) in all.iter().filter(|(consoles, _)| *consoles >= 1000) {
        let (Some(ours), Some(theirs)) = (of(series, "mksgate authd"), of(series, "haproxy")) else {
            continue;
        };
        let name = |what: &str| format!("{consoles} consoles: {what} / HAProxy's");
        let ratio = |of: fn(&Round) -> f64| ratios(ours, theirs, of);
        out.goals.push(Goal::at_most(SUITE, name("CPU per update"), ratio(|r| r.per_update), 0.8));
        out.goals.push(Goal::at_most(SUITE, name("resident per console"), ratio(|r| r.resident), 0.6));
    }
}

fn charts(all: &All, out: &mut Outcome) {
    let names = ["mksgate authd", "mksgate web", "haproxy"];
    let mut chart = |title: &str, unit: &str, of_round: fn(&Round) -> f64| {
        let line = |name: &str| Line {
            name: name.to_owned(),
            points: all
                .iter()
                .filter_map(|(n, series)| Some((*n as f64, of(series, name)?.spread(of_round))))
                .filter(|(_, spread): &(f64, Spread)| spread.median > 0.0)
                .collect(),
        };
        out.charts.push(Chart::Scale {
            title: title.to_owned(),
            sizes: "consoles".to_owned(),
            unit: unit.to_owned(),
            logarithmic: true,
            lines: names.iter().map(|name| line(name)).filter(|line| !line.points.is_empty()).collect(),
        });
    };
    chart("Proxy CPU per update", "µs", |r| r.per_update);
    chart("Resident memory per console", "KiB", |r| r.resident);
    chart("How late updates are, 99th percentile", "ms", |r| r.late[1]);
}
