//! The ticket desk: hands out tickets to people who log in as at a vCloud Director, and to portals with a token. Off unless the
//! configuration has a `[desk]`.
//!
//! It keeps nothing that another cell would need: a login's token is a note sealed with the ticket keys.

mod attempts;
pub mod config;
mod json;
mod mint;
pub mod oidc;
mod session;
pub mod users;
mod vcloud;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use tokio::sync::Semaphore;

use crate::gate::{Caller, Gate};
use crate::protocol::http::Head;
use crate::protocol::reply::Reply;
use attempts::Attempts;
pub use config::DeskConfig;

/// Passwords checked at once: each takes 20 MB and tens of milliseconds of a core.
const CHECKS: usize = 2;

/// What the desk remembers: who failed to log in lately, and which logins were ended before their time.
pub struct Desk {
    checks: Arc<Semaphore>,
    by_source: Mutex<Attempts<IpAddr>>,
    by_user: Mutex<Attempts<String>>,
    ended: Mutex<session::Ended>,
}

impl Default for Desk {
    fn default() -> Self {
        Self {
            checks: Arc::new(Semaphore::new(CHECKS)),
            by_source: Mutex::default(),
            by_user: Mutex::default(),
            ended: Mutex::default(),
        }
    }
}

/// Who logged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    /// The name before the `@`.
    pub user: String,
    /// The org behind it.
    pub org: String,
}

/// Why nobody is logged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginError {
    /// Nothing was shown.
    Missing,
    /// Wrong user, org or password, or disabled: which of them is nobody's business.
    Wrong,
    /// Too many tries.
    TooMany,
    /// The appliance cannot read its users.
    Broken,
}

impl Desk {
    /// Checks a name and a password.
    pub async fn log_in(
        &self,
        gate: &Gate,
        source: IpAddr,
        name: &str,
        password: String,
    ) -> Result<Person, LoginError> {
        let config = gate.config.load_full();
        let desk = config.desk.as_ref().ok_or(LoginError::Wrong)?;
        let source = crate::admission::source_of(source);
        let now = Instant::now();
        // Counted before the password is looked at, and given back if it was right: tries at once are tries, too.
        let may = lock(&self.by_source).take(source, desk.attempts_per_source, now)
            && lock(&self.by_user).take(name.to_lowercase(), desk.attempts_per_user, now);
        if !may {
            return Err(LoginError::TooMany);
        }
        let Some(path) = desk.users.clone() else { return Err(LoginError::Wrong) };
        let full = name.to_owned();
        let _turn = self.checks.acquire().await.map_err(|_| LoginError::Broken)?;
        let checked = tokio::task::spawn_blocking(move || users::check(&path, &full, &password)).await;
        match checked {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => return Err(LoginError::Wrong),
            Ok(Err(error)) => {
                tracing::error!(error, "nobody can log in at the desk");
                return Err(LoginError::Broken);
            }
            Err(_) => return Err(LoginError::Broken),
        }
        let (user, org) = name.rsplit_once('@').ok_or(LoginError::Wrong)?;
        if !desk.orgs.contains_key(org) {
            return Err(LoginError::Wrong);
        }
        lock(&self.by_source).give_back(&source);
        lock(&self.by_user).give_back(&name.to_lowercase());
        Ok(Person { user: user.into(), org: org.into() })
    }
}

impl Desk {
    /// Checks an identity provider's token. Tries are counted by source: who it is stands in the token alone.
    pub fn log_in_with_token(
        &self,
        gate: &Gate,
        source: IpAddr,
        token: &str,
        org: Option<&str>,
        now: SystemTime,
    ) -> Result<Person, LoginError> {
        let config = gate.config.load_full();
        let desk = config.desk.as_ref().ok_or(LoginError::Wrong)?;
        let source = crate::admission::source_of(source);
        if !lock(&self.by_source).take(source, desk.attempts_per_source, Instant::now()) {
            return Err(LoginError::TooMany);
        }
        let provider = desk.oidc.as_ref().ok_or(LoginError::Wrong)?;
        let person = oidc::check(provider, token, org, now).map_err(|error| match error {
            oidc::TokenError::Keys(why) => {
                tracing::error!(why, "nobody can log in with a token at the desk");
                LoginError::Broken
            }
            oidc::TokenError::Refused(why) => {
                tracing::info!(why, %source, "a token was refused at the desk");
                LoginError::Wrong
            }
        })?;
        if !desk.orgs.contains_key(&person.org) {
            return Err(LoginError::Wrong);
        }
        lock(&self.by_source).give_back(&source);
        Ok(person)
    }
}

/// The answer to a request of the desk, and whether it was to somebody who is known.
/// `certified`: it came with a certificate that `client_ca` signed.
pub async fn respond(
    gate: &Arc<Gate>,
    caller: &Caller,
    head: &Head,
    body: Vec<u8>,
    certified: bool,
) -> (Reply, bool) {
    let path = head.target.split('?').next().unwrap_or_default();
    if path.starts_with("/v1/") {
        json::respond(gate, caller, head, &body, certified, SystemTime::now()).await
    } else {
        vcloud::respond(gate, caller, head, &body).await
    }
}

/// Nothing panics while one of these is locked.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
