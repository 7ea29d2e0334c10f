//! The `mksgate` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    mksgate::cli::run()
}
