//! The command line: one file per subcommand.

mod certificate;
mod check;
mod connect;
mod console;
mod desk;
mod doctor;
pub mod hist;
mod keep;
mod lines;
mod log;
pub mod output;
pub mod revoke;
mod serve;
pub mod service;
pub mod sessions;
pub mod tenants;
mod ticket;
pub mod top;
pub mod xdp;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::ConfigError;
use crate::front::InheritError;
use crate::ticket::KeyError;
use crate::tls::CertificateError;

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
    /// Run the appliance
    Serve(ConfigArg),
    /// Check a configuration, its keys and its certificate; point at what is wrong
    Check(ConfigArg),
    /// Look for what is wrong on this host, and say what to do about it
    ///
    /// Exit code: 0 all is well, 1 something could be better, 2 consoles will be refused.
    Doctor(doctor::DoctorCommand),
    /// Make a self-signed certificate and its key
    Certificate(certificate::CertificateCommand),
    /// Open a console for a VNC viewer
    Connect(Box<connect::ConnectCommand>),
    /// Log in at a cell, or take any console's URL, and open a viewer
    Console(Box<console::ConsoleCommand>),
    /// Hash passwords for the ticket desk
    Desk(desk::DeskCommand),
    /// Make keys, seal, open and revoke tickets
    Ticket(ticket::TicketCommand),
    /// List the live consoles, or close some
    Sessions(sessions::SessionsCommand),
    /// Show the tenants, their limits and their live consoles
    Tenants(tenants::TenantsCommand),
    /// Show what the XDP gate does
    Xdp(xdp::XdpCommand),
    /// Show or export latencies
    Hist(hist::HistCommand),
    /// Watch consoles, tenants and latencies on the terminal
    Top(top::TopCommand),
    /// What runs, and in which state; as a page for a browser with --listen
    Status(service::StatusCommand),
    /// Read the configuration again
    Reload(service::ReloadCommand),
    /// Let the program that is installed now take over: no console ends, nobody is refused
    Upgrade(service::UpgradeCommand),
    /// Let nobody in any more and end with the last console
    Drain(service::DrainCommand),
}

/// Which configuration.
#[derive(clap::Args)]
struct ConfigArg {
    /// The configuration file
    #[arg(long, short, env = "MKSGATE_CONFIG", default_value = CONFIG)]
    config: PathBuf,
}

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let result: Result<(), Box<dyn Error>> = match Cli::parse().command {
        Command::Serve(arg) => serve::run(&arg.config),
        Command::Check(arg) => check::run(&arg.config),
        Command::Doctor(command) => return doctor::run(command),
        Command::Certificate(command) => certificate::run(command),
        Command::Connect(command) => command.run().map_err(Into::into),
        Command::Console(command) => command.run().map_err(Into::into),
        Command::Desk(command) => command.run(),
        Command::Ticket(command) => command.run(),
        Command::Sessions(command) => command.run(),
        Command::Tenants(command) => command.run(),
        Command::Xdp(command) => command.run(),
        Command::Hist(command) => command.run(),
        Command::Top(command) => command.run(),
        Command::Status(command) => command.run(),
        Command::Reload(command) => command.run(),
        Command::Upgrade(command) => command.run(),
        Command::Drain(command) => command.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mksgate: {error}");
            code(error.as_ref())
        }
    }
}

/// 78 (EX_CONFIG of sysexits.h) for what only a change of the files repairs, so that a service manager does not try again.
fn code(error: &(dyn Error + 'static)) -> ExitCode {
    const EX_CONFIG: u8 = 78;
    let of_files = error.is::<ConfigError>()
        || error.is::<KeyError>()
        || error.is::<CertificateError>()
        || error.is::<InheritError>();
    if of_files { ExitCode::from(EX_CONFIG) } else { ExitCode::FAILURE }
}
