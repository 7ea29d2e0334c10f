//! The short tasks: build, test, lint, bench.

use anyhow::Result;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::ebpf;
use crate::fuzz;
use crate::guard;
use crate::setup::{self, Job};
use crate::sh::{cargo, run, target};
use crate::vm;

/// The appliance, optimised; with the XDP program and the console page where what they need is there or can be had.
pub fn build(fips: bool) -> Result<()> {
    if fips {
        setup::all(Some(Job::Fips))?;
    }
    if let Err(error) = setup::all(Some(Job::Build)) {
        eprintln!("{error:#}\n\nGoing on without: mksgate will have no console page.");
    }
    ebpf::run(true)?;
    let feature: &[&str] = if fips { &["--features", "fips"] } else { &[] };
    run(cargo().args(["build", "--release", "--locked", "-p", "mksgate"]).args(feature))?;
    eprintln!("built {}", target().join("release/mksgate").display());
    Ok(())
}

/// Every test, or those that `args` name. The runner's summary is the last thing that is printed.
pub fn test(args: &[String]) -> Result<()> {
    setup::all(Some(Job::Test))?;
    ebpf::run(false)?;
    raise_open_files();
    if args.is_empty() {
        guard::check(&guard::Args::default())?;
        run(cargo().args(["test", "--doc", "--workspace", "--quiet", "--locked"]))?;
        fuzz::run_targets(&fuzz::Args::brief())?;
        vm::run_tests(&vm::Args::quick())?;
    }
    run(cargo()
        .args(["nextest", "run", "--locked"])
        .args(args)
        .env("MKSGATE_FULL_TESTS", "1")
        .env("MKSGATE_PYTHON", setup::python()))
}

/// What has to hold before anything is merged.
pub fn lint() -> Result<()> {
    setup::all(Some(Job::Lint))?;
    run(cargo().args(["fmt", "--all", "--check"]))?;
    run(cargo().args(["fmt", "--check", "--manifest-path", "proxy-ebpf/Cargo.toml"]))?;
    run(cargo().args(["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))?;
    // Without `advisories`: their database would have to be fetched at every run.
    run(cargo().args(["deny", "--locked", "check", "bans", "licenses", "sources"]))
}

/// The measurements of the `bench` binary, with optimised builds of everything of ours.
pub fn bench(args: &[String]) -> Result<()> {
    setup::all(Some(Job::Bench))?;
    ebpf::run(true)?;
    raise_open_files();
    run(cargo().args(["build", "--release", "--locked", "-p", "mksgate", "-p", "mksgate-bench", "--bins"]))?;
    let bench = target().join("release/bench");
    run(crate::sh::command(&bench.to_string_lossy()).args(args))
}

/// As many open files as the system lets this user have: consoles are two sockets each.
pub fn raise_open_files() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Left as it is where it may not be raised; what needs more says so itself.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
