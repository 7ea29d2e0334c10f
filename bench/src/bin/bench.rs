//! Measures mksgate beside its peers: `cargo xtask bench`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use mksgate_bench::report::{Ended, Ran, goals, hdr, html, json, markdown};
use mksgate_bench::run::facts::{Host, open_files};
use mksgate_bench::run::{Context, Interrupted, Options, Outcome, Skip, Stop};
use mksgate_bench::suites::{self, Suite};

/// Measures mksgate beside its peers on this machine, over loopback and network namespaces of its own.
///
/// Without --suite, all suites run. Prints a table per case and at the end which goals were kept.
#[derive(Parser)]
#[command(max_term_width = 110)]
struct Args {
    /// What to measure; may be given several times.
    #[arg(long, value_name = "NAME")]
    suite: Vec<String>,
    /// Only these beside mksgate, separated by commas: direct, haproxy, nginx, ….
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    peers: Vec<String>,
    /// Under five minutes: fewer and shorter rounds, fewer cases.
    #[arg(long)]
    quick: bool,
    /// List the suites and their peers, and end.
    #[arg(long)]
    list: bool,
    /// Write goals, host and all rounds to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a page with charts to this file; latency logs (HdrHistogram V2) stand beside it in FILE.hdr/.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the same as Markdown to this file; its charts stand beside it in FILE without its ending.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Exit with 1 if a goal is short or a suite failed.
    #[arg(long)]
    strict: bool,
    /// Rounds per case; medians are reported.
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds per round.
    #[arg(long)]
    seconds: Option<f64>,
    /// Sessions to hold at most.
    #[arg(long)]
    sessions: Option<usize>,
    /// The appliance's program, if it is not the one beside this one.
    #[arg(long, value_name = "PROGRAM")]
    mksgate: Option<PathBuf>,
    /// Minutes that `soak` runs.
    #[arg(long, value_name = "MINUTES")]
    soak: Option<f64>,
    /// Where random choices begin.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// flow: also measure the engine's other drivers and modes.
    #[arg(long)]
    engines: bool,
    /// flow, tls: only bulk cases with so many flows; 0: none.
    #[arg(long)]
    bulk: Vec<usize>,
    /// flow, tls: only ping-pong cases with so many flows; 0: none.
    #[arg(long)]
    ping_pong: Vec<usize>,
}

fn main() -> ExitCode {
    measure(&Args::parse()).unwrap_or_else(|error| {
        eprintln!("bench: {error:#}");
        ExitCode::from(2)
    })
}

fn measure(args: &Args) -> Result<ExitCode> {
    if args.list {
        list();
        return Ok(ExitCode::SUCCESS);
    }
    let chosen = chosen(args)?;
    for file in [&args.json, &args.html, &args.markdown].into_iter().flatten() {
        writable(file)?;
    }
    let stop = Stop::on_signals()?;
    let context = Context::new(options(args), stop.clone())?;
    open_files();
    let host = Host::here();
    println!("{} · {} · {} cores", host.kernel, host.cpu, host.cores);
    let mut ran = Vec::new();
    for suite in chosen {
        ran.push(run(suite, &context));
        // After every suite: what was measured survives whatever comes.
        write(args, &host, &ran)?;
        if stop.asked() {
            break;
        }
    }
    println!("\n{}", goals::table(&ran));
    goals::remarks(&ran).iter().for_each(|remark| println!("{remark}"));
    Ok(ExitCode::from(status(stop.asked(), args.strict, &ran)))
}

/// The exit status: 130 after an interruption; 1 under `--strict` where a goal is short or a suite failed.
fn status(interrupted: bool, strict: bool, ran: &[Ran]) -> u8 {
    let kept =
        |ran: &Ran| !matches!(ran.ended, Ended::Failed(_)) && ran.outcome.goals.iter().all(|goal| goal.ok);
    match (interrupted, strict && !ran.iter().all(kept)) {
        (true, _) => 130,
        (false, short) => u8::from(short),
    }
}

fn list() {
    for suite in suites::ALL {
        let state = if suite.run.is_some() { "" } else { " (not there yet)" };
        let peers = if suite.peers.is_empty() {
            String::new()
        } else {
            format!("; peers: {}", suite.peers.join(", "))
        };
        println!("{:<10} {}{peers}{state}", suite.name, suite.about);
    }
}

