//! Certificates of the simulated machines, and the fingerprints by which clients pin them.

use std::io;
use std::sync::Arc;

use aws_lc_rs::digest;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, SupportedProtocolVersion, version};

/// A self-signed certificate with its key, ready for TLS.
#[derive(Clone)]
pub struct Identity {
    cert: CertificateDer<'static>,
    tls: Arc<ServerConfig>,
}

impl Identity {
    /// Makes a new key and certificate for `name`.
    pub fn new(name: &str, versions: TlsVersions) -> io::Result<Self> {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).map_err(io::Error::other)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let cert = made.cert.der().clone();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions.list())
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_single_cert(vec![cert.clone()], key)
            .map_err(io::Error::other)?;
        // Nothing may follow the last record of TLS no. 1 but TLS no. 2; and authd resumes no sessions.
        tls.send_tls13_tickets = 0;
        tls.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(Self { cert, tls: Arc::new(tls) })
    }

    /// The leaf's DER.
    pub fn der(&self) -> &[u8] {
        &self.cert
    }

    /// SHA-1 of the DER as vSphere prints it: `AA:BB:..`.
    pub fn sha1(&self) -> String {
        colons(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &self.cert).as_ref())
    }

    /// SHA-256 of the DER, in the same notation.
    pub fn sha256(&self) -> String {
        colons(digest::digest(&digest::SHA256, &self.cert).as_ref())
    }

    pub(super) fn tls(&self) -> Arc<ServerConfig> {
        self.tls.clone()
    }
}

/// The TLS versions a host offers. ESXi 6 and 7 end at 1.2; ESXi 8 can be told to offer 1.3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVersions {
    /// 1.2 only.
    Tls12,
    /// 1.3 only.
    Tls13,
    /// Both.
    #[default]
    Both,
}

impl TlsVersions {
    fn list(self) -> Vec<&'static SupportedProtocolVersion> {
        match self {
            Self::Tls12 => vec![&version::TLS12],
            Self::Tls13 => vec![&version::TLS13],
            Self::Both => vec![&version::TLS13, &version::TLS12],
        }
    }
}

fn colons(bytes: &[u8]) -> String {
    let pairs: Vec<String> = bytes.iter().map(|b| format!("{b:02X}")).collect();
    pairs.join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thumbprints_look_like_vspheres() {
        let id = Identity::new("esxi.example", TlsVersions::Both).unwrap();
        assert_eq!(id.sha1().len(), 20 * 3 - 1);
        assert_eq!(id.sha256().len(), 32 * 3 - 1);
        assert!(id.sha1().split(':').all(|pair| pair.len() == 2 && u8::from_str_radix(pair, 16).is_ok()));
    }
}
