//! cli

pub mod hist;
pub mod output;
pub mod revoke;
pub mod service;
pub mod sessions;
pub mod tenants;
pub mod top;
