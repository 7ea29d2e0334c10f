//! The machine, as far as results depend on it.

use std::collections::BTreeMap;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Serialize;

use crate::load::cost::cores;

/// Settings that results depend on, as files under /proc/sys.
const SYSCTLS: &[&str] = &[
    "fs.pipe-max-size",
    "fs.pipe-user-pages-soft",
    "kernel.io_uring_disabled",
    "kernel.perf_event_paranoid",
    "kernel.sched_autogroup_enabled",
    "net.core.rmem_max",
    "net.core.somaxconn",
    "net.core.wmem_max",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_congestion_control",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// Kernel, processor, settings.
#[derive(Clone, Debug, Serialize)]
pub struct Host {
    /// `uname -r` and the build.
    pub kernel: String,
    /// Model name of the processor.
    pub cpu: String,
    /// Cores that are online.
    pub cores: usize,
    /// Whether a hypervisor is below.
    pub virtual_machine: bool,
    /// The governor of core 0, where there is one.
    pub governor: Option<String>,
    /// Memory, bytes.
    pub memory: u64,
    /// Open files per process.
    pub open_files: u64,
    /// Those of [`SYSCTLS`] that exist.
    pub sysctls: BTreeMap<&'static str, String>,
    /// Load averages at the start.
    pub load: String,
    /// Seconds since 1970.
    pub began: u64,
}

impl Host {
    /// Looks at this machine.
    pub fn here() -> Self {
        let read = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
        let info = read("/proc/cpuinfo").unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            line.split_once(':').map(|(_, value)| value.trim().to_owned())
        };
        let memory = field(&read("/proc/meminfo").unwrap_or_default(), "MemTotal").unwrap_or_default();
        let release = read("/proc/sys/kernel/osrelease").unwrap_or_default();
        let build = read("/proc/sys/kernel/version").unwrap_or_default();
        let sysctl = |name: &&'static str| {
            let value = read(&format!("/proc/sys/{}", name.replace('.', "/")))?;
            Some((*name, value.split_whitespace().collect::<Vec<_>>().join(" ")))
        };
        Self {
            kernel: format!("{release} {build}"),
            cpu: field(&info, "model name").unwrap_or_else(|| "unknown".to_owned()),
            cores: cores(),
            virtual_machine: field(&info, "flags").is_some_and(|f| f.split(' ').any(|f| f == "hypervisor")),
            governor: read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            memory: memory.trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024,
            open_files: open_files(),
            sysctls: SYSCTLS.iter().filter_map(sysctl).collect(),
            load: read("/proc/loadavg").unwrap_or_default(),
            began: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        }
    }
}

/// Raises the limit of open files as far as it goes; returns it.
pub fn open_files() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    }
}

/// How many sessions fit into this process when each takes `files` of its open files; some are kept for the rest.
pub fn fitting(files: usize) -> usize {
    (open_files() as usize).saturating_sub(200) / files.max(1)
}
