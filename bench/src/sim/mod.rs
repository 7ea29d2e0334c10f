//! A hypervisor to test against: an ESXi host's console door, written apart from the proxy's own protocol code so that
//! a mistake in the one is not repeated in the other.
//!
//! ```no_run
//! use mksgate_bench::sim::{Esxi, EsxiConfig, Screen, Ticket, Vm};
//!
//! let esxi = Esxi::start(
//!     EsxiConfig::default()
//!         .vm(Vm::new("[ds] web/web.vmx", Screen::desktop()))
//!         .ticket(Ticket::new("52c1", "[ds] web/web.vmx")),
//! )?;
//! println!("{} {}", esxi.addr(), esxi.thumbprint_sha1());
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`host`] | the listener, its threads, what a test holds in its hands |
//! | [`authd`] | the dialogue on TCP 902, up to the hand-over |
//! | [`stream`] | TLS that never reads past the record it needs |
//! | [`wire`] | the TCP stream below: counting, dripping, slow reading |
//! | [`screen`] | what a VM shows: a desktop, a real VNC server, bytes for bulk tests |
//! | [`fault`] | what goes wrong on request |
//! | [`event`] | what happened, to be awaited by a test |

pub mod authd;
pub mod cert;
pub mod config;
pub mod event;
pub mod fault;
pub mod host;
pub mod screen;
pub mod stream;
pub mod wire;

pub use config::{EsxiConfig, Ticket, Vm};
pub use event::{Closed, Event, EventKind, Events};
pub use fault::{Cut, Fault, Faults, Step};
pub use host::Esxi;
pub use screen::{Desktop, Screen};
pub use stream::Stream;
pub use wire::{Drip, Slow};
