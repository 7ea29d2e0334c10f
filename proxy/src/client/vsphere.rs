//! A vCenter, or this appliance in its place: a clone ticket becomes a console's ticket.

use hyper::Method;
use thiserror::Error;

use super::ConnectError;
use super::https::Server;
use crate::protocol::soap::request::{self, Service};
use crate::protocol::soap::ticket::ConsoleTicket;
use crate::protocol::soap::{self, Element, Message, Moref, SoapError, envelope};

/// The API version asked for until the server has said its own.
const FIRST_VERSION: &str = "6.0";

/// Why a vCenter gave no ticket.
#[derive(Debug, Error)]
pub enum VsphereError {
    /// The way there.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It said no.
    #[error("the server refused {operation} ({fault}){}", hint(.operation))]
    Refused {
        /// What was asked.
        operation: String,
        /// The fault's name.
        fault: String,
    },
    /// Not what a vCenter answers.
    #[error("the server does not answer as a vCenter does: {0}")]
    Strange(#[from] SoapError),
    /// Nor in HTTP.
    #[error("the server answers a vSphere client with HTTP status {0}")]
    Status(u16),
}

fn hint(operation: &str) -> &'static str {
    match operation {
        "CloneSession" => ": the clone ticket works once and not for long. Ask for a new one",
        _ => "",
    }
}

/// A session that a clone ticket opened.
pub struct Session<'a> {
    server: &'a Server,
    service: Service,
    cookie: String,
}

/// Opens a session with a clone ticket.
pub async fn clone_session<'a>(server: &'a Server, ticket: &str) -> Result<Session<'a>, VsphereError> {
    let content = request::retrieve_service_content();
    let (answer, first) = ask(server, &content, FIRST_VERSION, None).await?;
    let service = Service::from_answer(&answer)?;
    let operation = request::clone_session(&service.session_manager, ticket);
    let (_, cookie) = ask(server, &operation, &service.version, first.as_deref()).await?;
    let cookie = cookie.or(first).ok_or(SoapError::Missing("session cookie"))?;
    Ok(Session { server, service, cookie })
}

impl Session<'_> {
    /// A ticket for the machine's console through authd.
    pub async fn console(&self, moref: &str) -> Result<ConsoleTicket, VsphereError> {
        let operation = request::acquire_ticket(&Moref::vm(moref), "mks");
        let (answer, _) = ask(self.server, &operation, &self.service.version, Some(&self.cookie)).await?;
        Ok(ConsoleTicket::from_answer("AcquireTicket", &answer)?)
    }

    /// Ends it. Whether the server hears that changes nothing here.
    pub async fn log_out(self) {
        let operation = request::logout(&self.service.session_manager);
        let _ = ask(self.server, &operation, &self.service.version, Some(&self.cookie)).await;
    }
}

/// One operation: its answer, and a session's cookie where one came.
async fn ask(
    server: &Server,
    operation: &Element,
    version: &str,
    cookie: Option<&str>,
) -> Result<(Element, Option<String>), VsphereError> {
    let action = format!("\"urn:vim25/{version}\"");
    let cookie = cookie.map(|cookie| format!("{}={cookie}", soap::COOKIE));
    let mut headers = vec![("content-type", soap::CONTENT_TYPE), ("soapaction", &action)];
    headers.extend(cookie.as_deref().map(|cookie| ("cookie", cookie)));
    let answer = server.ask(Method::POST, "/sdk", &headers, envelope(operation)).await?;
    if !matches!(answer.status, 200 | 500) {
        return Err(VsphereError::Status(answer.status));
    }
    let cookies = answer.headers.get_all("set-cookie").iter().filter_map(|value| value.to_str().ok());
    let cookie = cookies
        .filter_map(|value| value.split(';').next()?.split_once('='))
        .find_map(|(name, value)| (name.trim() == soap::COOKIE).then(|| value.trim().to_owned()));
    match Message::answer(&answer.body)? {
        Message::Body(element) => Ok((element, cookie)),
        Message::Fault(fault) => {
            Err(VsphereError::Refused { operation: operation.name.clone(), fault: fault.kind })
        }
    }
}
