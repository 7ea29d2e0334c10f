//! One console from the hand-over to its account.

mod close;

pub use close::{CloseReason, Fault};