/// The suites that were named, in the order in which they run; all, if none was.
fn chosen(args: &Args) -> Result<Vec<&'static Suite>> {
    if let Some(unknown) = args.suite.iter().find(|name| suites::find(name).is_none()) {
        bail!("no suite is called {unknown:?}; there are {}", suites::names());
    }
    if let Some(unknown) = args.peers.iter().find(|name| !suites::peer_exists(name)) {
        bail!("no peer is called {unknown:?}; there are {}", suites::peers());
    }
    let wanted = |suite: &&Suite| args.suite.is_empty() || args.suite.iter().any(|name| name == suite.name);
    Ok(suites::ALL.iter().filter(wanted).collect())
}

fn options(args: &Args) -> Options {
    Options {
        quick: args.quick,
        peers: args.peers.clone(),
        rounds: args.rounds,
        seconds: args.seconds,
        sessions: args.sessions,
        mksgate: args.mksgate.clone(),
        soak: args.soak.map(|minutes| Duration::from_secs_f64(minutes * 60.0)),
        engines: args.engines,
        bulk: args.bulk.clone(),
        ping_pong: args.ping_pong.clone(),
        seed: args.seed,
    }
}

fn run(suite: &'static Suite, context: &Context) -> Ran {
    println!("\n== {}: {}", suite.name, suite.about);
    let (began, mut outcome) = (Instant::now(), Outcome::default());
    let ended = match suite.run {
        None => Ended::Skipped("not there yet".to_owned()),
        Some(run) => match run(context, &mut outcome) {
            Ok(()) => outcome.broken.take().map_or(Ended::Complete, Ended::Failed),
            Err(error) if error.is::<Interrupted>() => Ended::Interrupted,
            Err(error) if error.is::<Skip>() => Ended::Skipped(format!("{error:#}")),
            Err(error) => Ended::Failed(format!("{error:#}")),
        },
    };
    let (name, about, seconds) = (suite.name, suite.about, began.elapsed().as_secs_f64());
    let mut ran = Ran { name, about, ended, seconds, outcome, foreign: context.take_watched() };
    ran.judge();
    if let Some(remark) = ran.remark() {
        println!("{remark}");
    }
    ran
}

/// Found out before the first round, not after the last.
fn writable(file: &Path) -> Result<()> {
    if let Some(dir) = file.parent() {
        // What it could not make, it cannot write to either, and says so.
        let _ = std::fs::create_dir_all(dir);
    }
    std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(file)
        .map(drop)
        .with_context(|| format!("cannot write {}", file.display()))
}

fn write(args: &Args, host: &Host, ran: &[Ran]) -> Result<()> {
    if let Some(file) = &args.json {
        put(file, &serde_json::to_vec_pretty(&json::all(host, ran))?)?;
    }
    if let Some(file) = &args.html {
        put(file, html::page(host, ran).as_bytes())?;
        let logs = PathBuf::from(format!("{}.hdr", file.display()));
        for suite in ran {
            if let Some(log) = hdr::log(suite, host.began)? {
                put(&logs.join(format!("{}.hlog", suite.name)), &log)?;
            }
        }
    }
    if let Some(file) = &args.markdown {
        let charts = file.with_extension("");
        let name = charts.file_name().unwrap_or_default().to_string_lossy();
        let (text, drawn) = markdown::document(host, ran, &name);
        put(file, text.as_bytes())?;
        drawn.iter().try_for_each(|(name, svg)| put(&charts.join(name), svg.as_bytes()))?;
    }
    Ok(())
}

fn put(file: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(dir) = file.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    }
    std::fs::write(file, bytes).with_context(|| format!("writing {}", file.display()))
}

#[cfg(test)]
mod tests {
    use mksgate_bench::load::goals::Goal;

    use super::*;

    fn ran(ended: Ended, measured: f64) -> Ran {
        let goals = vec![Goal::at_most("flow", "a ratio", measured, 1.0)];
        let outcome = Outcome { goals, ..Outcome::default() };
        Ran { name: "flow", about: "", ended, seconds: 1.0, outcome, foreign: Default::default() }
    }

    #[test]
    fn a_short_goal_is_an_error_under_strict_only_and_a_skipped_suite_never() {
        let (kept, short) = (ran(Ended::Complete, 0.9), ran(Ended::Complete, 1.1));
        let skipped = ran(Ended::Skipped("needs root".into()), 0.9);
        assert_eq!(status(false, true, &[kept, skipped]), 0);
        assert_eq!(status(false, false, std::slice::from_ref(&short)), 0);
        assert_eq!(status(false, true, std::slice::from_ref(&short)), 1);
        assert_eq!(status(true, true, &[short]), 130);
        assert_eq!(status(false, true, &[ran(Ended::Failed("broken".into()), 0.9)]), 1);
    }
}
