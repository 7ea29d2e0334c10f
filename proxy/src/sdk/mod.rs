//! The door `POST /sdk`: the appliance poses as a vCenter to clients that come with a sealed ticket. Which operations there
//! are, and on what, is the table in [`crate::protocol::soap::allowed`].

mod handle;
mod sessions;
mod ticket;

pub use handle::respond;
pub use sessions::{SdkSession, SdkSessions};
