//! mksgate: a console proxy. The modules stand in the order in which a connection walks through them.

pub mod admin;
pub mod admission;
pub mod audit;
pub mod backend;
pub mod cli;
pub mod client;
pub mod config;
pub mod control;
pub mod desk;
pub mod doctor;
pub mod flow;
pub mod front;
pub mod gate;
pub mod metrics;
pub mod protocol;
pub mod sdk;
pub mod session;
mod sys;
pub mod ticket;
pub mod tls;
mod trouble;
pub mod upgrade;
pub mod wire;
pub mod xdp;
