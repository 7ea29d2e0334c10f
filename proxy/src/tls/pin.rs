//! Certificates accepted by thumbprint. Chains and names mean nothing on a hypervisor (self-signed, by address, SHA-1
//! signed on ESXi 6.5); the thumbprint comes from the vCenter through the sealed ticket.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

use super::Thumbprint;

/// Accepts a leaf whose thumbprint is one of these, nothing else.
#[derive(Debug)]
pub struct Pinned {
    thumbprints: Vec<Thumbprint>,
    provider: Arc<CryptoProvider>,
}

impl Pinned {
    /// A client configuration that accepts just these certificates. An empty list accepts none.
    pub fn config(
        thumbprints: Vec<Thumbprint>,
        provider: Arc<CryptoProvider>,
    ) -> Result<ClientConfig, Error> {
        let verifier = Arc::new(Self { thumbprints, provider: provider.clone() });
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        // One connection per host certificate and ticket: nothing to resume, and no memory to keep for it.
        config.resumption = rustls::client::Resumption::disabled();
        // For `Records`.
        config.enable_secret_extraction = true;
        Ok(config)
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.thumbprints.iter().any(|print| print.matches(leaf)) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
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

/// Whether a handshake failed because the certificate was another one.
pub fn is_wrong_certificate(error: &Error) -> bool {
    matches!(error, Error::InvalidCertificate(_))
}
