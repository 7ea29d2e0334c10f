//! Writes the man pages and shell completions of `mksgate` into the directory named on the command line: what
//! `cargo xtask dist` puts into the packages.

use std::error::Error;
use std::path::PathBuf;

use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate_to};

fn main() -> Result<(), Box<dyn Error>> {
    let dir = PathBuf::from(std::env::args_os().nth(1).ok_or("usage: manuals DIRECTORY")?);
    let (man, completions) = (dir.join("man"), dir.join("completions"));
    std::fs::create_dir_all(&man)?;
    std::fs::create_dir_all(&completions)?;
    let mut command = without_help(mksgate::cli::Cli::command());
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut command, "mksgate", &completions)?;
    }
    clap_mangen::generate_to(command, &man)?;
    Ok(())
}

/// A page for every `help` subcommand would say nothing that `--help` does not.
fn without_help(command: Command) -> Command {
    command.disable_help_subcommand(true).mut_subcommands(without_help)
}
