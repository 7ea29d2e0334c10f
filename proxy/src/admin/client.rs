//! The admin API from the other side: what the command line uses.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::UnixStream;

use super::Failure;

/// Largest answer: some hundred thousand sessions.
const MAX_ANSWER: usize = 256 * 1024 * 1024;
/// Longest time for one request; longer than the server's own limit.
const PATIENCE: Duration = Duration::from_secs(50);

/// A client of one admin socket. Each request is a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

/// Why there is no answer, or no good one. The text says the remedy.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens.
    #[error("{socket}: {source}; {}", remedy(.source))]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The appliance said no.
    #[error("{}; {}", .failure.error, .failure.remedy)]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What it said.
        failure: Failure,
    },
    /// The answer is not what this version understands.
    #[error("{socket}: {what}; is it the socket of a mksgate of this version?")]
    Answer {
        /// The socket.
        socket: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// It took too long.
    #[error("{socket}: no answer within {} s; look at the log of the service", PATIENCE.as_secs())]
    Timeout {
        /// The socket.
        socket: PathBuf,
    },
    /// The client's own runtime.
    #[error("{0}; raise the limit of open files or memory")]
    Local(io::Error),
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            "start the service, or name its socket with --socket"
        }
        io::ErrorKind::PermissionDenied => {
            "use root, or a user of admin.uids or admin.gids in the configuration"
        }
        _ => "look at the log of the service",
    }
}

impl Client {
    /// Of this socket; nothing happens before the first request.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// GET, a JSON answer. Blocks; not within an async runtime.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.json(&self.text_of(Method::GET, path, Bytes::new())?)
    }

    /// GET, the answer as it is. Blocks; not within an async runtime.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn get_text(&self, path: &str) -> Result<String, ClientError> {
        self.text_of(Method::GET, path, Bytes::new())
    }

    /// POST, JSON both ways. Blocks; not within an async runtime.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| self.answer(error))?;
        self.json(&self.text_of(Method::POST, path, body.into())?)
    }

    /// DELETE, a JSON answer. Blocks; not within an async runtime.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.json(&self.text_of(Method::DELETE, path, Bytes::new())?)
    }

    /// One request: status and body.
    ///
    /// # Errors
    /// No answer; one that says no is an `Ok`.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        tokio::time::timeout(PATIENCE, self.exchange(method, path, body))
            .await
            .unwrap_or_else(|_| Err(ClientError::Timeout { socket: self.socket.clone() }))
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| ClientError::Connect { socket: self.socket.clone(), source })?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.answer(error))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "mksgate")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| self.answer(error))?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(|error| self.answer(error))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            Ok((status, body.map_err(|error| self.answer(error))?.to_bytes()))
        };
        tokio::pin!(answer, connection);
        // The connection only moves while it is polled; it never ends before the answer but by an error, which the answer tells.
        tokio::select! {
            answered = &mut answer => answered,
            _ = &mut connection => answer.await,
        }
    }

    fn text_of(&self, method: Method, path: &str, body: Bytes) -> Result<String, ClientError> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ClientError::Local)?;
        let (status, body) = runtime.block_on(self.request(method, path, body))?;
        let text = String::from_utf8(body.into()).map_err(|error| self.answer(error))?;
        if status.is_success() {
            return Ok(text);
        }
        let failure = serde_json::from_str(&text)
            .map_err(|_| self.answer(format!("{status} without the reason in JSON")))?;
        Err(ClientError::Refused { status: status.as_u16(), failure })
    }

    fn json<T: DeserializeOwned>(&self, text: &str) -> Result<T, ClientError> {
        serde_json::from_str(text).map_err(|error| self.answer(error))
    }

    fn answer(&self, what: impl ToString) -> ClientError {
        ClientError::Answer { socket: self.socket.clone(), what: what.to_string() }
    }
}

/// A path with a query; values are percent-encoded (RFC 3986, everything but unreserved characters).
pub fn with_query<'a>(path: &str, pairs: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let mut out = path.to_owned();
    for (i, (key, value)) in pairs.into_iter().enumerate() {
        out.push(if i == 0 { '?' } else { '&' });
        out.push_str(key);
        out.push('=');
        for byte in value.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte as char),
                _ => out.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_a_query_are_encoded() {
        assert_eq!(with_query("/v1/x", []), "/v1/x");
        let pairs = [("user", "ann@acme & co".to_owned()), ("socket", "[::1]:9".to_owned())];
        assert_eq!(with_query("/v1/x", pairs), "/v1/x?user=ann%40acme%20%26%20co&socket=%5B%3A%3A1%5D%3A9");
    }

    #[test]
    fn a_missing_socket_says_what_to_do() {
        let error = Client::new("/nonexistent/admin.sock").get_text("/live").unwrap_err().to_string();
        assert!(error.contains("/nonexistent/admin.sock") && error.contains("--socket"), "{error}");
    }
}
