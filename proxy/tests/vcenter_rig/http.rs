//! One HTTPS request and its answer, by hand: no client of ours is in between.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::support::client::{self, Any};

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// A certificate to show and its key.
pub type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// `head` is the request line and fields, each with its line end; `Host` and the body's length are added.
pub fn ask(address: SocketAddr, head: &str, body: &str) -> Response {
    ask_as(address, head, body, None).expect("an answer")
}

/// The same with a certificate; an error where the server does not take it.
pub fn ask_as(
    address: SocketAddr,
    head: &str,
    body: &str,
    identity: Option<Identity>,
) -> std::io::Result<Response> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Any));
    let config = match identity {
        None => config.with_no_client_auth(),
        Some((chain, key)) => config.with_client_auth_cert(chain, key).unwrap(),
    };
    let name = ServerName::try_from("console.example").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut tls = StreamOwned::new(connection, client::connect(address));
    write!(
        tls,
        "{head}Host: console.example\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    tls.flush()?;
    let mut text = Vec::new();
    let end = tls.read_to_end(&mut text);
    if text.is_empty() {
        end?;
    }
    let text = String::from_utf8(text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let headers = lines.filter_map(|line| line.split_once(": ")).map(|(n, v)| (n.to_owned(), v.to_owned()));
    Ok(Response { status: status.expect("a status"), headers: headers.collect(), body: body.to_owned() })
}
