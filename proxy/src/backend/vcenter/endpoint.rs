//! One vCenter: its connections, its limits, its breaker, and a call to it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, COOKIE, HOST, SET_COOKIE};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::VcenterError;
use super::breaker::{Breaker, Rule};
use super::config::Vcenter;
use crate::config::TargetRange;
use crate::protocol::soap::{self, Element, Fault, Limits, Message};
use crate::tls::{Pinned, Thumbprint, pin};

/// Which vCenter. Two tickets that pin different certificates mean two of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EndpointKey {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Accepted certificates.
    pub thumbprints: Vec<Thumbprint>,
}

/// What a call is made with.
pub(super) struct Call<'a> {
    pub(super) operation: &'a Element,
    /// The session's cookie.
    pub(super) cookie: Option<&'a str>,
    /// The API version of `SOAPAction`.
    pub(super) version: &'a str,
    /// Where the tenant's consoles, and so its vCenters, may be.
    pub(super) reach: &'a [TargetRange],
    /// How much longer than a call it may take: a long poll.
    pub(super) wait: Option<Duration>,
}

/// What came back.
pub(super) struct Reply {
    pub(super) message: Message,
    /// The envelope as it came.
    pub(super) text: String,
    /// A new session's cookie.
    pub(super) cookie: Option<String>,
}

/// Counters of one vCenter.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) calls: AtomicU64,
    pub(super) faults: AtomicU64,
    pub(super) failures: AtomicU64,
}

/// A connection unused for longer is not used again: the other end may be closing it just now.
const KEPT: Duration = Duration::from_secs(20);

struct Idle {
    since: Instant,
    sender: SendRequest<Full<Bytes>>,
    peer: SocketAddr,
}

/// One vCenter.
pub(super) struct Endpoint {
    pub(super) key: EndpointKey,
    pub(super) counts: Counts,
    calls: Semaphore,
    waits: Semaphore,
    breaker: Mutex<Breaker>,
    idle: Mutex<Vec<Idle>>,
    last_error: Mutex<Option<(std::time::SystemTime, String)>>,
}

impl Endpoint {
    pub(super) fn new(key: EndpointKey, settings: &Vcenter) -> Self {
        Self {
            key,
            counts: Counts::default(),
            calls: Semaphore::new(settings.max_calls),
            waits: Semaphore::new(settings.max_waits),
            breaker: Mutex::default(),
            idle: Mutex::default(),
            last_error: Mutex::default(),
        }
    }

    pub(super) fn breaker(&self) -> Breaker {
        *lock(&self.breaker)
    }

    pub(super) fn last_error(&self) -> Option<(std::time::SystemTime, String)> {
        lock(&self.last_error).clone()
    }

    /// Asks one thing, within the limits.
    pub(super) async fn call(
        &self,
        settings: &Vcenter,
        provider: &Arc<CryptoProvider>,
        call: Call<'_>,
    ) -> Result<Reply, VcenterError> {
        let rule = Rule { failures: settings.breaker_failures, rest: settings.breaker_rest };
        let admitted = lock(&self.breaker).admit(rule, Instant::now());
        if !admitted {
            return Err(VcenterError::Open(self.breaker().failures()));
        }
        let turns = if call.wait.is_some() { &self.waits } else { &self.calls };
        let turn = timeout(settings.call, turns.acquire()).await;
        let _turn = turn.map_err(|_| VcenterError::Busy)?.map_err(|_| VcenterError::NotRunning)?;
        self.counts.calls.fetch_add(1, Ordering::Relaxed);
        let within = settings.call + call.wait.unwrap_or_default();
        let result = timeout(within, self.exchange(settings, provider, &call)).await;
        let result = result.unwrap_or(Err(VcenterError::Timeout));
        match &result {
            Ok(reply) => {
                lock(&self.breaker).success();
                if matches!(reply.message, Message::Fault(_)) {
                    self.counts.faults.fetch_add(1, Ordering::Relaxed);
                }
            }
            Err(error) if error.is_failure() => {
                self.counts.failures.fetch_add(1, Ordering::Relaxed);
                lock(&self.breaker).failure(rule, Instant::now());
                *lock(&self.last_error) = Some((std::time::SystemTime::now(), error.to_string()));
                tracing::warn!(vcenter = self.key.host, reason = error.as_str(), %error, "call to a vCenter failed");
            }
            Err(_) => {}
        }
        result
    }

    async fn exchange(
        &self,
        settings: &Vcenter,
        provider: &Arc<CryptoProvider>,
        call: &Call<'_>,
    ) -> Result<Reply, VcenterError> {
        let body = soap::envelope(call.operation);
        // A kept connection may have been closed at the other end meanwhile; nothing was asked then, and a fresh one is.
        while let Some(mut idle) = self.take_idle(call.reach) {
            if idle.sender.ready().await.is_err() {
                continue;
            }
            match idle.sender.try_send_request(self.request(call, &body)?).await {
                Ok(response) => return self.finish(idle, response).await,
                Err(error) if error.message().is_some() => {}
                Err(_) => return Err(VcenterError::Http),
            }
        }
        let mut fresh = timeout(settings.connect, self.connect(provider, call.reach))
            .await
            .unwrap_or(Err(VcenterError::Unreachable(std::io::ErrorKind::TimedOut)))?;
        let response = fresh.sender.send_request(self.request(call, &body)?).await;
        self.finish(fresh, response.map_err(|_| VcenterError::Http)?).await
    }

