//! WebSocket (RFC 6455): the handshake's arithmetic, and frames decoded and encoded in place on byte slices.
//!
//! Nothing here ever holds a frame: payloads are unmasked where they lie, in whatever pieces they come. A decoder's
//! memory is its own size (a header, a control frame's 125 bytes) whatever lengths a peer announces.

mod close;
mod decoder;
mod frame;
mod handshake;
mod utf8;

pub use close::{Close, CloseCode, Violation};
pub use decoder::{Control, Decoder, Event, Peer};
pub use frame::{FrameHeader, HEADER_ROOM, MAX_CONTROL, Opcode, mask, put_control};
pub use handshake::{NotAccepted, Subprotocol, UpgradeError, accept_key, accepted, negotiate};
pub use utf8::to_utf8;
