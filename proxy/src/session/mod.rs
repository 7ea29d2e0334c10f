//! One console from the hand-over to its account.

mod close;
mod registry;

pub use close::{CloseReason, Fault};
pub use registry::{Registry, Selector, Session, SessionView, SocketView, rfc3339};
