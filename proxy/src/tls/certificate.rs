//! The appliance's certificate and key: read, checked, and replaced while connections come in.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use thiserror::Error;

use super::Thumbprint;

/// Why a certificate cannot be used. Each names the file and the remedy.
#[derive(Debug, Error)]
pub enum CertificateError {
    /// The file cannot be read.
    #[error("{}: cannot be read ({error}); check the path and that mksgate's user may read it", .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// Not PEM, or not what is expected in it.
    #[error("{}: {what}", .path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong and what to do.
        what: String,
    },
    /// Others may read the key.
    #[error("{}: the key may be read by others (mode {mode:04o}); run `chmod 600` on it", .path.display())]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

/// Refuses a secret file that anybody but its owner can read (group read is left to root-owned files, as
/// systemd credentials and packaged keys have it).
pub fn check_secret(path: &Path) -> Result<(), CertificateError> {
    let meta = fs::metadata(path).map_err(|error| CertificateError::Read { path: path.into(), error })?;
    let mode = meta.permissions().mode() & 0o777;
    let allowed = if meta.uid() == 0 { 0o740 } else { 0o700 };
    if mode & !allowed != 0 { Err(CertificateError::Exposed { path: path.into(), mode }) } else { Ok(()) }
}

/// A chain and its key as rustls wants them.
pub fn load(chain: &Path, key: &Path, provider: &CryptoProvider) -> Result<CertifiedKey, CertificateError> {
    let content = |path: &Path, what: String| CertificateError::Content { path: path.into(), what };
    let read =
        |path: &Path| fs::read(path).map_err(|error| CertificateError::Read { path: path.into(), error });
    check_secret(key)?;
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&read(chain)?)
        .collect::<Result<_, _>>()
        .map_err(|error| content(chain, format!("not a PEM certificate chain ({error})")))?;
    if certificates.is_empty() {
        return Err(content(chain, "holds no certificate; put the chain there as PEM, leaf first".into()));
    }
    let private = PrivateKeyDer::from_pem_slice(&read(key)?)
        .map_err(|error| content(key, format!("holds no private key as PEM ({error})")))?;
    let signer = provider
        .key_provider
        .load_private_key(private)
        .map_err(|error| content(key, format!("the key cannot be used ({error})")))?;
    let certified = CertifiedKey::new(certificates, signer);
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(certified),
        Err(_) => Err(content(key, format!("is not the key of the certificate in {}", chain.display()))),
    }
}

/// Certificates that sign others, PEM.
pub fn roots(path: &Path) -> Result<RootCertStore, CertificateError> {
    let content = |what: String| CertificateError::Content { path: path.into(), what };
    let pem = fs::read(path).map_err(|error| CertificateError::Read { path: path.into(), error })?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| content(format!("not PEM ({error})")))?;
        roots.add(certificate).map_err(|error| content(format!("holds what is no root ({error})")))?;
    }
    if roots.is_empty() {
        return Err(content("holds no certificate; put the issuer's there as PEM".into()));
    }
    Ok(roots)
}

/// What the listeners present; swapped by a reload.
#[derive(Debug)]
pub struct Presented(ArcSwap<CertifiedKey>);

impl Presented {
    /// Presents this one.
    pub fn new(certified: CertifiedKey) -> Arc<Self> {
        Arc::new(Self(ArcSwap::from_pointee(certified)))
    }

    /// Presents another one from the next handshake on.
    pub fn replace(&self, certified: CertifiedKey) {
        self.0.store(Arc::new(certified));
    }

    /// The leaf's SHA-1 and SHA-256, as clients pin them.
    pub fn thumbprints(&self) -> Option<(Thumbprint, Thumbprint)> {
        let certified = self.0.load();
        let leaf = certified.cert.first()?;
        Some((Thumbprint::sha1(leaf), Thumbprint::sha256(leaf)))
    }
}

impl ResolvesServerCert for Presented {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}
