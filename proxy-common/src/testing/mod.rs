//! What the tests of both sides of the kernel line share: packets, and the maps as collections.

mod memory;
mod packets;

pub use memory::{Memory, Slot};
pub use packets::{Packets, Random, Shape, Vlan, shapes};
