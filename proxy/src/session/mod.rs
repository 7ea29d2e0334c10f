//! One console from the hand-over to its account.

mod close;
mod hand_over;
mod registry;
mod words;

pub use close::{CloseReason, Fault};
pub(crate) use hand_over::{Account, Held, opened_here};
pub use hand_over::{HandOver, close_all, hand_over};
pub use registry::{Registry, Selector, Session, SessionView, SocketView, rfc3339};
pub use words::{NotOpened, Words};
