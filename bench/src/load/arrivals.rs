//! Consoles that arrive at their own times, whatever became of those before them.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use hdrhistogram::Histogram;
use rustls::ClientConfig;
use serde::Serialize;
use tokio::sync::mpsc;

use super::cost::{Reading, own};
use super::crowd::{ECHO, histogram, metronome, now};
use super::visitor::{self, Steps, Way};
use crate::run::{Context, Series, Table};

/// Consoles under way at once; who comes beyond that is sent away and counted, so that a proxy that stands still does not
/// take the generator with it.
const UNDER_WAY: usize = 2_000;
/// How long a console may take before it has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// A rate counts as carried if so much of what was due came to its first byte.
const CARRIED: f64 = 0.98;

/// A case.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Arrivals {
    /// Per second.
    pub rate: f64,
    /// For how long, seconds.
    pub seconds: f64,
    /// Which of all such spans: each has arrival times of its own.
    pub span: u64,
}

/// What arriving consoles met.
#[derive(Clone, Debug)]
pub struct Met {
    /// From the time at which a console was due until its first byte came back, nanoseconds.
    pub total: Histogram<u64>,
    /// The steps: TCP, TLS, ticket and limits, host, first byte.
    pub steps: [Histogram<u64>; 5],
    /// Those that did not come to a first byte; the first reasons.
    pub failed: u64,
    /// Why.
    pub reasons: Vec<String>,
    /// Sent away by the generator itself.
    pub shed: u64,
}

/// Names of [`Met::steps`].
pub const STEPS: [&str; 5] = ["TCP and banner", "TLS", "ticket and limits", "host", "first byte"];

/// One round.
#[derive(Clone, Debug, Serialize)]
pub struct ArrivalRound {
    /// Consoles that were due.
    pub due: u64,
    /// Consoles that came to their first byte, per second.
    pub per_s: f64,
    /// Consoles that failed, or were not even begun.
    pub failed: u64,
    /// Why the first ones failed.
    pub reasons: Vec<String>,
    /// Proxy CPU per console, ms.
    pub proxy: f64,
    /// Share of a core that the proxy used.
    pub proxy_share: f64,
    /// Share of a core that generator and hosts used.
    pub generator_share: f64,
    /// Due until first byte: 50th, 90th, 99th, 99.9th percentile, ms.
    pub total: [f64; 4],
    /// Medians of the steps, ms.
    pub steps: [f64; 5],
    /// All of it.
    #[serde(skip)]
    pub met: Option<Arc<Met>>,
}

impl Arrivals {
    /// Runs one round through a way; `pid` is the proxy's.
    pub fn run(
        self,
        context: &Context,
        way: &Way,
        pid: Option<u32>,
        config: &Arc<ClientConfig>,
    ) -> Result<ArrivalRound> {
        let empty = histogram()?;
        let met = Met {
            total: empty.clone(),
            steps: std::array::from_fn(|_| empty.clone()),
            failed: 0,
            reasons: Vec::new(),
            shed: 0,
        };
        let met = Arc::new(Mutex::new(met));
        let (arrive, arrivals) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (before, generator) = (Reading::take(pid), own());
        let (rate, stop) = (self.rate, context.stop.clone());
        let seed = context.options.seed.wrapping_add(self.span << 32);
        let time = Duration::from_secs_f64(self.seconds);
        let door = std::thread::Builder::new().name("metronome".to_owned()).spawn(move || {
            metronome(rate, time, seed, &stop, |stamp| {
                let _ = arrive.send(stamp);
            })
        })?;
        runtime.block_on(receive(arrivals, way, config, &met));
        let due = door.join().map_err(|_| anyhow::anyhow!("the metronome panicked"))?;
        let (cost, generator) = (before.until(&Reading::take(pid)), own() - generator);
        drop(runtime);
        context.stop.check()?;
        let met = met.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let done = met.total.len() as f64;
        let at = |h: &Histogram<u64>, q| h.value_at_quantile(q) as f64 / 1e6;
        Ok(ArrivalRound {
            due,
            per_s: done / cost.wall,
            failed: met.failed + met.shed,
            reasons: met.reasons.clone(),
            proxy: cost.proxy * 1e3 / done,
            proxy_share: cost.proxy / cost.wall,
            generator_share: generator / cost.wall,
            total: [0.5, 0.9, 0.99, 0.999].map(|q| at(&met.total, q)),
            steps: std::array::from_fn(|n| at(&met.steps[n], 0.5)),
            met: Some(Arc::new(met)),
        })
    }

