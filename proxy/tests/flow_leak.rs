//! Twenty thousand short flows leave nothing behind. The only test of its process: it counts what the process holds.

mod flow_rig;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;

use flow_rig::{Rig, UNLIMITED, config, reset};
use mksgate::flow::{Driver, Engines, Mode};

const FLOWS: usize = 20_000;
/// What the allocator may keep after the warm-up, KiB: 20,000 leaked flows would be ten times that.
const SLACK_KIB: usize = 1024;

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("/proc/self/fd").count()
}

fn rss_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// One flow with a message each way and one of several ends; every fifth is large enough for a pipe.
fn short(engines: &Engines, n: usize) {
    let mut rig = Rig::new(engines, UNLIMITED);
    let mut small = [0; 32];
    rig.client.write_all(&[1; 32]).expect("written");
    rig.backend.read_exact(&mut small).expect("read");
    let large = if n.is_multiple_of(50) { 512 << 10 } else { 32 };
    let mut from = rig.backend.try_clone().expect("clone");
    let writer =
        (large > 32).then(|| thread::spawn(move || from.write_all(&vec![2; 512 << 10]).expect("written")));
    if writer.is_none() {
        rig.backend.write_all(&[2; 32]).expect("written");
    }
    let mut got = vec![0; large];
    rig.client.read_exact(&mut got).expect("read");
    if let Some(writer) = writer {
        writer.join().expect("writer");
    }
    match n % 4 {
        0 => {
            rig.client.shutdown(Shutdown::Write).expect("shutdown");
            rig.backend.read_exact(&mut small[..1]).expect_err("the end");
            drop(rig.backend);
        }
        1 => reset(rig.client),
        2 => reset(rig.backend),
        _ => engines.close(rig.id, mksgate::session::CloseReason::Operator),
    }
    rig.end.recv_timeout(flow_rig::PATIENCE).expect("the flow ends");
}

#[test]
fn short_flows_leave_nothing_behind() {
    // Opens the listener of all pairs.
    drop(flow_rig::pair());
    for driver in [Driver::IoUring, Driver::Epoll] {
        let engines = Engines::start(&config(driver, Mode::Adaptive)).expect("engine");
        let files = open_files();
        (0..1000).for_each(|n| short(&engines, n));
        let warm = rss_kib();
        (0..FLOWS / 2).for_each(|n| short(&engines, n));
        let stats = &engines.stats()[0];
        assert_eq!(stats.ended.load(Relaxed), 1000 + FLOWS as u64 / 2);
        let held = || {
            let pipes = stats.pipes_idle.load(Relaxed) as usize;
            (stats.flows.load(Relaxed), stats.pipes_in_use.load(Relaxed), open_files() - 2 * pipes)
        };
        // The last account is given before the thread publishes its gauges; idle pipes are closed after a while.
        let limit = std::time::Instant::now() + flow_rig::PATIENCE;
        while (held(), stats.pipes_idle.load(Relaxed)) != ((0, 0, files), 0) {
            assert!(std::time::Instant::now() < limit, "{:?} of {files} files", held());
            thread::sleep(std::time::Duration::from_millis(50));
        }
        let grown = rss_kib().saturating_sub(warm);
        assert!(grown < SLACK_KIB, "{driver:?}: {grown} KiB more than after the first thousand");
    }
}
