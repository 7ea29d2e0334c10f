//! Sealed tickets: what they say, who may seal and open them, how often they may be used.

mod claims;

pub use claims::{Claims, Target, TargetKind};
