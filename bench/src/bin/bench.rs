//! Measures mksgate beside its peers. Exits with 1 if a goal is missed and `--strict` is given.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use mksgate_bench::load::contender::{Contender, MKSGATE};
use mksgate_bench::load::cost::cores;
use mksgate_bench::suites::{Outcome, flow, idle};
use serde_json::json;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Suite {
    Flow,
    Idle,
}

/// Measures the flow engine beside HAProxy and nginx on this machine, everything over loopback.
#[derive(Parser)]
struct Args {
    /// What to measure; may be given several times.
    #[arg(long, value_enum, required = true)]
    suite: Vec<Suite>,
    /// Rounds per case; medians are reported.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds per round.
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// Idle sessions to hold.
    #[arg(long, default_value_t = 5000)]
    sessions: usize,
    /// Also measure the engine's other drivers and modes.
    #[arg(long)]
    engines: bool,
    /// Only bulk cases with so many flows; 0: none.
    #[arg(long)]
    bulk: Vec<usize>,
    /// Only ping-pong cases with so many flows; 0: none.
    #[arg(long)]
    ping_pong: Vec<usize>,
    /// Leave nginx and direct connections out.
    #[arg(long)]
    brief: bool,
    /// Write goals and all rounds to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Exit with 1 if a goal is missed.
    #[arg(long)]
    strict: bool,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let mut outcomes = Vec::new();
    if args.suite.contains(&Suite::Flow) {
        outcomes.push(("flow", flow::run(&plan(&args))?));
    }
    if args.suite.contains(&Suite::Idle) {
        outcomes.push(("idle", idle::run(args.sessions, &[MKSGATE, Contender::Haproxy, Contender::Nginx])?));
    }
    let ok = report(&outcomes);
    if let Some(file) = &args.json {
        let goals: Vec<_> = outcomes.iter().flat_map(|(_, outcome)| &outcome.goals).collect();
        let suites: serde_json::Map<_, _> =
            outcomes.iter().map(|(name, outcome)| ((*name).to_owned(), outcome.raw.clone())).collect();
        let all = json!({ "goals": goals, "suites": suites, "cores": cores() });
        std::fs::write(file, serde_json::to_vec_pretty(&all)?)
            .with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(if ok || !args.strict { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn plan(args: &Args) -> flow::Plan {
    let mut plan = flow::Plan::full(args.rounds, args.seconds);
    if !args.bulk.is_empty() {
        plan.bulk.retain(|case| args.bulk.contains(&case.flows));
    }
    if !args.ping_pong.is_empty() {
        plan.ping_pong.retain(|case| args.ping_pong.contains(&case.flows));
    }
    if args.brief {
        plan.contenders.retain(|c| *c == MKSGATE || *c == Contender::Haproxy);
    }
    if args.engines {
        for (driver, mode) in [
            ("io-uring", "splice"),
            ("io-uring", "copy"),
            ("epoll", "adaptive"),
            ("epoll", "splice"),
            ("epoll", "copy"),
        ] {
            plan.contenders.push(Contender::Mksgate { driver, mode });
        }
    }
    plan
}

fn report(outcomes: &[(&str, Outcome)]) -> bool {
    println!();
    let goals = outcomes.iter().flat_map(|(_, outcome)| &outcome.goals);
    goals.fold(true, |all, goal| {
        let mark = if goal.ok { "kept  " } else { "MISSED" };
        println!("{mark} {}: {:.3} (goal {})", goal.name, goal.measured, goal.goal);
        all && goal.ok
    })
}
