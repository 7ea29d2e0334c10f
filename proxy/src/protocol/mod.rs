//! The wire protocols as pure state machines: no I/O, no clock, bounded memory on any input (invariant 3).

pub mod authd;
pub mod console_url;
pub mod http;
pub mod line;
pub mod reply;
pub mod rfb;
pub mod rfb_client;
pub mod soap;
pub mod websocket;
