//! `[desk]`: who may log in, and which org's people may open which VM.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use crate::backend::vcenter::Vcenter;
use crate::backend::vcenter::config::{SecretFile, Wrong};

/// The file's view of `[desk]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeskFile {
    users: Option<PathBuf>,
    oidc: Option<OidcFile>,
    token_file: Option<PathBuf>,
    client_ca: Option<PathBuf>,
    #[serde(default)]
    clone_tickets: bool,
    #[serde(default = "few")]
    attempts_per_user: u32,
    #[serde(default = "some")]
    attempts_per_source: u32,
    #[serde(default = "half_an_hour")]
    session_seconds: u64,
    #[serde(default)]
    orgs: BTreeMap<String, OrgFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OidcFile {
    issuer: String,
    audience: String,
    keys: PathBuf,
    #[serde(default = "sub")]
    user_claim: String,
    #[serde(default = "org")]
    org_claim: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OrgFile {
    tenant: String,
    #[serde(default)]
    vms: BTreeMap<String, VmFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VmFile {
    vcenter: String,
    moref: Option<String>,
}

fn sub() -> String {
    "sub".into()
}
fn org() -> String {
    "org".into()
}
fn few() -> u32 {
    5
}
fn some() -> u32 {
    20
}
fn half_an_hour() -> u64 {
    1800
}

/// The desk.
#[derive(Clone, Debug, PartialEq)]
pub struct DeskConfig {
    /// The users' file, where people log in with a password.
    pub users: Option<PathBuf>,
    /// The identity provider, where they log in with its token.
    pub oidc: Option<Oidc>,
    /// What a portal shows at `/v1/tickets`.
    pub token: Option<SecretFile>,
    /// Who signs portals' certificates. Without it and without a token `/v1/tickets` is closed.
    pub client_ca: Option<PathBuf>,
    /// Tickets carry a clone ticket of the vCenter's, so that the cell that opens them needs no account there.
    pub clone_tickets: bool,
    /// Failed logins of one user a minute.
    pub attempts_per_user: u32,
    /// Failed logins from one source (IPv4 address, IPv6 /64) a minute.
    pub attempts_per_source: u32,
    /// How long a login is good, seconds.
    pub session_seconds: u64,
    /// Orgs by name.
    pub orgs: BTreeMap<String, Org>,
}

/// An OpenID Connect provider whose tokens are taken.
#[derive(Clone, Debug, PartialEq)]
pub struct Oidc {
    /// `iss`.
    pub issuer: String,
    /// What `aud` must hold.
    pub audience: String,
    /// Its public keys, a JWK set (RFC 7517); read again at every login.
    pub keys: PathBuf,
    /// The claim with the person's name.
    pub user_claim: String,
    /// The claim with the person's org, or orgs.
    pub org_claim: String,
}

/// An org.
#[derive(Clone, Debug, PartialEq)]
pub struct Org {
    /// The tenant whose limits and targets apply.
    pub tenant: String,
    /// Its VMs by id, as its people name them (`vm-61`).
    pub vms: BTreeMap<String, OrgVm>,
}

/// Where a VM is.
#[derive(Clone, Debug, PartialEq)]
pub struct OrgVm {
    /// The name of a `[vcenters]` section.
    pub vcenter: String,
    /// Its id there.
    pub moref: String,
}

/// Checks the section against the tenants and the vCenters.
pub fn check(
    file: DeskFile,
    tenants: &[&String],
    vcenters: &Vcenter,
    path: impl Fn(PathBuf) -> PathBuf,
) -> Result<DeskConfig, Wrong> {
    let wrong = |key: String, what: String| (key, what);
    for (key, value) in [
        ("attempts_per_user", u64::from(file.attempts_per_user)),
        ("attempts_per_source", file.attempts_per_source.into()),
        ("session_seconds", file.session_seconds),
    ] {
        if value == 0 {
            return Err(wrong(format!("desk.{key}"), "must be more than 0".into()));
        }
    }
    if file.users.is_none() && file.oidc.is_none() && file.token_file.is_none() && file.client_ca.is_none() {
        return Err(wrong(
            "desk".into(),
            "nobody could log in; give `users`, `[desk.oidc]`, `token_file` or `client_ca`".into(),
        ));
    }
    let oidc = file.oidc.map(|oidc| check_oidc(oidc, &path)).transpose()?;
    let mut orgs = BTreeMap::new();
    for (name, org) in file.orgs {
        let key = format!("desk.orgs.{name}");
        if name.contains(['@', ':']) {
            return Err(wrong(
                key,
                "an org's name holds no @ and no colon: people log in as user@org:password".into(),
            ));
        }
        if !tenants.contains(&&org.tenant) {
            return Err(wrong(format!("{key}.tenant"), format!("there is no `[tenants.{}]`", org.tenant)));
        }
        let mut vms = BTreeMap::new();
        for (id, vm) in org.vms {
            let key = format!("{key}.vms.{id}");
            if id.is_empty()
                || id.len() > 128
                || !id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
            {
                return Err(wrong(
                    key,
                    "a VM's id has letters, digits, `-`, `_` and `.` only: it stands in URLs".into(),
                ));
            }
            if !vcenters.accounts.contains_key(&vm.vcenter) {
                return Err(wrong(
                    format!("{key}.vcenter"),
                    format!("there is no `[vcenters.{}]`", vm.vcenter),
                ));
            }
            let moref = vm.moref.unwrap_or_else(|| id.clone());
            vms.insert(id, OrgVm { vcenter: vm.vcenter, moref });
        }
        orgs.insert(name, Org { tenant: org.tenant, vms });
    }
    Ok(DeskConfig {
        users: file.users.map(&path),
        oidc,
        token: file.token_file.map(|file| SecretFile::new(path(file))),
        client_ca: file.client_ca.map(path),
        clone_tickets: file.clone_tickets,
        attempts_per_user: file.attempts_per_user,
        attempts_per_source: file.attempts_per_source,
        session_seconds: file.session_seconds,
        orgs,
    })
}

fn check_oidc(file: OidcFile, path: &impl Fn(PathBuf) -> PathBuf) -> Result<Oidc, Wrong> {
    for (key, value) in [
        ("issuer", &file.issuer),
        ("audience", &file.audience),
        ("user_claim", &file.user_claim),
        ("org_claim", &file.org_claim),
    ] {
        if value.is_empty() {
            return Err((format!("desk.oidc.{key}"), "must not be empty".into()));
        }
    }
    Ok(Oidc {
        issuer: file.issuer,
        audience: file.audience,
        keys: path(file.keys),
        user_claim: file.user_claim,
        org_claim: file.org_claim,
    })
}
