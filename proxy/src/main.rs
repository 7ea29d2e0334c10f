//! The `mksgate` binary.

use std::error::Error;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "mksgate", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make keys, seal tickets, see what is in them
    Ticket(mksgate::cli::ticket::TicketCommand),
    /// Open a ticket's console for a VNC viewer
    Connect(mksgate::cli::connect::ConnectCommand),
}

fn main() -> ExitCode {
    let done: Result<(), Box<dyn Error>> = match Cli::parse().command {
        Command::Ticket(ticket) => ticket.run().map_err(Into::into),
        Command::Connect(connect) => connect.run().map_err(Into::into),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mksgate: {error}");
            ExitCode::FAILURE
        }
    }
}
