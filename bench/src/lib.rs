//! Simulator and load generator.

pub mod load;
pub mod netns;
pub mod report;
pub mod run;
pub mod sim;
pub mod suites;
