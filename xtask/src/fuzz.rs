//! `cargo xtask fuzz`: every fuzz target for a while, from the inputs in `fuzz/seeds` and those found before.
//!
//! Built as cargo-fuzz builds with `--sanitizer none`: counters in every block, debug assertions, any compiler. Safe Rust has
//! little for a sanitizer to find; a panic, an overflow and a broken assertion end the run all the same.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::sh::{cargo, command, root, run, target};

/// What cargo-fuzz passes (its src/project.rs), without a sanitizer.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks";
/// With a target named, the flags are not for build scripts.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// The target that needs `mksgate-common` only.
const PACKET: &str = "packet";

/// Arguments of the command.
#[derive(clap::Args)]
pub struct Args {
    /// For each target.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Only these; without, all.
    targets: Vec<String>,
}

impl Args {
    /// What `cargo xtask test` wants: every target, for a moment.
    pub fn brief() -> Args {
        Args { seconds: 3, targets: Vec::new() }
    }
}

/// Runs the command; an error if any target found something.
pub fn run_targets(args: &Args) -> Result<()> {
    let folder = root().join("fuzz");
    let targets = if args.targets.is_empty() { names(&folder)? } else { args.targets.clone() };
    let built = target().join("fuzz");
    let mut build = cargo();
    // Not `--locked`: this workspace follows the dependencies of the other one.
    build.args(["build", "--release", "--target", TRIPLE, "--manifest-path", "fuzz/Cargo.toml"]);
    build.arg("--target-dir").arg(&built).env("RUSTFLAGS", FLAGS);
    for name in &targets {
        build.args(["--bin", name]);
    }
    if targets.iter().any(|name| name != PACKET) {
        build.args(["--features", "appliance"]);
    }
    run(&mut build)?;
    for name in &targets {
        fuzz(&folder, &built, name, args.seconds)?;
    }
    Ok(())
}

/// The targets are the files.
fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder.join("fuzz_targets")).context("fuzz/fuzz_targets")?;
    let files: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    let mut names: Vec<String> =
        files.iter().filter_map(|file| Some(file.file_stem()?.to_str()?.to_owned())).collect();
    names.sort();
    Ok(names)
}

fn fuzz(folder: &Path, built: &Path, name: &str, seconds: u64) -> Result<()> {
    let corpus = built.join("corpus").join(name);
    let found = built.join("artifacts").join(name);
    for folder in [&corpus, &found] {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let mut fuzzer = command(&built.join(TRIPLE).join("release").join(name).to_string_lossy());
    fuzzer.arg(&corpus);
    let seeds = folder.join("seeds").join(name);
    if seeds.is_dir() {
        fuzzer.arg(seeds);
    }
    // An input that takes ten seconds, or half a GiB, is a finding too.
    fuzzer.args([
        &format!("-max_total_time={seconds}"),
        "-timeout=10",
        "-rss_limit_mb=512",
        "-print_final_stats=1",
    ]);
    fuzzer.arg(format!("-artifact_prefix={}/", found.display()));
    run(&mut fuzzer).with_context(|| format!("the input that did it is in {}", found.display()))
}
