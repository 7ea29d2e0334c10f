//! Simulator and load generator.
