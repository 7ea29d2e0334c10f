//! What a measurement cost: CPU time of the proxy, of the machine, and how much of that was somebody else's.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::ClockId;
use nix::unistd::{Pid, SysconfVar, sysconf};

/// A reading of all clocks.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    at: Instant,
    proxy: f64,
    others: f64,
    busy: f64,
    steal: f64,
}

/// The difference of two readings, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Wall time.
    pub wall: f64,
    /// The proxy: its process, all threads (io-wq workers included) and children.
    pub proxy: f64,
    /// The whole machine, kernel threads and interrupts included, without the programs of others.
    pub system: f64,
    /// CPU time of programs that neither are this one nor were started by it, as a share of the machine.
    pub noise: f64,
    /// CPU time the hypervisor gave to others, as a share of the machine.
    pub steal: f64,
}

impl Reading {
    /// Reads the clocks; `proxy` is the process under test, if there is one.
    pub fn take(proxy: Option<u32>) -> Self {
        let (busy, steal) = machine();
        let proxy = proxy.map(tree).unwrap_or_default();
        Self {
            at: Instant::now(),
            proxy: proxy.into_iter().map(process).sum(),
            others: others(),
            busy,
            steal,
        }
    }

    /// What happened since.
    pub fn until(&self, later: &Self) -> Cost {
        let wall = (later.at - self.at).as_secs_f64();
        let machine = wall * cores() as f64;
        let others = (later.others - self.others).max(0.0);
        Cost {
            wall,
            proxy: later.proxy - self.proxy,
            system: later.busy - self.busy - others,
            noise: others / machine,
            steal: (later.steal - self.steal) / machine,
        }
    }
}

/// Cores of the machine.
pub fn cores() -> usize {
    sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten().map_or(1, |n| n as usize)
}

/// Lets every thread of a process, or of this one, run on these cores only.
pub fn pin(pid: u32, cores: impl IntoIterator<Item = usize> + Clone) {
    for thread in threads(pid) {
        pin_thread(Pid::from_raw(thread as i32), cores.clone());
    }
}

/// Lets the calling thread run on these cores only.
pub fn pin_self(cores: impl IntoIterator<Item = usize>) {
    pin_thread(Pid::from_raw(0), cores);
}

/// Gives the calling thread, and those it starts, real-time priority (chrt(1)), so that what measures is not delayed by what
/// makes load beside it. False where that is not allowed.
pub fn hurry() -> bool {
    let mut chrt = Command::new("chrt");
    chrt.args(["-f", "-p", "10", &nix::unistd::gettid().to_string()]);
    chrt.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

fn pin_thread(thread: Pid, cores: impl IntoIterator<Item = usize>) {
    let mut set = CpuSet::new();
    for core in cores {
        let _ = set.set(core);
    }
    let _ = sched_setaffinity(thread, &set);
}

/// Resident memory of a process tree, bytes.
pub fn resident(pid: u32) -> u64 {
    let one = |pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
    };
    tree(pid).into_iter().map(one).sum()
}

fn ticks() -> f64 {
    sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100) as f64
}

/// Busy and stolen seconds of all cores since boot (proc_stat(5)).
fn machine() -> (f64, f64) {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields: Vec<f64> =
        stat.lines().next().unwrap_or_default().split_whitespace().skip(1).flat_map(str::parse).collect();
    let field = |n: usize| fields.get(n).copied().unwrap_or(0.0) / ticks();
    // user, nice, system, irq, softirq; steal.
    ([0, 1, 2, 5, 6].into_iter().map(field).sum(), field(7))
}

/// CPU seconds of a process, threads that ended and io-wq workers included, to the nanosecond (clock_getcpuclockid(3));
/// where that is not to be had, to the tick (proc_pid_stat(5), utime and stime).
pub fn process(pid: u32) -> f64 {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid.cast_signed()));
    if let Ok(time) = clock.and_then(ClockId::now) {
        return time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9;
    }
    let fields = stat(pid);
    let field = |n: usize| fields.get(n).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    (field(11) + field(12)) / ticks()
}

/// CPU seconds of this process.
pub fn own() -> f64 {
    process(std::process::id())
}

/// CPU seconds of all programs but this one and those it started, children they waited for included: what a compiler used
/// before it ended is in its parent's account. Kernel threads, children of no. 2, work for everybody.
fn others() -> f64 {
    let own = tree(std::process::id());
    let foreign = |pid: u32| {
        let fields = stat(pid);
        let parent = fields.get(1).and_then(|f| f.parse::<u32>().ok());
        let known = own.contains(&pid) || pid == 2 || parent == Some(2);
        let field = |n: usize| fields.get(n).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
        if known { 0.0 } else { (11..15).map(field).sum::<f64>() / ticks() }
    };
    numbers("/proc").into_iter().map(foreign).sum()
}

/// The fields of /proc/PID/stat after the command's name.
fn stat(pid: u32) -> Vec<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_whitespace().map(str::to_owned).collect()
}

fn threads(pid: u32) -> Vec<u32> {
    numbers(&format!("/proc/{pid}/task"))
}

/// A process and its children.
pub fn tree(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    for thread in threads(pid) {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{thread}/children")).unwrap_or_default();
        let children: Vec<u32> = children.split_whitespace().flat_map(str::parse).collect();
        all.extend(children.into_iter().flat_map(tree));
    }
    all
}

fn numbers(dir: &str) -> Vec<u32> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}
