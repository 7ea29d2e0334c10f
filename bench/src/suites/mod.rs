//! The suites of `bench`: each prints a table and returns its rounds and goals.

pub mod flow;
pub mod idle;

use serde::Serialize;
use serde_json::Value;

use crate::load::goals::Goal;

/// What a suite found.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// The promises, kept or not.
    pub goals: Vec<Goal>,
    /// Every round of every case, and what it was measured with.
    pub raw: Value,
}
