//! Churn with faults: consoles that come, go, break off and meet broken hosts for as long as asked, and whether anything of
//! them stays behind in the appliance.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustls::ClientConfig;
use serde::Serialize;
use serde_json::json;
use tokio::sync::mpsc;

use crate::load::appliance::Appliance;
use crate::load::cost::resident;
use crate::load::crowd::{ECHO, TRACE, metronome};
use crate::load::goals::{Goal, median};
use crate::load::rig::Rig;
use crate::load::trace::Random;
use crate::load::visitor::{self, Door, Way};
use crate::run::{Chart, Context, Line, Outcome, Table};
use crate::sim::{Fault, Step};

const SUITE: &str = "soak";
/// Consoles per second.
const RATE: f64 = 40.0;
/// How long the full run and the quick one last, without the warm-up.
const FULL: Duration = Duration::from_secs(600);
const QUICK: Duration = Duration::from_secs(10);
/// Until buffers and tables have the size they will keep.
const WARM_UP: Duration = Duration::from_secs(10);
/// How long the last consoles may take to be gone: the longest deadline of the appliance, and then some.
const CALM: Duration = Duration::from_secs(60);
/// How long a visitor waits before it gives the console up for lost.
const PATIENCE: Duration = Duration::from_secs(30);

const DOORS: [Door; 3] = [Door::Authd, Door::Mks, Door::Web];

/// What the appliance holds.
#[derive(Clone, Copy, Debug, Serialize)]
struct Sample {
    /// Seconds since the start.
    at: f64,
    /// Consoles begun until then.
    consoles: u64,
    resident: u64,
    /// Without the pool's idle pipes.
    files: f64,
    sessions: f64,
    flows: f64,
    before_login: f64,
    pipes: f64,
    hosts: usize,
}

/// What became of the visitors.
#[derive(Default, Serialize)]
struct Fates {
    begun: AtomicU64,
    whole: AtomicU64,
    left_early: AtomicU64,
    left_in_a_burst: AtomicU64,
    refused_as_they_should: AtomicU64,
    /// Good tickets that opened nothing, broken hosts that opened a console.
    wrong: AtomicU64,
}

struct Ways {
    good: Vec<Way>,
    broken: Vec<Way>,
    client: Arc<ClientConfig>,
}

/// Runs it.
pub fn run(context: &Context, out: &mut Outcome) -> Result<()> {
    let mut rig = Rig::start(context, out)?;
    let ways = ways(&mut rig)?;
    let time = context.options.soak.unwrap_or(context.pick(FULL, QUICK));
    let (fates, began) = (Fates::default(), Instant::now());
    churn(context, &rig, &ways, WARM_UP.min(time), &fates, &mut Vec::new())?;
    let before = calm(context, &rig, &fates, began)?;
    let mut samples = vec![before];
    context.watch(|| churn(context, &rig, &ways, time, &fates, &mut samples))?;
    let after = calm(context, &rig, &fates, began)?;
    rig.appliance.alive()?;
    report(&fates, &samples, before, after, out);
    out.raw("soak", json!({ "samples": samples, "before": before, "after": after, "fates": fates }));
    Ok(())
}

fn ways(rig: &mut Rig) -> Result<Ways> {
    let mut ways = Ways { good: Vec::new(), broken: Vec::new(), client: rig.client.clone() };
    for door in DOORS {
        ways.good.push(rig.door(door)?.way);
        for step in [Step::User, Step::Pass, Step::Thumbprint, Step::Connect] {
            for fault in [Fault::Stall, Fault::Close, Fault::Reset, Fault::code(530)] {
                ways.broken.push(rig.broken(door, step, fault)?);
            }
        }
        if door == Door::Web {
            for (step, fault) in [(Step::Tls2, Fault::Reset), (Step::Tls2, Fault::WrongCertificate)] {
                ways.broken.push(rig.broken(door, step, fault)?);
            }
        }
    }
    Ok(ways)
}

/// Lets visitors come for `time`, and samples meanwhile.
fn churn(
    context: &Context,
    rig: &Rig,
    ways: &Ways,
    time: Duration,
    fates: &Fates,
    samples: &mut Vec<Sample>,
) -> Result<()> {
    let (began, over) = (Instant::now(), AtomicBool::new(false));
    let every = (time / 100).clamp(Duration::from_millis(200), Duration::from_secs(6));
    std::thread::scope(|scope| {
        let sampling = scope.spawn(|| -> Result<()> {
            while !over.load(Relaxed) {
                samples.push(sample(&rig.appliance, rig, fates, began)?);
                std::thread::sleep(every);
            }
            Ok(())
        });
        let churned = visitors(context, ways, time, fates);
        over.store(true, Relaxed);
        let sampled = sampling.join().map_err(|_| anyhow::anyhow!("the sampling thread panicked"))?;
        churned.and(sampled)
    })?;
    context.stop.check()
}

