//! The command line: one file per subcommand.

pub mod connect;
pub mod ticket;
