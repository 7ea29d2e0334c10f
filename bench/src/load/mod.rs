//! Load: what is measured (contenders), what is done to it (bulk, ping-pong, idle), and what it costs (CPU, memory).

pub mod bulk;
pub mod contender;
pub mod cost;
pub mod goals;
pub mod idle;
pub mod pingpong;
pub mod wire;
