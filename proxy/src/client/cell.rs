//! A cell of vCloud Director, or this appliance's own desk: log in, acquire a ticket.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::Method;
use quick_xml::escape::unescape;
use thiserror::Error;
use zeroize::Zeroizing;

use super::ConnectError;
use super::https::{Answer, Server};
use super::url::{ConsoleUrl, UrlError};
use crate::protocol::soap::{Element, Limits, parse};

/// The newest API whose login and console calls are as known here; asked for where the server knows it.
const NEWEST: (u32, u32) = (36, 3);
/// Asked for where the server does not say what it knows.
const USUAL: &str = "5.5";
const TOKEN: &str = "x-vcloud-authorization";

/// Who logs in.
pub struct Credentials {
    /// `user@org`.
    pub name: String,
    /// How that is shown.
    pub secret: Secret,
}

/// What proves it.
pub enum Secret {
    /// A password.
    Password(Zeroizing<String>),
    /// An identity provider's token.
    Token(Zeroizing<String>),
}

/// Why a cell gave no ticket.
#[derive(Debug, Error)]
pub enum CellError {
    /// The way there.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It said no.
    #[error("{host} refused {what} with status {status}{}{}", if .said.is_empty() { "" } else { ": " }, .said)]
    Refused {
        /// The cell.
        host: String,
        /// What was asked.
        what: &'static str,
        /// HTTP's status.
        status: u16,
        /// The cell's own words.
        said: String,
    },
    /// Not what a cell answers.
    #[error("{0} does not answer as a vCloud Director cell does: {1}")]
    Strange(String, &'static str),
    /// The URL in its answer.
    #[error("the cell's ticket cannot be used: {0}")]
    Url(#[from] UrlError),
}

/// Logs in, posts to `path` (`/api/vApp/vm-61/screen/action/acquireTicket`, or `…/acquireMksTicket`), logs out.
pub async fn acquire(
    server: &Server,
    path: &str,
    who: &Credentials,
    version: Option<&str>,
) -> Result<ConsoleUrl, CellError> {
    let cell = Cell { server, accept: String::new() };
    let version = match version {
        Some(version) => version.to_owned(),
        None => cell.version().await?,
    };
    let cell = Cell { accept: format!("application/*+xml;version={version}"), ..cell };
    let token = cell.log_in(who).await?;
    let url = cell.ticket(path, &token).await;
    // Whether it hears that changes nothing: the ticket is ours already.
    let _ = cell.ask(Method::DELETE, "/api/session", &[(TOKEN, &token)]).await;
    url
}

struct Cell<'a> {
    server: &'a Server,
    accept: String,
}

impl Cell<'_> {
    async fn ask(&self, method: Method, path: &str, more: &[(&str, &str)]) -> Result<Answer, ConnectError> {
        let headers = [&[("accept", self.accept.as_str())][..], more].concat();
        self.server.ask(method, path, &headers, String::new()).await
    }

    /// The newest version that both sides know.
    async fn version(&self) -> Result<String, CellError> {
        let answer = self.server.ask(Method::GET, "/api/versions", &[], String::new()).await?;
        let listed = (answer.status == 200).then(|| parse(&answer.body, Limits::ANSWER).ok()).flatten();
        Ok(listed.and_then(|listed| newest(&listed)).unwrap_or_else(|| USUAL.to_owned()))
    }

    async fn log_in(&self, who: &Credentials) -> Result<Zeroizing<String>, CellError> {
        let authorization = Zeroizing::new(match &who.secret {
            Secret::Password(password) => {
                let pair = Zeroizing::new(format!("{}:{}", who.name, password.as_str()));
                format!("Basic {}", STANDARD.encode(pair.as_bytes()))
            }
            Secret::Token(token) => {
                let org = who.name.rsplit_once('@').map_or("", |(_, org)| org);
                format!("Bearer {}; org={org}", token.as_str())
            }
        });
        let answer =
            self.ask(Method::POST, "/api/sessions", &[("authorization", authorization.as_str())]).await?;
        let answer = self.good(answer, "the login")?;
        let token = answer.header(TOKEN).map(|token| Zeroizing::new(token.to_owned()));
        token.ok_or_else(|| self.strange("no session's token came with the login"))
    }

