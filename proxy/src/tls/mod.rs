//! TLS: policy, certificates and their reload, pinning by thumbprint, and the stream that never reads past its own end.

pub mod certificate;
pub mod pin;
mod policy;
pub mod session;
pub mod stream;
pub mod thumbprint;

use std::sync::Arc;

use rustls::ServerConfig;

pub use certificate::{CertificateError, Presented};
pub use pin::Pinned;
pub use policy::Policy;
pub use session::Session;
pub use stream::{TlsError, TlsStream};
pub use thumbprint::{Thumbprint, ThumbprintError};

/// What the front doors speak. No session tickets: on the MKS doors TLS no. 1 lives for one dialogue, and a ticket that
/// came after the hand-over would land in the middle of TLS no. 2.
pub fn server_config(policy: Policy, presented: Arc<Presented>) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(policy.provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(presented);
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.alpn_protocols = Vec::new();
    Ok(config)
}
