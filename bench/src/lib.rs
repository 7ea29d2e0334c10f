//! Simulator and load generator.

pub mod sim;
