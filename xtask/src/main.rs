//! Everything that is done to this repository: `cargo xtask help`.

mod demo;
mod dist;
mod ebpf;
mod fuzz;
mod guard;
mod setup;
mod sh;
mod tasks;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::setup::Job;

#[derive(Parser)]
#[command(
    bin_name = "cargo xtask",
    about = "Sets up, builds, shows, tests and measures mksgate",
    max_term_width = 110
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Find what the other tasks need and install what is missing, after saying so.
    Setup {
        /// Only what this task needs.
        #[arg(long = "for", value_name = "TASK")]
        job: Option<Job>,
        /// Only say what is missing; fails if anything is.
        #[arg(long)]
        check: bool,
    },
    /// Build the `mksgate` binary, optimised.
    Build {
        /// With the FIPS 140-3 validated module of AWS-LC, for `tls.policy = "fips"`; takes CMake, Go and minutes.
        #[arg(long)]
        fips: bool,
    },
    /// Build the XDP program, to be embedded by the next build of `mksgate`.
    Ebpf {
        /// No error where there is no toolchain for it.
        #[arg(long)]
        if_possible: bool,
    },
    /// Show one whole console: simulated host, appliance, ticket.
    Demo(demo::Args),
    /// Run every test; arguments behind `--` go to `cargo nextest run`.
    Test {
        /// For `cargo nextest run`, for instance `-p mksgate doors`.
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Make what is handed out: a .deb, a tarball, a list of what is in them (SBOM), and checksums.
    Dist,
    /// Formatting, clippy, licences and duplicate dependencies.
    Lint,
    /// Run the fuzz targets for a while.
    Fuzz(fuzz::Args),
    /// Load, attach and try the XDP gate on Debian's Linux 6.1, in QEMU without KVM.
    Vm(vm::Args),
    /// Count the instructions of what every console costs, against the committed baseline.
    Guard(guard::Args),
    /// Build optimised and measure; arguments go to the `bench` binary.
    #[command(disable_help_flag = true)]
    Bench {
        /// For the `bench` binary, for instance `--suite flow`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Setup { job, check: true } => setup::check(job),
        Task::Setup { job, check: false } => setup::all(job),
        Task::Build { fips } => tasks::build(fips),
        Task::Ebpf { if_possible } => ebpf::run(if_possible),
        Task::Demo(args) => demo::run(&args),
        Task::Test { args } => tasks::test(&args),
        Task::Dist => dist::run(),
        Task::Lint => tasks::lint(),
        Task::Fuzz(args) => fuzz::run_targets(&args),
        Task::Vm(args) => vm::run_tests(&args),
        Task::Guard(args) => guard::check(&args),
        Task::Bench { args } => tasks::bench(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // The failed command has said why, and its summary is to stay the last thing on the screen.
        Err(error) if error.is::<sh::Failed>() => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