    /// All rounds by contender.
    pub fn table(self, series: &[Series<ArrivalRound>]) -> Table {
        let head = [
            "",
            "done/s",
            "failed",
            "p50 ms",
            "p90 ms",
            "p99 ms",
            "p99.9 ms",
            "proxy CPU ms",
            "proxy core",
            "generator core",
        ];
        let title = format!("{} consoles per second, due until first byte", self.rate);
        let mut table = Table::new(title, head);
        for s in series {
            let ms = |n: usize| format!("{:.2}", s.median(|r| r.total[n]));
            table.row([
                s.contender.clone(),
                format!("{:.0}", s.median(|r| r.per_s)),
                failed(s).to_string(),
                ms(0),
                ms(1),
                ms(2),
                ms(3),
                format!("{:.2}", s.median(|r| r.proxy)),
                format!("{:.0}%", s.median(|r| r.proxy_share) * 100.0),
                format!("{:.0}%", s.median(|r| r.generator_share) * 100.0),
            ]);
        }
        table
    }
}

/// The series of this rate, or of the nearest one.
pub fn near<R>(all: &[(f64, Vec<Series<R>>)], wanted: f64) -> Option<(f64, &Vec<Series<R>>)> {
    let far = |rate: f64| (rate - wanted).abs();
    all.iter().min_by(|a, b| far(a.0).total_cmp(&far(b.0))).map(|(rate, series)| (*rate, series))
}

/// Consoles that failed, all rounds.
pub fn failed(series: &Series<ArrivalRound>) -> u64 {
    series.rounds.iter().map(|r| r.failed).sum()
}

/// Whether so many per second were carried: nearly all of what was due came to its first byte, in about its time. Arrivals are
/// Poisson's: what was due, not the nominal rate, is what can be carried.
pub fn carried(series: &Series<ArrivalRound>, rate: f64) -> bool {
    let due: u64 = series.rounds.iter().map(|r| r.due).sum();
    let share = 1.0 - failed(series) as f64 / due.max(1) as f64;
    share >= CARRIED && series.median(|r| r.per_s) > 0.8 * rate
}

/// Begins a console for every arrival, and waits for the last.
async fn receive(
    mut arrivals: mpsc::UnboundedReceiver<u64>,
    way: &Way,
    config: &Arc<ClientConfig>,
    met: &Arc<Mutex<Met>>,
) {
    let under_way = Arc::new(AtomicUsize::new(0));
    let mut tasks = Vec::new();
    while let Some(due) = arrivals.recv().await {
        if under_way.load(Relaxed) >= UNDER_WAY {
            met.lock().unwrap_or_else(PoisonError::into_inner).shed += 1;
            continue;
        }
        under_way.fetch_add(1, Relaxed);
        let (way, config, met, under_way) = (way.clone(), config.clone(), met.clone(), under_way.clone());
        tasks.push(tokio::spawn(async move {
            let result = tokio::time::timeout(PATIENCE, one(&way, config)).await;
            under_way.fetch_sub(1, Relaxed);
            let mut met = met.lock().unwrap_or_else(PoisonError::into_inner);
            match result.unwrap_or_else(|_| Err(io::Error::other("not open after 10 s"))) {
                Ok((steps, first)) => {
                    met.total.saturating_record(now().saturating_sub(due));
                    let all = [steps.connect, steps.tls, steps.login, steps.console, first];
                    met.steps.iter_mut().zip(all).for_each(|(step, took)| step.saturating_record(took));
                }
                Err(error) => {
                    met.failed += 1;
                    if met.reasons.len() < 3 {
                        met.reasons.push(error.to_string());
                    }
                }
            }
        }));
    }
    for task in tasks {
        let _ = task.await;
    }
}

/// Opens a console, types one key, waits for its echo, leaves.
async fn one(way: &Way, config: Arc<ClientConfig>) -> io::Result<(Steps, u64)> {
    let (mut console, steps) = visitor::open(way, config).await?;
    let open = now();
    console.write(&[ECHO, b'k']).await?;
    let mut got = Vec::new();
    if !console.read(&mut [0; 64], &mut got).await? || got != b"k" {
        return Err(io::Error::other("the console did not echo"));
    }
    let first = now() - open;
    console.close().await;
    Ok((steps, first))
}
