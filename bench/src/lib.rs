//! Simulator and load generator.

pub mod load;
pub mod suites;
