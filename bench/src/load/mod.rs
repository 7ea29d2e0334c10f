//! Load: what is measured (contenders, the appliance), what is done to it, and what it costs (CPU, memory).

pub mod appliance;
pub mod arrivals;
pub mod bulk;
pub mod contender;
pub mod cost;
pub mod crowd;
pub mod flood;
pub mod goals;
pub mod handshake;
pub mod idle;
pub mod pingpong;
pub mod rig;
pub mod sealed;
pub mod terminator;
pub mod trace;
pub mod visitor;
pub mod websocket;
pub mod wire;
