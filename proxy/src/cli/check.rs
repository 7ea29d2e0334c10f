//! `mksgate check`: everything `serve` would refuse, found without serving.

use std::error::Error;
use std::path::Path;

use crate::config::Config;
use crate::desk::{oidc, users};
use crate::ticket::KeyRing;
use crate::tls::certificate;

/// Loads what the configuration names and says what it found.
pub fn run(path: &Path) -> Result<(), Box<dyn Error>> {
    let config = Config::load(path)?;
    println!("{}: {} tenants", path.display(), config.tenants.len());
    let keys = KeyRing::load(&config.tickets.keys)?;
    println!("{}: {} ticket keys", config.tickets.keys.display(), keys.len());
    let certified =
        certificate::load(&config.tls.certificate, &config.tls.key, &config.tls.policy.provider())?;
    println!("{}: {} certificates, key fits", config.tls.certificate.display(), certified.cert.len());
    for (door, addresses) in [("tls", &config.listen.tls), ("authd", &config.listen.authd)] {
        for address in addresses {
            println!("door {door}: {address}");
        }
    }
    for (name, account) in &config.vcenter.accounts {
        account.secret.read()?;
        println!("vCenter {name}: {}:{} as {}", account.host, account.port, account.user);
    }
    if let Some(desk) = &config.desk {
        println!("desk: {} orgs", desk.orgs.len());
        if let Some(file) = &desk.users {
            println!("{}: {} users", file.display(), users::read(file)?);
        }
        if let Some(provider) = &desk.oidc {
            println!(
                "{}: {} keys of {}",
                provider.keys.display(),
                oidc::read(&provider.keys)?,
                provider.issuer
            );
        }
        if let Some(token) = &desk.token {
            token.read()?;
        }
        if let Some(roots) = config.portals()? {
            println!("desk: portals are told by {} issuers", roots.len());
        }
    }
    println!("ok");
    Ok(())
}
