//! Latency histograms: one shard per thread, merged when somebody looks.
//!
//! A thread always writes to the same shard, so its lock is uncontended but for the microseconds of a scrape. Two significant
//! digits bound the error of a value to 1 %. A histogram is made with the first value of its stage on its shard and grows with
//! the largest value seen: a flow thread that only ever records flow turns holds about 20 KiB.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::interval_log::{
    IntervalLogIterator, IntervalLogWriterBuilder, LogEntry, Tag,
};
use hdrhistogram::serialization::{Deserializer, V2DeflateSerializer};
use serde::{Deserialize, Serialize};

use super::Stage;

/// Nanoseconds that are not told apart at the lower end.
const RESOLUTION_NS: u64 = 64;
/// Significant decimal digits.
const DIGITS: u8 = 2;
/// Nanoseconds per millisecond: HdrHistogram logs show the maximum in milliseconds.
const LOG_MAX_DIVISOR: f64 = 1e6;

static THREADS: AtomicUsize = AtomicUsize::new(0);
thread_local! {
    /// Which shard this thread writes to, before the modulo.
    static SLOT: usize = THREADS.fetch_add(1, Ordering::Relaxed);
}

/// All stages on all shards.
pub(super) struct Histograms {
    shards: Box<[Shard]>,
}

/// What one thread wrote; its own cache lines.
#[derive(Default)]
#[repr(align(128))]
struct Shard {
    cells: [Mutex<Option<Box<Timings>>>; Stage::COUNT],
}

/// The distribution of one stage, in nanoseconds.
#[derive(Clone)]
pub struct Timings {
    /// Counts by value, nanoseconds.
    pub histogram: Histogram<u64>,
    /// The exact sum of all values, nanoseconds.
    pub sum_ns: u128,
}

/// A stage's distribution in numbers, all times in seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Which stage.
    pub stage: Stage,
    /// How many values.
    pub count: u64,
    /// The sum of all values.
    pub sum: f64,
    /// The smallest value.
    pub min: f64,
    /// Half of all values are at most this.
    pub p50: f64,
    /// 90 % are at most this.
    pub p90: f64,
    /// 99 % are at most this.
    pub p99: f64,
    /// 99.9 % are at most this.
    pub p999: f64,
    /// The largest value.
    pub max: f64,
}

impl Histograms {
    /// Shards enough that the threads of a machine with so many cores need not share.
    pub(super) fn new(cores: usize) -> Self {
        let count = (2 * cores + 4).next_power_of_two();
        Self { shards: (0..count).map(|_| Shard::default()).collect() }
    }

    /// Counts one value on the calling thread's shard.
    pub(super) fn record(&self, stage: Stage, took: Duration) {
        let shard = &self.shards[SLOT.with(|slot| *slot) % self.shards.len()];
        let took = took.min(stage.longest());
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        lock(&shard.cells[stage as usize]).get_or_insert_with(|| Box::new(Timings::new())).record(ns);
    }

    /// The stage's values of all shards.
    pub(super) fn merged(&self, stage: Stage) -> Timings {
        let mut all = Timings::new();
        for shard in &self.shards {
            if let Some(part) = lock(&shard.cells[stage as usize]).as_deref() {
                all.add(part);
            }
        }
        all
    }
}

impl Timings {
    fn new() -> Self {
        let mut histogram = Histogram::new_with_bounds(RESOLUTION_NS, 4096 * RESOLUTION_NS, DIGITS)
            .expect("constant bounds: low >= 1, high >= 2 * low, digits <= 5");
        histogram.auto(true);
        Self { histogram, sum_ns: 0 }
    }

    fn record(&mut self, ns: u64) {
        // Fails only if the histogram could not grow, and it may.
        if self.histogram.record(ns).is_ok() {
            self.sum_ns += u128::from(ns);
        }
    }

    fn add(&mut self, other: &Timings) {
        if self.histogram.add(&other.histogram).is_ok() {
            self.sum_ns += other.sum_ns;
        }
    }

    /// The distribution in numbers.
    pub fn percentiles(&self, stage: Stage) -> Percentiles {
        Percentiles { sum: self.sum_ns as f64 / 1e9, ..Percentiles::of(stage, &self.histogram) }
    }

    /// How many values lie in each interval up to the next bound (seconds, rising), the last one without an upper bound. A
    /// value within 1 % of a bound may count on either side.
    pub(super) fn buckets(&self, bounds: &[f64]) -> Vec<(f64, u64)> {
        let mut out: Vec<(f64, u64)> =
            bounds.iter().copied().chain([f64::INFINITY]).map(|bound| (bound, 0)).collect();
        for value in self.histogram.iter_recorded() {
            let middle = seconds(self.histogram.median_equivalent(value.value_iterated_to()));
            let at = bounds.partition_point(|bound| *bound < middle);
            out[at].1 += value.count_at_value();
        }
        out
    }
}

