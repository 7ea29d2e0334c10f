//! TLS: policy, certificates and their reload, pinning by thumbprint, and the stream that never reads past its own end.

pub mod thumbprint;

pub use thumbprint::{Thumbprint, ThumbprintError};
