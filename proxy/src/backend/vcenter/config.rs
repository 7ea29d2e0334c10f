//! `[vcenter]` and `[vcenters.NAME]`: how vCenters are talked to, and the accounts for tickets without a clone ticket.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use zeroize::Zeroizing;

use crate::tls::{Thumbprint, certificate};

/// The file's view of `[vcenter]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VcenterFile {
    max_calls: usize,
    max_waits: usize,
    call_seconds: f64,
    connect_seconds: f64,
    session_idle_seconds: f64,
    power_on_seconds: f64,
    breaker_failures: u32,
    breaker_seconds: f64,
}

impl Default for VcenterFile {
    fn default() -> Self {
        Self {
            max_calls: 16,
            max_waits: 64,
            call_seconds: 10.0,
            connect_seconds: 5.0,
            session_idle_seconds: 900.0,
            power_on_seconds: 60.0,
            breaker_failures: 5,
            breaker_seconds: 10.0,
        }
    }
}

/// The file's view of `[vcenters.NAME]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountFile {
    host: String,
    #[serde(default = "https")]
    port: u16,
    thumbprints: Vec<String>,
    user: String,
    password_file: Option<PathBuf>,
    credential: Option<String>,
}

fn https() -> u16 {
    443
}

/// How vCenters are talked to.
#[derive(Clone, Debug, PartialEq)]
pub struct Vcenter {
    /// Calls to one vCenter at once.
    pub max_calls: usize,
    /// Long polls to one vCenter at once, beside the calls.
    pub max_waits: usize,
    /// Longest time of a call, the wait for its turn included.
    pub call: Duration,
    /// Longest time for name, TCP and TLS of a new connection.
    pub connect: Duration,
    /// A session nobody used for this long is logged out.
    pub session_idle: Duration,
    /// Longest time a VM may take to power on.
    pub power_on: Duration,
    /// Failures in a row that open the circuit breaker.
    pub breaker_failures: u32,
    /// How long it stays open before one call tries again.
    pub breaker_rest: Duration,
    /// Accounts by name.
    pub accounts: BTreeMap<String, Account>,
}

/// A vCenter that the appliance may log in to.
#[derive(Clone, Debug, PartialEq)]
pub struct Account {
    /// Name or address, as tickets name it.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Its certificate. The password is sent to nobody else, whatever a ticket says.
    pub thumbprints: Vec<Thumbprint>,
    /// The account.
    pub user: String,
    /// Where its password is.
    pub secret: SecretFile,
}

/// A secret in a file that only the service may read; read again whenever it is needed.
#[derive(Clone, Debug, PartialEq)]
pub struct SecretFile(PathBuf);

impl SecretFile {
    /// In this file.
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// The secret without the line end behind it. The error names the file and the remedy.
    pub fn read(&self) -> Result<Zeroizing<String>, String> {
        certificate::check_secret(&self.0).map_err(|error| error.to_string())?;
        let text = std::fs::read_to_string(&self.0).map(Zeroizing::new);
        let text = text.map_err(|error| format!("{}: cannot be read ({error})", self.0.display()))?;
        let secret = text.trim_end_matches(['\r', '\n']);
        if secret.is_empty() {
            return Err(format!("{}: is empty; the password goes there", self.0.display()));
        }
        Ok(Zeroizing::new(secret.to_owned()))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// A key, and what is wrong with it.
pub type Wrong = (String, String);

/// Checks both sections. `file` makes a path of the configuration absolute.
pub fn check(
    settings: &VcenterFile,
    accounts: BTreeMap<String, AccountFile>,
    file: impl Fn(PathBuf) -> PathBuf,
) -> Result<Vcenter, Wrong> {
    let seconds = |key: &str, value: f64| match Duration::try_from_secs_f64(value) {
        Ok(duration) if value > 0.0 => Ok(duration),
        _ => Err((format!("vcenter.{key}"), "must be more than 0 seconds".to_owned())),
    };
    let count = |key: &str, value: usize| match value {
        0 => Err((format!("vcenter.{key}"), "must be more than 0".to_owned())),
        value => Ok(value),
    };
    let mut checked: BTreeMap<String, Account> = BTreeMap::new();
    for (name, account) in accounts {
        let account = check_account(&name, account, &file)?;
        if let Some((other, _)) =
            checked.iter().find(|(_, a)| (&a.host, a.port) == (&account.host, account.port))
        {
            return Err((
                format!("vcenters.{name}.host"),
                format!("is also the host of `{other}`; a vCenter has one account"),
            ));
        }
        checked.insert(name, account);
    }
    Ok(Vcenter {
        max_calls: count("max_calls", settings.max_calls)?,
        max_waits: count("max_waits", settings.max_waits)?,
        call: seconds("call_seconds", settings.call_seconds)?,
        connect: seconds("connect_seconds", settings.connect_seconds)?,
        session_idle: seconds("session_idle_seconds", settings.session_idle_seconds)?,
        power_on: seconds("power_on_seconds", settings.power_on_seconds)?,
        breaker_failures: count("breaker_failures", settings.breaker_failures as usize)? as u32,
        breaker_rest: seconds("breaker_seconds", settings.breaker_seconds)?,
        accounts: checked,
    })
}

fn check_account(
    name: &str,
    account: AccountFile,
    file: &impl Fn(PathBuf) -> PathBuf,
) -> Result<Account, Wrong> {
    let wrong = |key: &str, what: &str| (format!("vcenters.{name}.{key}"), what.to_owned());
    if account.host.is_empty() || account.user.is_empty() {
        return Err(wrong("host", "`host` and `user` must not be empty"));
    }
    if account.thumbprints.is_empty() {
        return Err(wrong(
            "thumbprints",
            "is empty: without one the vCenter cannot be told from an impostor; `openssl s_client -connect HOST:443 </dev/null | openssl x509 -noout -fingerprint -sha256` shows it",
        ));
    }
    let thumbprints = account.thumbprints.iter().map(|text| text.parse());
    let thumbprints: Result<Vec<Thumbprint>, _> = thumbprints.collect();
    let path = match (account.password_file, account.credential) {
        (Some(path), None) => file(path),
        (None, Some(credential)) => {
            let directory = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
                wrong("credential", "no CREDENTIALS_DIRECTORY: run under systemd with LoadCredential=, or use `password_file`")
            })?;
            if credential.contains('/') || credential.is_empty() {
                return Err(wrong("credential", "is the name of a systemd credential, without a path"));
            }
            Path::new(&directory).join(credential)
        }
        _ => return Err(wrong("password_file", "give either `password_file` or `credential`")),
    };
    Ok(Account {
        host: account.host,
        port: account.port,
        thumbprints: thumbprints.map_err(|error| wrong("thumbprints", &error.to_string()))?,
        user: account.user,
        secret: SecretFile::new(path),
    })
}
