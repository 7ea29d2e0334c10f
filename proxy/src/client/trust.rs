//! Which certificate of TLS no. 1 is good enough to send a ticket to.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use thiserror::Error;

use crate::tls::{Policy, Thumbprint};

/// Where Debian keeps the roots of the Internet.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// What makes a gate's certificate acceptable.
#[derive(Clone, Debug)]
pub enum Trust {
    /// One of these leaves, whatever its chain and name.
    Thumbprints(Vec<Thumbprint>),
    /// A chain to a root in this PEM file, and the right name; the system's roots where no file is named.
    Roots(Option<PathBuf>),
    /// Anything: whoever sits in between gets the ticket.
    Anything,
}

/// Why no trust could be set up.
#[derive(Debug, Error)]
pub enum TrustError {
    /// No usable root.
    #[error("{}: {why}; name a PEM file with --ca, or pin the gate's certificate with --thumbprint", path.display())]
    Roots {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// rustls refused.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] Error),
}

/// A client configuration for TLS no. 1 that remembers which certificate it saw.
#[derive(Clone, Debug)]
pub struct Trusting {
    pub(super) config: Arc<ClientConfig>,
    verifier: Arc<Verifier>,
}

impl Trusting {
    /// Reads the roots, if need be.
    pub fn new(trust: Trust) -> Result<Self, TrustError> {
        let provider = Policy::Modern.provider();
        let judge = match trust {
            Trust::Thumbprints(prints) => Judge::Thumbprints(prints),
            Trust::Roots(file) => Judge::Chain(chain_verifier(file, &provider)?),
            Trust::Anything => Judge::Anything,
        };
        let verifier = Arc::new(Verifier { judge, provider: provider.clone(), seen: Mutex::default() });
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(verifier.clone())
            .with_no_client_auth();
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Self { config: Arc::new(config), verifier })
    }

    /// The SHA-256 of the last certificate that was looked at.
    pub(super) fn seen(&self) -> Option<Thumbprint> {
        self.verifier.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn chain_verifier(
    file: Option<PathBuf>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, TrustError> {
    let path = file.unwrap_or_else(system_roots);
    let bad = |why: String| TrustError::Roots { path: path.clone(), why };
    let pem = std::fs::read(&path).map_err(|error| bad(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok));
    if roots.is_empty() {
        return Err(bad("holds no root certificate".to_owned()));
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| bad(error.to_string()))
}

/// `SSL_CERT_FILE`, as with OpenSSL, or the system's file.
fn system_roots() -> PathBuf {
    std::env::var_os("SSL_CERT_FILE").map_or_else(|| Path::new(SYSTEM_ROOTS).to_owned(), PathBuf::from)
}

#[derive(Debug)]
enum Judge {
    Thumbprints(Vec<Thumbprint>),
    Chain(Arc<WebPkiServerVerifier>),
    Anything,
}

#[derive(Debug)]
struct Verifier {
    judge: Judge,
    provider: Arc<CryptoProvider>,
    seen: Mutex<Option<Thumbprint>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(Thumbprint::sha256(leaf));
        match &self.judge {
            Judge::Chain(chain_verifier) => chain_verifier.verify_server_cert(leaf, chain, name, ocsp, now),
            Judge::Thumbprints(prints) if !prints.iter().any(|print| print.matches(leaf)) => {
                Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
            }
            Judge::Thumbprints(_) | Judge::Anything => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