fn visitors(context: &Context, ways: &Ways, time: Duration, fates: &Fates) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (arrive, mut arrivals) = mpsc::unbounded_channel();
    let (seed, stop) = (context.options.seed, context.stop.clone());
    std::thread::scope(|scope| {
        scope.spawn(move || {
            metronome(RATE, time, seed, &stop, |_| {
                let _ = arrive.send(());
            })
        });
        let local = tokio::task::LocalSet::new();
        let mut random = Random::new(seed);
        local.block_on(&runtime, async {
            let mut all = tokio::task::JoinSet::new();
            while arrivals.recv().await.is_some() {
                let n = fates.begun.fetch_add(1, Relaxed);
                all.spawn(visit(plan(ways, &mut random), ways.client.clone(), n));
                while let Some(done) = all.try_join_next() {
                    count(done.unwrap_or(Fate::Wrong), fates);
                }
            }
            while let Some(done) = all.join_next().await {
                count(done.unwrap_or(Fate::Wrong), fates);
            }
        });
    });
    Ok(())
}

#[derive(Clone, Copy)]
enum Fate {
    Whole,
    LeftEarly,
    LeftInABurst,
    Refused,
    Wrong,
}

fn count(fate: Fate, fates: &Fates) {
    let counter = match fate {
        Fate::Whole => &fates.whole,
        Fate::LeftEarly => &fates.left_early,
        Fate::LeftInABurst => &fates.left_in_a_burst,
        Fate::Refused => &fates.refused_as_they_should,
        Fate::Wrong => &fates.wrong,
    };
    counter.fetch_add(1, Relaxed);
}

/// What a visitor is going to do.
enum Plan {
    /// Works a while and leaves.
    Stay(Way, Duration),
    /// Is gone before the console stands.
    LeaveEarly(Way, Duration),
    /// Leaves while the screen is being sent: what it did not read makes a reset.
    LeaveInABurst(Way, Duration),
    /// Has a ticket for a host that breaks.
    Broken(Way),
}

fn plan(ways: &Ways, random: &mut Random) -> Plan {
    let good = ways.good[random.below(ways.good.len())].clone();
    let a_while = Duration::from_secs_f64(random.unit() * 2.0);
    match random.below(10) {
        0 => Plan::LeaveEarly(good, Duration::from_secs_f64(random.unit() * 0.01)),
        1 => Plan::LeaveInABurst(good, a_while),
        2 | 3 => Plan::Broken(ways.broken[random.below(ways.broken.len())].clone()),
        _ => Plan::Stay(good, a_while),
    }
}

async fn visit(plan: Plan, client: Arc<ClientConfig>, n: u64) -> Fate {
    let open = |way: Way| async move {
        let opened = tokio::time::timeout(PATIENCE, visitor::open(&way, client)).await;
        opened.ok().and_then(Result::ok).map(|(console, _)| console)
    };
    match plan {
        Plan::Stay(way, a_while) => {
            let Some(mut console) = open(way).await else { return Fate::Wrong };
            let mut got = Vec::new();
            let work = async {
                console.write(&[ECHO]).await?;
                for key in [b"key", b"yek"] {
                    console.write(key).await?;
                    while got.len() % 3 != 0 || got.is_empty() {
                        if !console.read(&mut [0; 64], &mut got).await? {
                            return Err(std::io::ErrorKind::UnexpectedEof.into());
                        }
                    }
                    tokio::time::sleep(a_while / 2).await;
                }
                std::io::Result::Ok(())
            };
            let worked = tokio::time::timeout(PATIENCE, work).await;
            console.close().await;
            if matches!(worked, Ok(Ok(()))) { Fate::Whole } else { Fate::Wrong }
        }
        Plan::LeaveEarly(way, soon) => {
            // Dropped wherever it is.
            let _ = tokio::time::timeout(soon, open(way)).await;
            Fate::LeftEarly
        }
        Plan::LeaveInABurst(way, a_while) => {
            let Some(mut console) = open(way).await else { return Fate::Wrong };
            let mut begin = vec![TRACE];
            begin.extend(n.to_be_bytes());
            let _ = console.write(&begin).await;
            tokio::time::sleep(a_while).await;
            Fate::LeftInABurst
        }
        Plan::Broken(way) => {
            // A browser's handshake is the appliance's own and may be done before its host breaks; nobody ever answers.
            let Some(mut console) = open(way).await else { return Fate::Refused };
            let mut got = Vec::new();
            let ask = async {
                console.write(&[ECHO]).await?;
                console.write(b"key").await?;
                console.read(&mut [0; 64], &mut got).await
            };
            match tokio::time::timeout(PATIENCE, ask).await {
                Ok(Ok(false) | Err(_)) => Fate::Refused,
                Ok(Ok(true)) | Err(_) => Fate::Wrong,
            }
        }
    }
}

