//! Numbers that other parts keep: plugged in as closures that are called at each scrape.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::sys::time::TimeVal;
use nix::unistd::{SysconfVar, sysconf};

use super::{Metrics, Samples};

/// The numbers of one flow engine thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct EngineSample {
    /// Flows it carries now.
    pub flows: u64,
    /// Bytes delivered by the way they took.
    pub bytes: ModeBytes,
    /// Empty pipes kept for the next bulk transfer.
    pub pipes_idle: u64,
    /// Pipes that a direction holds.
    pub pipes_in_use: u64,
    /// Times a direction copied because no pipe was to be had.
    pub pipes_refused: u64,
    /// Receives that found no provided buffer.
    pub enobufs: u64,
    /// Provided buffers that hold bytes on their way.
    pub buffers_in_use: u64,
    /// Directions that went from interactive to bulk.
    pub to_bulk: u64,
    /// Directions that went from bulk back to interactive.
    pub to_interactive: u64,
}

/// Bytes delivered by the way they took through the engine.
#[derive(Clone, Copy, Debug, Default)]
pub struct ModeBytes {
    /// RECV into a provided buffer, SEND from it.
    pub interactive: u64,
    /// splice(2) through a pipe.
    pub spliced: u64,
    /// IORING_OP_SPLICE through a pipe.
    pub op_spliced: u64,
    /// Plain copies.
    pub copied: u64,
    /// Bytes that the front had already read before the hand-over.
    pub first: u64,
}

/// The numbers of the ticket table.
#[derive(Clone, Copy, Debug, Default)]
pub struct TicketSample {
    /// Tickets remembered.
    pub tracked: u64,
    /// How many can be remembered.
    pub capacity: u64,
    /// Tickets refused because the table was full.
    pub refused_full: u64,
    /// Revocations in force.
    pub revocations: u64,
    /// Keys that open tickets.
    pub keys: u64,
}

impl Metrics {
    /// Exports the flow engine: its driver, and the sum over its threads (flows also per thread).
    pub fn add_engines(
        &self,
        driver: &'static str,
        engines: impl Fn() -> Vec<EngineSample> + Send + Sync + 'static,
    ) {
        self.add_source(move |out| sample_engines(driver, &engines(), out));
    }

    /// Exports the ticket table.
    pub fn add_tickets(&self, tickets: impl Fn() -> TicketSample + Send + Sync + 'static) {
        self.add_source(move |out| sample_tickets(&tickets(), out));
    }
}

type Field = fn(&EngineSample) -> u64;

fn sample_engines(driver: &'static str, engines: &[EngineSample], out: &mut Samples) {
    out.gauge("mksgate_flow_driver_info", "The driver of the flow engine", &[("driver", driver)], 1);
    for (i, engine) in engines.iter().enumerate() {
        let labels: &[_] = &[("engine", &*i.to_string())];
        out.gauge("mksgate_flows", "Flows on an engine thread", labels, int(engine.flows));
    }
    let sum = |field: Field| engines.iter().map(field).fold(0, u64::wrapping_add);
    let modes: [(&str, Field); 5] = [
        ("interactive", |e| e.bytes.interactive),
        ("spliced", |e| e.bytes.spliced),
        ("op_spliced", |e| e.bytes.op_spliced),
        ("copied", |e| e.bytes.copied),
        ("first", |e| e.bytes.first),
    ];
    for (mode, field) in modes {
        let help = "Bytes delivered, by the way they took through the engine";
        out.counter("mksgate_flow_bytes", help, &[("mode", mode)], sum(field));
    }
    let pipes: [(&str, Field); 2] = [("idle", |e| e.pipes_idle), ("in_use", |e| e.pipes_in_use)];
    for (state, field) in pipes {
        out.gauge("mksgate_flow_pipes", "Pipes of the flow engine", &[("state", state)], int(sum(field)));
    }
    let help = "Times a direction copied because no pipe was to be had";
    out.counter("mksgate_flow_pipes_refused", help, &[], sum(|e| e.pipes_refused));
    let help = "Receives that found no provided buffer";
    out.counter("mksgate_flow_enobufs", help, &[], sum(|e| e.enobufs));
    let help = "Provided buffers that hold bytes on their way";
    out.gauge("mksgate_flow_buffers_in_use", help, &[], int(sum(|e| e.buffers_in_use)));
    let switches: [(&str, Field); 2] = [("bulk", |e| e.to_bulk), ("interactive", |e| e.to_interactive)];
    for (mode, field) in switches {
        let help = "Directions that changed to this mode";
        out.counter("mksgate_flow_mode_switches", help, &[("to", mode)], sum(field));
    }
}

fn sample_tickets(tickets: &TicketSample, out: &mut Samples) {
    out.gauge("mksgate_tickets_tracked", "Tickets whose use is remembered", &[], int(tickets.tracked));
    out.gauge("mksgate_tickets_capacity", "Tickets that can be remembered", &[], int(tickets.capacity));
    let help = "Tickets refused because no more could be remembered";
    out.counter("mksgate_tickets_refused_full", help, &[], tickets.refused_full);
    out.gauge("mksgate_ticket_revocations", "Revocations in force", &[], int(tickets.revocations));
    out.gauge("mksgate_ticket_keys", "Keys that open tickets", &[], int(tickets.keys));
}

/// The process: what Prometheus clients of every language export under the same names.
pub(super) fn sample_process(started: SystemTime, out: &mut Samples) {
    out.gauge("mksgate_build_info", "The version that runs", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    let since = started.duration_since(UNIX_EPOCH).unwrap_or_default();
    out.gauge(
        "process_start_time_seconds",
        "Start time of the process, Unix time",
        &[],
        int(since.as_secs()),
    );
    if let Ok(entries) = fs::read_dir("/proc/self/fd") {
        // One of them is the directory itself.
        out.gauge("process_open_fds", "Open files", &[], entries.count() as i64 - 1);
    }
    if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
        out.gauge("process_max_fds", "Most files it may open", &[], int(soft));
    }
    if let Some(bytes) = resident_bytes() {
        out.gauge("process_resident_memory_bytes", "Memory in use", &[], bytes);
    }
    if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
        let seconds = |t: TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
        let help = "User and system CPU time";
        out.counter_f64(
            "process_cpu_seconds",
            help,
            seconds(usage.user_time()) + seconds(usage.system_time()),
        );
    }
}

fn resident_bytes() -> Option<i64> {
    let pages: i64 = fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()?;
    Some(pages * sysconf(SysconfVar::PAGE_SIZE).ok()??)
}

fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
