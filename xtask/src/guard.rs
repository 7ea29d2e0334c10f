//! Instructions of the work that every console or packet costs, counted by callgrind against a committed baseline. A count does
//! not depend on what else the machine does, so CI can refuse a regression without looking at a clock.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::setup::{self, Job};
use crate::sh::{cargo, root, run, target};

/// Share by which a count may exceed its baseline: other compilers and libraries of the same make move it less.
const MARGIN: f64 = 0.10;
/// A case, and how often it is done in the shorter and the longer run. The difference of both is free of start and end.
const CASES: &[(&str, u32, u32)] = &[
    ("ticket", 100, 600),
    ("authd", 200, 1_200),
    ("unmask", 50, 250),
    ("verdict", 1_000, 11_000),
    ("flow-turn", 200, 1_200),
];

/// `cargo xtask guard`
#[derive(clap::Args, Default)]
pub struct Args {
    /// Write what was counted as the new baseline.
    #[arg(long)]
    renew: bool,
}

/// Counts, compares, or renews.
pub fn check(args: &Args) -> Result<()> {
    setup::all(Some(Job::Guard))?;
    run(cargo().args(["build", "--release", "--locked", "-p", "mksgate-bench", "--bin", "guard"]))?;
    let counted: BTreeMap<&str, f64> =
        CASES.iter().map(|case| Ok((case.0, count(*case)?))).collect::<Result<_>>()?;
    if args.renew {
        return renew(&counted);
    }
    let baseline = baseline()?;
    let mut past = Vec::new();
    eprintln!("instructions       counted   baseline");
    for (case, now) in &counted {
        let Some(before) = baseline["instructions"][case].as_f64() else {
            past.push(format!("{case}: not in the baseline"));
            continue;
        };
        let more = now / before - 1.0;
        eprintln!("  {case:<12} {now:>10.0} {before:>10.0}  {:+.1} %", more * 100.0);
        if more > MARGIN {
            past.push(format!("{case}: {now:.0} instructions, {:+.1} % of {before:.0}", more * 100.0));
        }
    }
    if past.is_empty() {
        return Ok(());
    }
    bail!(
        "past the margin of {:.0} % over {}:\n  {}\nFind out why (`callgrind_annotate`); where it is meant, \
         `cargo xtask guard --renew` writes the new baseline, to be committed with its reason",
        MARGIN * 100.0,
        file().display(),
        past.join("\n  ")
    )
}

/// Instructions of doing it once.
fn count((case, few, many): (&str, u32, u32)) -> Result<f64> {
    let (less, more) = (total(case, few)?, total(case, many)?);
    Ok((more - less) / f64::from(many - few))
}

/// Instructions of all threads of one run.
fn total(case: &str, times: u32) -> Result<f64> {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--dump-instr=no"]);
    valgrind.arg(target().join("release/guard")).arg(case).arg(times.to_string());
    let output = valgrind.current_dir(root()).stdin(Stdio::null()).output().context("cannot run valgrind")?;
    let text = String::from_utf8_lossy(&output.stderr);
    // ==123== Collected : 4567890
    let collected = text.lines().find_map(|line| line.split_once("Collected :"));
    match collected.and_then(|(_, count)| count.trim().parse().ok()) {
        Some(count) if output.status.success() => Ok(count),
        _ => bail!("valgrind did not count {case}:\n{text}"),
    }
}

fn file() -> PathBuf {
    root().join("bench/guard.json")
}

fn baseline() -> Result<Value> {
    let file = file();
    let text = fs::read_to_string(&file)
        .with_context(|| format!("{} is missing; `cargo xtask guard --renew` makes one", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{}", file.display()))
}

fn renew(counted: &BTreeMap<&str, f64>) -> Result<()> {
    let rounded: BTreeMap<_, _> = counted.iter().map(|(case, count)| (case, count.round() as u64)).collect();
    let text = serde_json::to_string_pretty(&json!({
        "what": "instructions of doing each once, by `cargo xtask guard`; CI refuses more than the margin of xtask/src/guard.rs",
        "instructions": rounded,
    }))?;
    fs::write(file(), text + "\n")?;
    eprintln!("wrote {}", file().display());
    Ok(())
}
