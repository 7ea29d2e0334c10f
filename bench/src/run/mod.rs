//! What every suite stands on: its surroundings, alternating rounds, and what it hands back.
//!
//! | module | what |
//! |---|---|
//! | [`context`] | options of the run, who takes part, the interruption |
//! | [`rounds`] | contenders in turn, medians with spread, ratios pair by pair |
//! | [`outcome`] | goals, tables, charts, raw rounds, histograms |
//! | [`process`] | programs that are started and surely ended |
//! | [`facts`] | the machine: kernel, processor, sysctls |
//! | [`stop`] | Ctrl-C |

pub mod context;
pub mod facts;
pub mod outcome;
pub mod process;
pub mod rounds;
pub mod stop;

pub use context::{Context, Options, Skip};
pub use outcome::{Bar, Chart, Group, Line, Outcome, Table};
pub use process::Process;
pub use rounds::{Series, Spread, ratios};
pub use stop::{Interrupted, Stop};
