//! Sessions at a vCenter: opened when first needed, shared by those who may, kept, opened again when lost, logged out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::config::{Account, Vcenter};
use super::endpoint::{Call, Endpoint, EndpointKey, Reply, body, fault_of};
use super::{Reach, VcenterError};
use crate::protocol::soap::request::{self, Service};
use crate::protocol::soap::{Element, Message};
use rustls::crypto::CryptoProvider;

/// The API version asked for until the server has said which it speaks.
const FIRST_VERSION: &str = "6.0";

/// What is asked in a session.
pub(super) struct Asked<'a, F> {
    /// The operation, when the server's own ids are known.
    pub(super) operation: F,
    /// The API version to ask in, where it is not the server's newest.
    pub(super) version: Option<&'a str>,
    /// How much longer than a call it may take.
    pub(super) wait: Option<std::time::Duration>,
}

/// Who a session belongs to. No secret is in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionKey {
    /// Where.
    pub endpoint: EndpointKey,
    /// Whose.
    pub owner: Owner,
}

/// Whose session it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// A clone ticket's, known by its SHA-256: one session however many connections come with it.
    Clone([u8; 32]),
    /// The service account's, shared by all consoles that need nothing but a ticket.
    Account,
    /// The service account's for one client of `/sdk`: its filters and tasks are its own.
    Client(u64),
}

/// How a session is opened.
#[derive(Clone)]
pub(super) enum Credentials {
    CloneTicket(Zeroizing<String>),
    Account(Account),
}

/// What every call of a session needs beside itself.
pub(super) struct With<'a> {
    pub(super) settings: &'a Vcenter,
    pub(super) provider: &'a Arc<CryptoProvider>,
    pub(super) reach: Reach<'a>,
}

/// An open session.
#[derive(Clone)]
pub(super) struct Open {
    pub(super) service: Service,
    cookie: String,
    number: u64,
}

/// A session, open or not.
pub(super) struct Session {
    pub(super) endpoint: Arc<Endpoint>,
    credentials: Credentials,
    open: Mutex<Option<Open>>,
    opened: AtomicU64,
    used: std::sync::Mutex<Instant>,
}

impl Session {
    pub(super) fn new(endpoint: Arc<Endpoint>, credentials: Credentials, now: Instant) -> Self {
        Self {
            endpoint,
            credentials,
            open: Mutex::new(None),
            opened: AtomicU64::new(0),
            used: std::sync::Mutex::new(now),
        }
    }

    pub(super) fn touch(&self, now: Instant) {
        *super::endpoint::lock(&self.used) = now;
    }

    pub(super) fn last_used(&self) -> Instant {
        *super::endpoint::lock(&self.used)
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.try_lock().map_or(true, |open| open.is_some())
    }

    /// The session, opened if it is not. Those who come meanwhile wait for the one who opens it.
    pub(super) async fn ensure(&self, with: &With<'_>) -> Result<Open, VcenterError> {
        let mut open = self.open.lock().await;
        if let Some(open) = &*open {
            return Ok(open.clone());
        }
        let fresh = self.log_in(with).await?;
        *open = Some(fresh.clone());
        Ok(fresh)
    }

    /// Asks in the session, in the server's newest version.
    pub(super) async fn ask(
        &self,
        with: &With<'_>,
        operation: impl Fn(&Service) -> Element,
    ) -> Result<Reply, VcenterError> {
        self.ask_as(with, Asked { operation, version: None, wait: None }).await
    }

    /// Asks in the session. A session that the server no longer knows is opened again, once; a clone ticket cannot do that.
    pub(super) async fn ask_as<F: Fn(&Service) -> Element>(
        &self,
        with: &With<'_>,
        asked: Asked<'_, F>,
    ) -> Result<Reply, VcenterError> {
        let Asked { operation, version: wanted, wait } = asked;
        let mut open = self.ensure(with).await?;
        for attempt in 0.. {
            let operation = operation(&open.service);
            let call = Call {
                operation: &operation,
                cookie: Some(&open.cookie),
                version: wanted.unwrap_or_else(|| version(&open.service)),
                reach: with.reach,
                wait,
            };
            let reply = self.endpoint.call(with.settings, with.provider, call).await?;
            match &reply.message {
                Message::Fault(fault) if fault.is_session_lost() => {
                    self.forget(open.number).await;
                    if attempt > 0 {
                        return Err(fault_of(&operation.name, fault.clone()));
                    }
                }
                _ => return Ok(reply),
            }
            open = self.ensure(with).await?;
        }
        Err(VcenterError::NotRunning)
    }

    async fn forget(&self, number: u64) {
        let mut open = self.open.lock().await;
        if open.as_ref().is_some_and(|open| open.number == number) {
            *open = None;
        }
    }

    /// Ends it, if it is open. Whether the server hears it changes nothing here.
    pub(super) async fn log_out(&self, with: &With<'_>) {
        let Some(open) = self.open.lock().await.take() else { return };
        let operation = request::logout(&open.service.session_manager);
        let call = Call {
            operation: &operation,
            cookie: Some(&open.cookie),
            version: version(&open.service),
            reach: with.reach,
            wait: None,
        };
        let _ = self.endpoint.call(with.settings, with.provider, call).await;
    }

    async fn log_in(&self, with: &With<'_>) -> Result<Open, VcenterError> {
        let first = self.first_call(with, request::retrieve_service_content(), None, FIRST_VERSION).await?;
        let cookie = first.cookie;
        let service = Service::from_answer(&body("RetrieveServiceContent", first.message)?)?;
        let manager = &service.session_manager;
        let (operation, credentials) = match &self.credentials {
            Credentials::CloneTicket(ticket) => (request::clone_session(manager, ticket), "clone ticket"),
            Credentials::Account(account) => {
                let password = account.secret.read().map_err(VcenterError::Secret)?;
                (request::login(manager, &account.user, &password), "service account")
            }
        };
        let reply = self.first_call(with, operation, cookie.as_deref(), version(&service)).await?;
        match reply.message {
            Message::Body(_) => {}
            Message::Fault(fault) => return Err(VcenterError::Login { credentials, fault: fault.kind }),
        }
        let cookie = reply.cookie.or(cookie);
        let cookie =
            cookie.ok_or(VcenterError::Soap(crate::protocol::soap::SoapError::Missing("session cookie")))?;
        let number = self.opened.fetch_add(1, Ordering::Relaxed) + 1;
        tracing::debug!(
            vcenter = self.endpoint.key.host,
            with = credentials,
            version = service.version,
            "session at a vCenter opened"
        );
        Ok(Open { service, cookie, number })
    }

    async fn first_call(
        &self,
        with: &With<'_>,
        operation: Element,
        cookie: Option<&str>,
        version: &str,
    ) -> Result<Reply, VcenterError> {
        let call = Call { operation: &operation, cookie, version, reach: with.reach, wait: None };
        self.endpoint.call(with.settings, with.provider, call).await
    }
}

/// What the server calls its API's version is a version it takes (`8.0.2.0`, `6.7.1`).
fn version(service: &Service) -> &str {
    let fits =
        !service.version.is_empty() && service.version.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if fits { &service.version } else { FIRST_VERSION }
}
