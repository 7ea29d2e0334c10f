//! How late the kernel learns of a tenant's sessions: from the call that tells the gate to the value in the program's map, with
//! an idle machine and with one whose cores are all taken.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use mksgate::xdp::{Gate, XdpSection};

use super::{SUITE, policy};
use crate::load::goals::Goal;
use crate::netns::Namespace;
use crate::run::{Context, Outcome, Spread, Table};

const TENANT: u32 = 1;
/// Later than that is never.
const NEVER: Duration = Duration::from_secs(5);
/// Milliseconds.
const GOAL: f64 = 10.0;

/// Runs both cases.
pub fn run(context: &Context, out: &mut Outcome) -> Result<()> {
    let (inside, outside) = (Namespace::new()?, Namespace::new()?);
    inside.veth("gate0", &outside, "world0")?;
    inside.v4("gate0", Ipv4Addr::new(10, 77, 0, 1))?;
    let section = XdpSection { interfaces: vec!["gate0".into()], ..XdpSection::default() };
    let (config, mut policy) = (section.validate()?, policy(1));
    policy.listen = vec![SocketAddr::from(([10, 77, 0, 1], 443))];
    let gate = inside.run(|| Gate::start(config, policy, |_| {})).context("starting the gate")?;
    let cores = thread::available_parallelism()?.get();
    let mut table =
        Table::new("A tenant's sessions in the kernel, ms after the change", ["", "p50", "p99", "most"]);
    for (name, threads) in [("machine idle", 0), ("every core taken by two threads", 2 * cores)] {
        let (mut middle, mut late, mut most) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..context.rounds(9, 3) {
            context.stop.check()?;
            let mut took = context.watch(|| beside(threads, || changes(&gate, context.pick(1000, 300))))?;
            took.sort_by(f64::total_cmp);
            let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
            middle.push(at(0.5));
            late.push(at(0.99));
            most.push(at(1.0));
        }
        out.raw("published", serde_json::json!({ "case": name, "p99 ms": late, "most ms": most }));
        let [middle, late, most] = [middle, late, most].map(Spread::of);
        table.row([name.to_owned(), ms(middle.median), ms(late.median), ms(most.high)]);
        out.goals.push(Goal::at_most(SUITE, format!("sessions published, {name}: p99 ms"), late, GOAL));
    }
    out.table(table);
    Ok(())
}

/// Milliseconds from each change to its value in the kernel.
fn changes(gate: &Gate, count: u32) -> Result<Vec<f64>> {
    (0..count)
        .map(|n| {
            // Another value than the one before, round by round.
            let sessions = if gate.published(TENANT)? == n { n + count } else { n };
            let from = Instant::now();
            gate.set_active(TENANT, sessions);
            while gate.published(TENANT)? != sessions {
                if from.elapsed() > NEVER {
                    bail!("{sessions} sessions are not published after {NEVER:?}");
                }
                thread::yield_now();
            }
            Ok(from.elapsed().as_secs_f64() * 1000.0)
        })
        .collect()
}

/// Runs it beside so many threads that never rest.
fn beside<T>(threads: usize, work: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let done = work();
        stop.store(true, Ordering::Relaxed);
        done
    })
}

fn ms(value: f64) -> String {
    format!("{value:.3}")
}
