//! What the appliance tells its operator in numbers: latencies, counters and gauges (docs/metrics.md).
//!
//! Recording is cheap and never waits on a scrape for long: latencies go to the calling thread's own shard, counters are atomics.
//! Label values come from closed lists and from the configuration, never from the wire.

mod hist;
mod samples;
mod source;
mod stage;
mod tenants;

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use hist::Histograms;
use tenants::Tenants;

pub use hist::{LogError, Percentiles, Timings, read_log, write_log};
pub use samples::Samples;
pub use source::{EngineSample, ModeBytes, TicketSample};
pub use stage::{Door, Stage};

use crate::session::CloseReason;

/// The content type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Source = Box<dyn Fn(&mut Samples) + Send + Sync>;

/// Every number the process keeps about itself.
pub struct Metrics {
    started: SystemTime,
    since: Instant,
    histograms: Histograms,
    tenants: Tenants,
    accepted: [AtomicU64; Door::COUNT],
    preauth: AtomicI64,
    handshakes: AtomicI64,
    sources: Mutex<Vec<Source>>,
}

impl Metrics {
    /// Nothing counted yet; the log's interval begins now.
    pub fn new() -> Arc<Self> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Arc::new(Self {
            started: SystemTime::now(),
            since: Instant::now(),
            histograms: Histograms::new(cores),
            tenants: Tenants::new(),
            accepted: Default::default(),
            preauth: AtomicI64::new(0),
            handshakes: AtomicI64::new(0),
            sources: Mutex::new(Vec::new()),
        })
    }

    /// Counts how long a stage took. From any thread: an uncontended lock and an addition.
    pub fn record(&self, stage: Stage, took: Duration) {
        self.histograms.record(stage, took);
    }

    /// The configured tenants: the only label values besides "". Counters of a name that stays go on.
    pub fn set_tenants(&self, names: &[String]) {
        self.tenants.set(names);
    }

    /// A connection was accepted.
    pub fn accepted(&self, door: Door) {
        self.accepted[door as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A connection did not become a console. `tenant` is "" before the ticket is open; `reason` is one of a closed list.
    pub fn refused(&self, door: Door, tenant: &str, reason: &'static str) {
        self.tenants.active(tenant).refused(door, reason);
    }

    /// A console was handed to the flow engine. Each call needs its [`Metrics::closed`] or [`Metrics::moved`].
    pub fn opened(&self, tenant: &str, door: Door) {
        self.tenants.ever(tenant).opened(door);
    }

    /// A console that another process opened counts here from now on. Each call needs its [`Metrics::closed`].
    pub fn adopted(&self, tenant: &str) {
        self.tenants.ever(tenant).adopted();
    }

    /// A console ended after `lived`, having delivered `up` bytes to the hypervisor and `down` bytes to the client.
    pub fn closed(&self, tenant: &str, reason: CloseReason, up: u64, down: u64, lived: Duration) {
        self.tenants.ever(tenant).closed(reason, up, down);
        self.record(Stage::Session, lived);
    }

    /// A console was moved to another process: no longer live here, and not ended.
    pub fn moved(&self, tenant: &str) {
        self.tenants.ever(tenant).moved();
    }

    /// Gauge: connections accepted and not yet handed over or refused.
    pub fn preauth(&self) -> &AtomicI64 {
        &self.preauth
    }

    /// Gauge: TLS handshakes of clients in flight.
    pub fn handshakes(&self) -> &AtomicI64 {
        &self.handshakes
    }

    /// Adds numbers that somebody else keeps; called at every scrape, so it must be quick.
    pub fn add_source(&self, source: impl Fn(&mut Samples) + Send + Sync + 'static) {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(source));
    }

    /// Everything as OpenMetrics text, which Prometheus reads ([`CONTENT_TYPE`]).
    pub fn encode(&self) -> String {
        let mut out = Samples::default();
        source::sample_process(self.started, &mut out);
        for door in Door::ALL {
            let count = self.accepted[door as usize].load(Ordering::Relaxed);
            let labels = [("door", door.as_str())];
            out.counter("mksgate_connections_accepted", "Connections accepted", &labels, count);
        }
        let gauge = |value: &AtomicI64| value.load(Ordering::Relaxed);
        let help = "Connections not yet handed over or refused";
        out.gauge("mksgate_preauth_connections", help, &[], gauge(&self.preauth));
        out.gauge("mksgate_handshakes", "TLS handshakes of clients in flight", &[], gauge(&self.handshakes));
        self.tenants.sample(&mut out);
        for stage in Stage::ALL {
            let timings = self.timings(stage);
            let buckets = timings.buckets(stage.bounds());
            out.histogram(stage.family(), timings.sum_ns as f64 / 1e9, timings.histogram.len(), buckets);
        }
        for source in self.sources.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            source(&mut out);
        }
        out.into_text()
    }

    /// When the counting began.
    pub fn started(&self) -> SystemTime {
        self.started
    }

    /// How long it has been counting, whatever the wall clock did.
    pub fn uptime(&self) -> Duration {
        self.since.elapsed()
    }

    /// The distribution of a stage since the start.
    pub fn timings(&self, stage: Stage) -> Timings {
        self.histograms.merged(stage)
    }

    /// The distributions of all stages in numbers.
    pub fn percentiles(&self) -> Vec<Percentiles> {
        Stage::ALL.into_iter().map(|stage| self.timings(stage).percentiles(stage)).collect()
    }

    /// All stages since the start as an HdrHistogram V2 interval log, values in nanoseconds.
    pub fn hist_log(&self, now: SystemTime) -> Vec<u8> {
        let parts: Vec<_> =
            Stage::ALL.into_iter().map(|stage| (stage, self.timings(stage).histogram)).collect();
        let mut out = Vec::new();
        // Writing to memory does not fail, and neither do histograms of these bounds.
        if let Err(error) = write_log(&mut out, self.started, now, parts.iter().map(|(s, h)| (*s, h))) {
            tracing::error!(%error, "the latency log could not be written");
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(metrics: &Metrics) -> String {
        metrics.encode()
    }

    #[test]
    fn a_name_from_the_wire_never_becomes_a_label() {
        let metrics = Metrics::new();
        metrics.set_tenants(&["acme".to_owned()]);
        metrics.refused(Door::Authd, "evil\"tenant", "unknown_tenant");
        metrics.opened("evil", Door::Mks);
        metrics.closed("evil", CloseReason::ClientClosed, 1, 2, Duration::from_secs(1));
        let text = text(&metrics);
        assert!(!text.contains("evil"));
        assert!(
            text.contains("mksgate_refusals_total{door=\"authd\",tenant=\"\",reason=\"unknown_tenant\"} 1")
        );
        assert!(text.contains("mksgate_sessions{tenant=\"\"} 0"));
    }

    #[test]
    fn a_removed_tenant_is_shown_until_its_last_session_ended_and_its_gauge_returns_to_zero() {
        let metrics = Metrics::new();
        let names = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
        metrics.set_tenants(&names(&["acme", "globex"]));
        metrics.opened("acme", Door::Authd);
        metrics.set_tenants(&names(&["globex"]));
        assert!(text(&metrics).contains("mksgate_sessions{tenant=\"acme\"} 1"));
        metrics.refused(Door::Authd, "acme", "unknown_tenant");
        metrics.closed("acme", CloseReason::TenantRemoved, 10, 20, Duration::from_secs(1));
        let after = text(&metrics);
        assert!(!after.contains("acme"), "{after}");
        assert!(after.contains("tenant=\"\",reason=\"unknown_tenant\"} 1"));
        metrics.set_tenants(&names(&["acme"]));
        let back = text(&metrics);
        assert!(back.contains("mksgate_sessions{tenant=\"acme\"} 0"));
        assert!(back.contains("mksgate_session_bytes_total{tenant=\"acme\",direction=\"down\"} 20"));
    }
}