    async fn ticket(&self, path: &str, token: &str) -> Result<ConsoleUrl, CellError> {
        let answer = self.good(self.ask(Method::POST, path, &[(TOKEN, token)]).await?, "the ticket")?;
        let no = "its ticket is none";
        let ticket = parse(&answer.body, Limits::ANSWER).map_err(|_| self.strange(no))?;
        match ticket.name.as_str() {
            "ScreenTicket" => Ok(ConsoleUrl::parse(&ticket.text)?),
            "MksTicket" => parts(&ticket).ok_or_else(|| self.strange(no)),
            _ => Err(self.strange(no)),
        }
    }

    fn good(&self, answer: Answer, what: &'static str) -> Result<Answer, CellError> {
        if answer.status == 200 {
            return Ok(answer);
        }
        let (host, status) = (self.server.host.clone(), answer.status);
        Err(CellError::Refused { host, what, status, said: message(&answer.body) })
    }

    fn strange(&self, why: &'static str) -> CellError {
        CellError::Strange(self.server.host.clone(), why)
    }
}

/// The newest `Version` of a `SupportedVersions` that is not newer than ours; the oldest, where all are.
fn newest(listed: &Element) -> Option<String> {
    let number = |text: &str| {
        let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
        Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
    };
    let mut known: Vec<_> = listed
        .all("VersionInfo")
        .filter_map(|info| info.child_text("Version"))
        .filter_map(|text| Some((number(text)?, text)))
        .collect();
    known.sort_unstable();
    let fits = known.iter().rev().find(|(version, _)| *version <= NEWEST);
    fits.or(known.first()).map(|(_, text)| (*text).to_owned())
}

/// Host, machine, ticket and port out of a `MksTicket`.
fn parts(ticket: &Element) -> Option<ConsoleUrl> {
    let text = |name: &str| ticket.child_text(name).filter(|text| !text.is_empty());
    Some(ConsoleUrl {
        host: text("Host")?.to_owned(),
        port: Some(text("Port")?.parse().ok()?),
        vm: text("Vmx")?.to_owned(),
        ticket: Zeroizing::new(text("Ticket")?.to_owned()),
        thumbprint: None,
    })
}

/// The message of an `Error` element, for a terminal.
fn message(body: &str) -> String {
    let value = body.split_once("<Error").and_then(|(_, rest)| {
        let (_, rest) = rest.split_once("message=\"")?;
        rest.split_once('"')
    });
    let text = value.and_then(|(text, _)| unescape(text).ok()).unwrap_or_default();
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_that_is_known_to_both() {
        let listed = |versions: &[&str]| {
            let mut all = Element::new("SupportedVersions");
            for version in versions {
                all = all.with(Element::new("VersionInfo").has("Version", *version));
            }
            newest(&all)
        };
        assert_eq!(listed(&["1.5", "9.0", "5.5"]).as_deref(), Some("9.0"));
        assert_eq!(listed(&["36.2", "36.3", "39.1"]).as_deref(), Some("36.3"));
        assert_eq!(listed(&["40.0", "39.0"]).as_deref(), Some("39.0"));
        assert_eq!(listed(&["x", ""]), None);
    }

    #[test]
    fn a_cells_words_are_shown_and_nothing_else_of_it() {
        let body = "<?xml version=\"1.0\"?>\n<Error xmlns=\"x\" message=\"No access to &quot;vm-1&quot;.\" majorErrorCode=\"403\"/>";
        assert_eq!(message(body), "No access to \"vm-1\".");
        assert_eq!(message("<html>message=\"x\"</html>"), "");
    }
}
