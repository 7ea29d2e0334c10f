//! `mksgate certificate`: a self-signed pair for a first start; clients of the raw doors pin certificates anyway.

use std::error::Error;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

/// Ten years: long enough for a laboratory, and a date that every client understands.
const LIFE: Duration = Duration::from_secs(3652 * 24 * 3600);

/// `mksgate certificate …`
#[derive(Debug, clap::Args)]
pub struct CertificateCommand {
    /// The directory for cert.pem and key.pem; files that are there are left alone.
    dir: PathBuf,
    /// A name or address that clients use; this host's name if none is given.
    #[arg(long, value_name = "NAME")]
    name: Vec<String>,
}

/// Makes both files, or neither.
pub fn run(command: CertificateCommand) -> Result<(), Box<dyn Error>> {
    let mut names = command.name;
    if names.is_empty() {
        let host = nix::unistd::gethostname()?;
        names.push(
            host.into_string()
                .map_err(|name| format!("the host's name {} is no text; give --name", name.display()))?,
        );
    }
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names.clone())?;
    params.not_before = SystemTime::now().into();
    params.not_after = (SystemTime::now() + LIFE).into();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, names.swap_remove(0));
    let certificate = params.self_signed(&key)?;
    let (chain, private) = (command.dir.join("cert.pem"), command.dir.join("key.pem"));
    create(&private, 0o600, &key.serialize_pem())?;
    if let Err(error) = create(&chain, 0o644, &certificate.pem()) {
        fs::remove_file(&private)?;
        return Err(error);
    }
    println!("{}\n{}", chain.display(), private.display());
    Ok(())
}

fn create(path: &Path, mode: u32, text: &str) -> Result<(), Box<dyn Error>> {
    let said = |error: std::io::Error| {
        format!("{}: {error}; move what is there away, or name another directory", path.display())
    };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(said)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(said)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::{Policy, certificate};

    #[test]
    fn the_pair_is_what_the_doors_load_and_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let make = || {
            run(CertificateCommand {
                dir: dir.path().into(),
                name: vec!["gate.example".into(), "192.0.2.1".into()],
            })
        };
        make().unwrap();
        let (chain, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        certificate::load(&chain, &key, &Policy::default().provider()).unwrap();
        let before = fs::read(&chain).unwrap();
        assert!(make().unwrap_err().to_string().contains("key.pem"));
        fs::remove_file(&key).unwrap();
        assert!(make().unwrap_err().to_string().contains("cert.pem"));
        assert!(!key.exists(), "both or neither");
        assert_eq!(fs::read(&chain).unwrap(), before);
    }
}