impl Percentiles {
    /// Of a histogram of nanoseconds; the sum is then within 1 %.
    pub fn of(stage: Stage, h: &Histogram<u64>) -> Self {
        let at = |q: f64| seconds(h.value_at_quantile(q).min(h.max()));
        Self {
            stage,
            count: h.len(),
            sum: h.mean() * h.len() as f64 / 1e9,
            min: seconds(h.min()),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: seconds(h.max()),
        }
    }
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// Writes an HdrHistogram V2 interval log (values in nanoseconds, one line per stage, the stage as the tag). `started` is the
/// beginning of the interval that `parts` cover, `now` its end.
pub fn write_log<'a>(
    out: &mut Vec<u8>,
    started: SystemTime,
    now: SystemTime,
    parts: impl IntoIterator<Item = (Stage, &'a Histogram<u64>)>,
) -> io::Result<()> {
    let mut serializer = V2DeflateSerializer::new();
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment("mksgate latencies, nanoseconds; the tag is the stage")
        .with_start_time(started)
        .with_max_value_divisor(LOG_MAX_DIVISOR)
        .begin_log_with(out, &mut serializer)?;
    let start = started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let length = now.duration_since(started).unwrap_or_default();
    for (stage, histogram) in parts {
        log.write_histogram(histogram, start, length, Tag::new(stage.as_str())).map_err(io::Error::other)?;
    }
    Ok(())
}

/// Reads an HdrHistogram interval log of values in nanoseconds, as [`write_log`] writes it and other tools may have: all intervals of
/// a stage added up. Intervals without a tag that names a stage are left out.
///
/// # Errors
/// The text is not such a log.
pub fn read_log(text: &[u8]) -> Result<BTreeMap<Stage, Histogram<u64>>, LogError> {
    let mut all = BTreeMap::new();
    let mut deserializer = Deserializer::new();
    for (line, entry) in IntervalLogIterator::new(text).enumerate() {
        let bad = |what: String| LogError { entry: line + 1, what };
        let LogEntry::Interval(interval) = entry.map_err(|error| bad(format!("{error:?}")))? else {
            continue;
        };
        let Some(stage) = interval.tag().and_then(|tag| Stage::parse(tag.as_str())) else { continue };
        let bytes = STANDARD.decode(interval.encoded_histogram()).map_err(|error| bad(error.to_string()))?;
        let part: Histogram<u64> =
            deserializer.deserialize(&mut bytes.as_slice()).map_err(|error| bad(error.to_string()))?;
        let sum = all.entry(stage).or_insert_with(|| Timings::new().histogram);
        sum.add(&part).map_err(|error| bad(error.to_string()))?;
    }
    Ok(all)
}

/// Where an interval log could not be read.
#[derive(Debug, thiserror::Error)]
#[error("entry {entry}: {what}; is it an HdrHistogram interval log?")]
pub struct LogError {
    entry: usize,
    what: String,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn values_of_all_threads_are_merged() {
        let all = Arc::new(Histograms::new(1));
        let threads: Vec<_> = (1..=8)
            .map(|n| {
                let all = all.clone();
                std::thread::spawn(move || {
                    for _ in 0..1000 {
                        all.record(Stage::FlowTurn, Duration::from_micros(n));
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let merged = all.merged(Stage::FlowTurn);
        assert_eq!(merged.histogram.len(), 8000);
        assert_eq!(merged.sum_ns, 36_000_000);
        let numbers = merged.percentiles(Stage::FlowTurn);
        assert!((numbers.p50 - 4e-6).abs() <= 4e-8 + 64e-9, "{numbers:?}");
        assert!((numbers.max - 8e-6).abs() <= 8e-8 + 64e-9, "{numbers:?}");
        assert_eq!(all.merged(Stage::Session).histogram.len(), 0);
    }

    #[test]
    fn every_value_is_in_exactly_one_bucket() {
        let all = Histograms::new(1);
        for ms in [0, 1, 3, 30, 300, 3000, 30_000, 10_000_000] {
            all.record(Stage::BackendConnect, Duration::from_millis(ms));
        }
        let buckets = all.merged(Stage::BackendConnect).buckets(&[0.002, 0.02, 0.2, 2.0]);
        let counts: Vec<u64> = buckets.iter().map(|bucket| bucket.1).collect();
        assert_eq!(counts, [2, 1, 1, 1, 3]);
        assert!(buckets[4].0.is_infinite());
    }

    #[test]
    fn an_absurd_duration_counts_as_the_longest() {
        let all = Histograms::new(1);
        all.record(Stage::Session, Duration::MAX);
        let merged = all.merged(Stage::Session);
        assert_eq!(merged.sum_ns, Stage::Session.longest().as_nanos());
        assert_eq!(merged.histogram.len(), 1);
    }

    #[test]
    fn a_log_reads_back() {
        let all = Histograms::new(1);
        for us in 1..=100 {
            all.record(Stage::Ticket, Duration::from_micros(us));
        }
        let ticket = all.merged(Stage::Ticket);
        let started = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let mut text = Vec::new();
        let parts = [(Stage::Ticket, &ticket.histogram)];
        write_log(&mut text, started, started + Duration::from_secs(60), parts).unwrap();
        let back = read_log(&text).unwrap();
        assert_eq!(back.keys().collect::<Vec<_>>(), [&Stage::Ticket]);
        assert_eq!(back[&Stage::Ticket].len(), 100);
        assert_eq!(back[&Stage::Ticket].value_at_quantile(0.5), ticket.histogram.value_at_quantile(0.5));
        assert!(text.starts_with(b"#mksgate latencies"));
        assert!(read_log(b"Tag=ticket,1,1,1,HISTFAAA\n").is_err());
    }
}
