//! Simulator and load generator.

pub mod load;
pub mod sim;
pub mod suites;
