//! The `mksgate` binary.

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
}

fn main() -> ExitCode {
    let Command::Ticket(ticket) = Cli::parse().command;
    match ticket.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mksgate: {error}");
            ExitCode::FAILURE
        }
    }
}