fn sample(appliance: &Appliance, rig: &Rig, fates: &Fates, began: Instant) -> Result<Sample> {
    let metrics = appliance.metrics()?;
    Ok(Sample {
        at: began.elapsed().as_secs_f64(),
        consoles: fates.begun.load(Relaxed),
        resident: resident(appliance.pid()),
        files: appliance.open_files() as f64 - 2.0 * metrics.sum("mksgate_flow_pipes", &["idle"]),
        sessions: metrics.sum("mksgate_sessions", &[]),
        flows: metrics.sum("mksgate_flows", &[]),
        before_login: metrics.sum("mksgate_preauth_connections", &[]),
        pipes: metrics.sum("mksgate_flow_pipes", &["in_use"]),
        hosts: rig.host.open_connections(),
    })
}

/// Waits until the last console is gone; what is still there after the longest deadline is the finding.
fn calm(context: &Context, rig: &Rig, fates: &Fates, began: Instant) -> Result<Sample> {
    let limit = Instant::now() + CALM;
    loop {
        context.stop.check()?;
        let now = sample(&rig.appliance, rig, fates, began)?;
        let gone = now.sessions + now.flows + now.before_login + now.hosts as f64 == 0.0;
        if gone || Instant::now() > limit {
            return Ok(now);
        }
        if now.consoles == 0 {
            bail!("no console ever came");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The median of the slopes between all pairs (Theil and Sen): one odd sample moves it little.
fn slope(points: &[(f64, f64)]) -> f64 {
    let pairs = points.iter().enumerate().flat_map(|(n, a)| points[n + 1..].iter().map(move |b| (a, b)));
    median(pairs.filter(|(a, b)| b.0 > a.0).map(|(a, b)| (b.1 - a.1) / (b.0 - a.0)))
}

fn report(fates: &Fates, samples: &[Sample], before: Sample, after: Sample, out: &mut Outcome) {
    let count = |counter: &AtomicU64| counter.load(Relaxed).to_string();
    let mut table = Table::new("visitors", ["", "count"]);
    for (what, counter) in [
        ("begun", &fates.begun),
        ("stayed and left", &fates.whole),
        ("left before the console stood", &fates.left_early),
        ("left while the screen was being sent", &fates.left_in_a_burst),
        ("refused, their host being broken", &fates.refused_as_they_should),
        ("anything else", &fates.wrong),
    ] {
        table.row([what.to_owned(), count(counter)]);
    }
    out.table(table);
    let mut table =
        Table::new("what the appliance holds when all are gone", ["", "after the warm-up", "at the end"]);
    let both: [(&str, fn(&Sample) -> f64); 7] = [
        ("resident KiB", |s| s.resident as f64 / 1024.0),
        ("open files, idle pipes apart", |s| s.files),
        ("sessions", |s| s.sessions),
        ("flows", |s| s.flows),
        ("connections before login", |s| s.before_login),
        ("pipes in use", |s| s.pipes),
        ("connections at the host", |s| s.hosts as f64),
    ];
    for (what, of) in both {
        table.row([what.to_owned(), format!("{:.0}", of(&before)), format!("{:.0}", of(&after))]);
    }
    out.table(table);
    // The first half still fills what is kept.
    let late = &samples[samples.len() / 2..];
    let points: Vec<_> = late.iter().map(|s| (s.consoles as f64 / 1e3, s.resident as f64 / 1024.0)).collect();
    let left = after.sessions + after.flows + after.before_login + after.pipes + after.hosts as f64;
    out.goals.extend([
        Goal::at_most(SUITE, "visitors that met anything unexpected", fates.wrong.load(Relaxed) as f64, 0.0),
        Goal::at_most(SUITE, "open files more than after the warm-up", after.files - before.files, 0.0),
        Goal::at_most(SUITE, "sessions, flows, pipes and connections left", left, 0.0),
        Goal::at_most(
            SUITE,
            "resident KiB per thousand consoles, slope of the second half",
            slope(&points),
            100.0,
        ),
    ]);
    let spread = |s: &Sample| ((s.consoles.max(1)) as f64, (s.resident as f64 / 1024.0).into());
    out.charts.push(Chart::Scale {
        title: "Resident memory while consoles come and go".to_owned(),
        sizes: "consoles until then".to_owned(),
        unit: "KiB".to_owned(),
        logarithmic: false,
        lines: vec![Line { name: "mksgate".to_owned(), points: thin(samples).map(spread).collect() }],
    });
}

/// About twelve samples, for a chart, each twice as far as the one before.
fn thin(samples: &[Sample]) -> impl Iterator<Item = &Sample> {
    let mut next = 1;
    samples.iter().filter(move |s| {
        let take = s.consoles >= next;
        if take {
            next = s.consoles * 3 / 2 + 1;
        }
        take
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slope_is_found_among_odd_samples() {
        let mut points: Vec<_> = (0..20).map(|n| (f64::from(n), 5.0 + 3.0 * f64::from(n))).collect();
        points[7].1 = 900.0;
        assert!((slope(&points) - 3.0).abs() < 1e-9);
        assert!(slope(&[(1.0, 1.0)]).is_nan());
    }
}