    fn request(&self, call: &Call<'_>, body: &str) -> Result<Request<Full<Bytes>>, VcenterError> {
        let host =
            if self.key.host.contains(':') { format!("[{}]", self.key.host) } else { self.key.host.clone() };
        let mut request = Request::post("/sdk")
            .header(HOST, format!("{host}:{}", self.key.port))
            .header(CONTENT_TYPE, soap::CONTENT_TYPE)
            .header("SOAPAction", format!("\"urn:vim25/{}\"", call.version));
        if let Some(cookie) = call.cookie {
            request = request.header(COOKIE, format!("{}={cookie}", soap::COOKIE));
        }
        request
            .body(Full::new(Bytes::from(body.to_owned())))
            .map_err(|_| VcenterError::BadTarget("has a host that is none"))
    }

    async fn finish(
        &self,
        connection: Idle,
        response: Response<hyper::body::Incoming>,
    ) -> Result<Reply, VcenterError> {
        let status = response.status();
        if status.is_redirection() {
            return Err(VcenterError::Redirect(status.as_u16()));
        }
        let cookie = session_cookie(&response);
        let limit = Limits::ANSWER.bytes;
        let body = Limited::new(response.into_body(), limit).collect().await.map_err(|error| {
            if error.is::<http_body_util::LengthLimitError>() {
                soap::SoapError::TooLarge(limit).into()
            } else {
                VcenterError::Http
            }
        })?;
        if !matches!(status, StatusCode::OK | StatusCode::INTERNAL_SERVER_ERROR) {
            return Err(VcenterError::Status(status.as_u16()));
        }
        let text = String::from_utf8(body.to_bytes().into()).map_err(|_| soap::SoapError::Malformed)?;
        let message = match Message::answer(&text) {
            Err(_) if status != StatusCode::OK => return Err(VcenterError::Status(status.as_u16())),
            message => message?,
        };
        let mut idle = lock(&self.idle);
        if !connection.sender.is_closed() && idle.len() < 64 {
            idle.push(Idle { since: Instant::now(), ..connection });
        }
        Ok(Reply { message, text, cookie })
    }

    fn take_idle(&self, reach: &[TargetRange]) -> Option<Idle> {
        let mut idle = lock(&self.idle);
        idle.retain(|connection| !connection.sender.is_closed() && connection.since.elapsed() < KEPT);
        let at = idle.iter().rposition(|connection| allowed(reach, connection.peer))?;
        Some(idle.swap_remove(at))
    }

    async fn connect(
        &self,
        provider: &Arc<CryptoProvider>,
        reach: &[TargetRange],
    ) -> Result<Idle, VcenterError> {
        let mut last = VcenterError::Resolve(self.key.host.clone());
        for address in self.resolve().await? {
            if !allowed(reach, address) {
                last = VcenterError::OutsideTargets(address);
                continue;
            }
            let tcp = match TcpStream::connect(address).await {
                Ok(tcp) => tcp,
                Err(error) => {
                    last = VcenterError::Unreachable(error.kind());
                    continue;
                }
            };
            let _ = tcp.set_nodelay(true);
            let sender = self.speak(tcp, provider.clone(), address).await?;
            return Ok(Idle { since: Instant::now(), sender, peer: address });
        }
        Err(last)
    }

    async fn resolve(&self) -> Result<Vec<SocketAddr>, VcenterError> {
        let (host, port) = (self.key.host.trim_matches(['[', ']']), self.key.port);
        if let Ok(address) = host.parse() {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        let found = tokio::net::lookup_host((host, port)).await;
        found.map(Iterator::collect).map_err(|_| VcenterError::Resolve(host.into()))
    }

    async fn speak(
        &self,
        tcp: TcpStream,
        provider: Arc<CryptoProvider>,
        address: SocketAddr,
    ) -> Result<SendRequest<Full<Bytes>>, VcenterError> {
        let tls = |error: rustls::Error| VcenterError::Tls(error.to_string());
        let config = Pinned::config(self.key.thumbprints.clone(), provider).map_err(tls)?;
        // The name is not checked, the certificate is; it is sent for servers that choose by it.
        let name = ServerName::try_from(self.key.host.clone()).unwrap_or(ServerName::from(address.ip()));
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
        let stream = stream.map_err(|error| {
            let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            match inner {
                Some(error) if pin::is_wrong_certificate(error) => VcenterError::WrongCertificate,
                Some(error) => VcenterError::Tls(error.to_string()),
                None => VcenterError::Unreachable(error.kind()),
            }
        })?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|_| VcenterError::Http)?;
        tokio::spawn(async move {
            // How it ended is seen by whoever uses the sender.
            let _ = connection.await;
        });
        Ok(sender)
    }
}

fn allowed(reach: &[TargetRange], address: SocketAddr) -> bool {
    reach.iter().any(|range| range.contains(address))
}

/// The value of the session's cookie, as it must be sent back.
fn session_cookie<B>(response: &Response<B>) -> Option<String> {
    response.headers().get_all(SET_COOKIE).iter().find_map(|header| {
        let pair = header.to_str().ok()?.split(';').next()?;
        let (name, value) = pair.split_once('=')?;
        (name.trim() == soap::COOKIE && !value.trim().is_empty()).then(|| value.trim().to_owned())
    })
}

/// What a call returned, or the fault as an error.
pub(super) fn body(operation: &str, message: Message) -> Result<Element, VcenterError> {
    match message {
        Message::Body(answer) => Ok(answer),
        Message::Fault(fault) => Err(fault_of(operation, fault)),
    }
}

pub(super) fn fault_of(operation: &str, fault: Fault) -> VcenterError {
    VcenterError::Fault { operation: operation.into(), fault }
}

/// Nothing panics while one of these is locked.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
