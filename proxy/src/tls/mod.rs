//! TLS: policy, certificates and their reload, pinning by thumbprint, and the stream that never reads past its own end.

pub mod certificate;
pub mod outgoing;
pub mod pin;
mod policy;
pub mod records;
pub mod session;
pub mod stream;
pub mod thumbprint;

use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

pub use certificate::{CertificateError, Presented};
pub use pin::Pinned;
pub use policy::{Policy, VALIDATED};
pub use session::Session;
pub use stream::{TlsError, TlsStream};
pub use thumbprint::{Thumbprint, ThumbprintError};

/// What the front doors speak. No session tickets: on the MKS doors TLS no. 1 lives for one dialogue, and a ticket that
/// came after the hand-over would land in the middle of TLS no. 2.
///
/// With `portals` a client may show a certificate that one of these roots signed; none has to.
pub fn server_config(
    policy: Policy,
    presented: Arc<Presented>,
    portals: Option<RootCertStore>,
) -> Result<ServerConfig, rustls::Error> {
    let provider = policy.provider();
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match portals {
        None => builder.with_no_client_auth(),
        Some(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = verifier.allow_unauthenticated().build();
            builder.with_client_cert_verifier(
                verifier.map_err(|error| rustls::Error::General(error.to_string()))?,
            )
        }
    };
    let mut config = builder.with_cert_resolver(presented);
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.alpn_protocols = Vec::new();
    // For `Records`: after the hand-over the record layer is ours.
    config.enable_secret_extraction = true;
    // The policy's order counts, whatever a client would like best.
    config.ignore_client_order = true;
    if VALIDATED && policy == Policy::Fips && !config.fips() {
        return Err(rustls::Error::General(
            "the policy `fips` is not what the validated module approves".into(),
        ));
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use rustls::sign::CertifiedKey;

    use super::*;

    fn config(policy: Policy) -> ServerConfig {
        let made = rcgen::generate_simple_self_signed(vec!["console.example".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let key = policy.provider().key_provider.load_private_key(key).unwrap();
        let presented = Presented::new(CertifiedKey::new(vec![made.cert.der().clone()], key));
        server_config(policy, presented, None).unwrap()
    }

    /// With the module too, by hand: `cargo test -p mksgate --lib --features fips fips`; it takes minutes to build. Such a
    /// build has nothing that is not approved, whatever the policy.
    #[test]
    fn a_build_with_the_validated_module_is_fips_and_one_without_does_not_claim_it() {
        for policy in [Policy::Fips, Policy::Modern] {
            assert_eq!(config(policy).fips(), VALIDATED, "{policy:?}");
            assert!(config(policy).ignore_client_order, "{policy:?}");
        }
    }
}
