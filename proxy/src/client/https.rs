//! The client's own HTTPS: a connection to a cell or a vCenter, one request on each.

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::handshake;
use hyper::header::{HOST, HeaderMap};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::ConnectError;
use super::door::server_name;
use super::proxy::{self, HttpProxy};
use super::trust::Trusting;
use crate::tls::TlsError;
use crate::tls::pin::is_wrong_certificate;

/// How long a request may take, from the name's look-up to the last byte of its answer.
const DEADLINE: Duration = Duration::from_secs(45);
/// Longest answer that is taken, bytes.
const MAX_ANSWER: usize = 4 * 1024 * 1024;

/// A server, how to get there, and what makes its certificate good.
#[derive(Clone, Debug)]
pub struct Server {
    /// Its name or address, IPv6 without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The proxy in between.
    pub proxy: Option<HttpProxy>,
    /// Certificates that are good.
    pub trust: Trusting,
}

/// An answer.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

impl Server {
    /// `HOST:PORT`, as it stands in a Host header.
    pub(super) fn authority(&self) -> String {
        proxy::authority(&self.host, self.port)
    }

    /// TLS to the server.
    pub(super) async fn connect(&self) -> Result<TlsStream<TcpStream>, ConnectError> {
        let tcp = match &self.proxy {
            None => proxy::dial(&self.host, self.port).await?,
            Some(through) => {
                let (wire, early) = through.tunnel(&self.host, self.port).await?;
                if !early.is_empty() {
                    // A server of TLS says nothing before its client does.
                    return Err(ConnectError::NotHttp("the server"));
                }
                let socket = std::net::TcpStream::from(wire.into_fd()?);
                socket.set_nonblocking(true)?;
                TcpStream::from_std(socket)?
            }
        };
        let connecting = TlsConnector::from(self.trust.config.clone()).connect(server_name(&self.host), tcp);
        connecting.await.map_err(|error| {
            let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).cloned();
            match (inner, self.trust.seen()) {
                (Some(why), Some(seen)) if is_wrong_certificate(&why) => {
                    ConnectError::Certificate { why: why.to_string(), seen }
                }
                (Some(why), _) => TlsError::from(why).into(),
                (None, _) => error.into(),
            }
        })
    }

    /// One request on a connection of its own. Redirects are the caller's to refuse.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> Result<Answer, ConnectError> {
        let late = ConnectError::Deadline { seconds: DEADLINE.as_secs() };
        tokio::time::timeout(DEADLINE, self.exchange(method, path, headers, body)).await.unwrap_or(Err(late))
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> Result<Answer, ConnectError> {
        let broken = |_| ConnectError::NotHttp("the server");
        let mut request = Request::builder().method(method).uri(path).header(HOST, self.authority());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from(body))).map_err(|_| ConnectError::Argument)?;
        let (mut sender, connection) =
            handshake(TokioIo::new(self.connect().await?)).await.map_err(broken)?;
        let asking = async {
            let response = sender.send_request(request).await.map_err(broken)?;
            let (status, headers) = (response.status().as_u16(), response.headers().clone());
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            let body = body.map_err(|_| ConnectError::NotHttp("the server"))?.to_bytes();
            let body = String::from_utf8(body.into()).map_err(|_| ConnectError::NotHttp("the server"))?;
            Ok(Answer { status, headers, body })
        };
        tokio::pin!(asking);
        tokio::select! {
            answer = &mut asking => answer,
            // It ends with its peer; what it received is still to be read.
            _ = connection => asking.await,
        }
    }
}
