//! The command line: one file per subcommand.

mod check;
mod serve;
mod ticket;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Where the configuration stands if nothing else is said.
const CONFIG: &str = "/etc/mksgate/mksgate.toml";

/// A console proxy: hands authorised MKS flows to io_uring and splices them between client and hypervisor.
#[derive(Parser)]
#[command(name = "mksgate", version, about, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the appliance.
    Serve(ConfigArg),
    /// Check a configuration, its keys and its certificate; point at what is wrong.
    Check(ConfigArg),
    /// Make keys, seal and open tickets.
    Ticket(ticket::TicketCommand),
}

/// Which configuration.
#[derive(clap::Args)]
struct ConfigArg {
    /// The configuration file.
    #[arg(long, short, env = "MKSGATE_CONFIG", default_value = CONFIG)]
    config: PathBuf,
}

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(arg) => serve::run(&arg.config),
        Command::Check(arg) => check::run(&arg.config),
        Command::Ticket(command) => command.run().map_err(Into::into),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mksgate: {error}");
            ExitCode::FAILURE
        }
    }
}
