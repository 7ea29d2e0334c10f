//! What the XDP program and the proxy share: the packet reader, the token bucket, the map types and the verdict.
//!
//! Nothing here does I/O, asks for the time, or allocates (but `destinations::build`, which is for userspace), so the code that decides in the kernel is the code that the
//! tests run in userspace.
#![no_std]

pub mod bucket;
pub mod destinations;
pub mod known;
pub mod map;
pub mod packet;
pub mod reset;
pub mod sources;
#[cfg(feature = "testing")]
pub mod testing;
pub mod verdict;

#[cfg(any(test, feature = "testing", feature = "user"))]
extern crate std;
