//! Which TLS is spoken: versions, cipher suites, key exchange.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use serde::{Deserialize, Serialize};

/// The operator's choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// TLS 1.2 and 1.3, AES-GCM, P-256 and P-384 only: what FIPS 140-3 approves. By the validated module where the build has it.
    Fips,
    /// What rustls offers by default: X25519, hybrid post-quantum exchange and ChaCha20 as well.
    #[default]
    Modern,
}

/// Whether this build has the FIPS 140-3 validated module (feature `fips`).
pub const VALIDATED: bool = cfg!(feature = "fips");

impl Policy {
    /// The provider with just what the policy allows.
    pub fn provider(self) -> Arc<CryptoProvider> {
        let mut provider = aws_lc_rs::default_provider();
        if self == Self::Fips {
            use aws_lc_rs::{cipher_suite as suite, kx_group};
            provider.cipher_suites = vec![
                suite::TLS13_AES_256_GCM_SHA384,
                suite::TLS13_AES_128_GCM_SHA256,
                suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
                suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
                suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
                suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            ];
            provider.kx_groups = vec![kx_group::SECP256R1, kx_group::SECP384R1];
        }
        Arc::new(provider)
    }
}
