//! The status page without a port of the service's own: a process that stands before the admin socket and passes on what the
//! page reads (`mksgate status --listen`). It serves nothing else of the admin API.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::client::Client;
use super::error::{ApiError, SEE_OPENAPI};
use super::page;
use super::server::{AdminConfig, Limits, held, holding, in_slot, pause, serve};
use crate::metrics;

/// Connections at once. Each request is one more on the admin socket, which has places for others, too.
const MAX_CONNECTIONS: usize = 16;

/// Why the page cannot be served.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RelayError {
    /// The page tells of tenants and asks nobody for a password.
    #[error(
        "--listen {0}: is not a loopback address; use 127.0.0.1 or [::1], and from elsewhere `ssh -L {port}:{0} THIS_HOST`",
        port = .0.port()
    )]
    NotLoopback(SocketAddr),
    /// The port could not be had.
    #[error("--listen {addr}: {source}{}; choose a free port, or 0 for any", held(*.addr))]
    Port {
        /// The address.
        addr: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The listening page.
pub struct Relay {
    listener: TcpListener,
    client: Client,
}

impl Relay {
    /// Listens. Within a tokio runtime.
    ///
    /// # Errors
    /// The address is not on loopback, or cannot be had.
    pub async fn bind(addr: SocketAddr, client: Client) -> Result<Self, RelayError> {
        if !addr.ip().is_loopback() {
            return Err(RelayError::NotLoopback(addr));
        }
        let port = |source| RelayError::Port { addr, source };
        Ok(Self { listener: TcpListener::bind(addr).await.map_err(port)?, client })
    }

    /// Where it listens: what port 0 became.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until it is dropped.
    pub async fn run(self) {
        let defaults = AdminConfig::default();
        let limits = Limits { head: defaults.head_timeout, request: defaults.request_timeout };
        let (router, slots) = (router(self.client), Arc::new(Semaphore::new(MAX_CONNECTIONS)));
        let mut connections = JoinSet::new();
        loop {
            let accept = async { self.listener.accept().await.map(|(stream, _)| stream) };
            tokio::select! {
                (slot, accepted) = in_slot(&slots, accept) => match accepted {
                    Ok(stream) => drop(connections.spawn(holding(slot, serve(stream, router.clone(), limits)))),
                    Err(error) => pause(&error).await,
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }
}

fn router(client: Client) -> Router {
    ["/live", "/ready", "/metrics"]
        .into_iter()
        .fold(page::router(), |router, path| router.route(path, get(pass)))
        .fallback(|uri: Uri| async move {
            ApiError::new(StatusCode::NOT_FOUND, format!("there is no {} here", uri.path()), SEE_OPENAPI)
        })
        .layer(from_fn_with_state(Arc::from([]), page::named_as_ours))
        .with_state(client)
}

/// What the appliance answers. The path is one of the routes' own; a query goes nowhere.
async fn pass(State(client): State<Client>, uri: Uri) -> Response {
    let kind = if uri.path() == "/metrics" { metrics::CONTENT_TYPE } else { "application/json" };
    match client.request(Method::GET, uri.path(), Bytes::new()).await {
        Ok((status, body)) => {
            let kind = if status.is_success() { kind } else { "application/json" };
            (status, [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-store")], body)
                .into_response()
        }
        Err(error) => ApiError::new(
            StatusCode::BAD_GATEWAY,
            error.to_string(),
            "the page goes on as soon as the appliance answers",
        )
        .into_response(),
    }
}
