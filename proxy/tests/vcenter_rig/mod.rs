//! vCenters of the tests: a real one (govmomi's simulator) and one that misbehaves on request.
#![allow(dead_code, missing_docs, clippy::allow_attributes, reason = "each test binary uses its part of it")]

pub mod desk;
pub mod fake;
pub mod http;
pub mod vcsim;
pub mod webmks;
