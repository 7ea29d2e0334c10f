//! The XDP gate: sheds floods before the kernel's TCP stack pays for them.
//!
//! ```text
//! policy ── Plan ── Program (maps) ── Attachment (one per interface)
//!                      ↑                     ↑
//!  set_active, learn ──┴── worker thread ────┴── interfaces that come and go, drop events
//! ```
//! All of that is in this process, or in a keeper's ([`Keeper`]), which this one tells by a socket ([`Remote`]).
//!
//! It decides capacity, never policy: without it every limit still holds in userspace, only later.

mod address;
mod ask;
mod attach;
mod charter;
mod config;
mod counters;
mod drops;
mod error;
mod gate;
mod inner;
mod interface;
mod keeper;
mod left;
mod lines;
mod local;
mod maps;
pub mod message;
mod netlink;
mod policy;
mod readers;
mod remote;
mod samples;
mod serve;
mod sizes;
mod store;
mod told;
mod worker;

pub use ask::{Seen, look_at};
pub use attach::missing_interfaces;
pub use config::{Enabled, Limits, Mode, OnLimit, XdpConfig, XdpConfigError, XdpSection};
pub use counters::{CounterReport, DropEvent, LoudSource, TenantReport};
pub use error::{GateError, InterfaceProblem, missing_capabilities};
pub use gate::{Estate, Gate, monotonic};
pub use inner::GateStatus;
pub use interface::InterfaceStatus;
pub use keeper::Keeper;
pub use left::Left;
pub use maps::{Outcome, Program};
pub use policy::{MAX_TENANT, Policy, PolicyError, TenantPolicy};
pub use remote::Remote;
pub use serve::{Shed, ShedStatus, TenantSyns, VerdictCount, policy, start};
pub use store::Store;

/// The compiled XDP program, if this build has one.
pub const OBJECT: Option<&[u8]> = include!(concat!(env!("OUT_DIR"), "/xdp_object.rs"));
