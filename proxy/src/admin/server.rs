//! Listening, judging the peer, and bounding what one connection may cost.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::Admin;
use super::api::{forbidden_router, loopback_router, router};
use super::peer::{Peer, is_allowed};
use crate::doctor::holder;
use crate::upgrade::means;

/// Connections at once on each listener; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 64;
/// Longest life of a connection, however busy: a client that stops reading does not keep its place.
const LONGEST_CONNECTION: Duration = Duration::from_secs(300);
/// Largest request head.
const MAX_HEAD: usize = 16 * 1024;
/// Pause after accept(2) failed, usually for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where the admin API listens and for whom.
#[derive(Clone, Debug)]
pub struct AdminConfig {
    /// The Unix socket.
    pub socket: PathBuf,
    /// Users that may use it, besides root and the service's own.
    pub uids: Vec<u32>,
    /// Groups whose members may use it.
    pub gids: Vec<u32>,
    /// A loopback port for /metrics, /live and /ready.
    pub metrics: Option<SocketAddr>,
    /// Names besides those of loopback that this port answers to.
    pub metrics_names: Vec<String>,
    /// Longest time for a request's head, and between two requests.
    pub head_timeout: Duration,
    /// Longest time for a request after its head.
    pub request_timeout: Duration,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self {
            socket: PathBuf::from(super::DEFAULT_SOCKET),
            uids: Vec::new(),
            gids: Vec::new(),
            metrics: None,
            metrics_names: Vec::new(),
            head_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
        }
    }
}

/// Why the admin API cannot listen.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AdminError {
    /// Somebody answers there.
    #[error("{0}: another process listens on this socket; stop it, or give this one another admin.socket")]
    InUse(PathBuf),
    /// Something else has that name.
    #[error("{0}: exists and is not a socket; remove it, or give another admin.socket")]
    NotASocket(PathBuf),
    /// The socket could not be made.
    #[error("{path}: {source}; make the directory exist and writable for the service's user")]
    Socket {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The socket could not be given to the group.
    #[error("admin.gids {gid}: {source}; make the service's user a member of this group")]
    Group {
        /// The group.
        gid: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// The loopback port could not be had.
    #[error("admin.metrics {addr}: {source}{}; choose a free port", held(*.addr))]
    Port {
        /// The address.
        addr: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// /metrics is not for the network.
    #[error(
        "admin.metrics {0}: is not a loopback address; use 127.0.0.1 or [::1] and a scraper on this host"
    )]
    NotLoopback(SocketAddr),
}

/// Who has the port, where that can be seen.
pub(super) fn held(addr: SocketAddr) -> String {
    holder(addr).map(|by| format!(", held by {by}")).unwrap_or_default()
}

/// The listening admin API. Dropping it, or the future of [`Server::run`], stops it and removes the socket.
pub struct Server {
    socket: UnixListener,
    metrics: Option<TcpListener>,
    metrics_names: Arc<[String]>,
    /// Removes the socket at the end.
    file: SocketFile,
    limits: Limits,
    admin: Admin,
    uids: Arc<[u32]>,
    gids: Arc<[u32]>,
}

#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) head: Duration,
    pub(super) request: Duration,
}

impl Server {
    /// Listens. Within a tokio runtime.
    ///
    /// # Errors
    /// The socket or the port cannot be had, or the port is not on loopback.
    pub async fn bind(config: AdminConfig, admin: Admin) -> Result<Self, AdminError> {
        Self::bind_or_inherit(config, admin, (None, None)).await
    }

    /// Listens on sockets that another process had, where the configuration means them; else on sockets of its own.
    ///
    /// # Errors
    /// As [`Server::bind`].
    pub(crate) async fn bind_or_inherit(
        config: AdminConfig,
        admin: Admin,
        (socket, metrics): (Option<net::UnixListener>, Option<std::net::TcpListener>),
    ) -> Result<Self, AdminError> {
        let metrics = match config.metrics {
            Some(addr) if !addr.ip().is_loopback() => return Err(AdminError::NotLoopback(addr)),
            Some(addr) => {
                let port = |source| AdminError::Port { addr, source };
                let held = metrics.filter(|held| held.local_addr().is_ok_and(|held| means(addr, held)));
                Some(match held {
                    Some(held) => TcpListener::from_std(held).map_err(port)?,
                    None => TcpListener::bind(addr).await.map_err(port)?,
                })
            }
            None => None,
        };
        let wrap = |source| AdminError::Socket { path: config.socket.clone(), source };
        let name = |socket: &net::UnixListener| Some(socket.local_addr().ok()?.as_pathname()?.to_owned());
        let socket = match socket.map(|socket| (name(&socket), socket)) {
            Some((Some(name), socket)) if same_file(&name, &config.socket) => {
                UnixListener::from_std(socket).map_err(wrap)?
            }
            other => {
                if let Some((Some(name), _)) = other {
                    // Nobody would answer there any more.
                    let _ = fs::remove_file(name);
                }
                remove_stale(&config.socket).await?;
                UnixListener::bind(&config.socket).map_err(wrap)?
            }
        };
        let file = SocketFile::new(&config.socket).map_err(wrap)?;
        restrict(&config)?;
        Ok(Self {
            socket,
            metrics,
            metrics_names: config.metrics_names.into(),
            file,
            limits: Limits { head: config.head_timeout, request: config.request_timeout },
            admin,
            uids: config.uids.into(),
            gids: config.gids.into(),
        })
    }

    /// The loopback port, if there is one: what port 0 became.
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// More descriptors of its sockets, for a process that takes over.
    pub(crate) fn duplicates(&self) -> io::Result<(OwnedFd, Option<OwnedFd>)> {
        let metrics = self.metrics.as_ref().map(|port| port.as_fd().try_clone_to_owned()).transpose()?;
        Ok((self.socket.as_fd().try_clone_to_owned()?, metrics))
    }

    /// Serves until it is dropped.
    pub async fn run(self) {
        self.run_until(std::future::pending()).await;
    }

    /// Serves until another process does on the same sockets: then accepts nothing more, leaves the socket's name where it
    /// is, and finishes the requests under way.
    pub(crate) async fn run_until(mut self, replaced: impl Future<Output = ()>) {
        let mut replaced = std::pin::pin!(replaced);
        let router = router(self.admin.clone(), self.limits.request);
        let loopback = loopback_router(self.admin.clone(), self.metrics_names.clone(), self.limits.request);
        let (slots, loopback_slots) =
            (Arc::new(Semaphore::new(MAX_CONNECTIONS)), Arc::new(Semaphore::new(MAX_CONNECTIONS)));
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                (slot, accepted) = in_slot(&slots, async { self.socket.accept().await.map(|(s, _)| s) }) => match accepted {
                    Ok(stream) => {
                        let (uids, gids) = (self.uids.clone(), self.gids.clone());
                        let connection = serve_peer(stream, router.clone(), uids, gids, self.limits);
                        connections.spawn(holding(slot, connection));
                    }
                    Err(error) => pause(&error).await,
                },
                (slot, accepted) = in_slot(&loopback_slots, accept(self.metrics.as_ref())) => match accepted {
                    Ok(stream) => {
                        connections.spawn(holding(slot, serve(stream, loopback.clone(), self.limits)));
                    }
                    Err(error) => pause(&error).await,
                },
                Some(_) = connections.join_next() => {}
                () = &mut replaced => break,
            }
        }
        self.file.keep();
        drop((self.socket, self.metrics));
        while connections.join_next().await.is_some() {}
    }
}

/// Accepts once there is room for one more connection.
pub(super) async fn in_slot<T>(
    slots: &Arc<Semaphore>,
    accept: impl Future<Output = T>,
) -> (Option<OwnedSemaphorePermit>, T) {
    // The semaphore is never closed, so there always is a slot in the end.
    let slot = slots.clone().acquire_owned().await.ok();
    (slot, accept.await)
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<tokio::net::TcpStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(stream, _)| stream),
        None => std::future::pending().await,
    }
}

pub(super) async fn holding(slot: Option<OwnedSemaphorePermit>, connection: impl Future<Output = ()>) {
    connection.await;
    drop(slot);
}

pub(super) async fn pause(error: &io::Error) {
    tracing::warn!(%error, "the admin API could not accept a connection; are the file descriptors used up?");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

async fn serve_peer(stream: UnixStream, router: Router, uids: Arc<[u32]>, gids: Arc<[u32]>, limits: Limits) {
    let Ok(peer) = stream.peer_cred().map(Peer::from) else { return };
    let allowed = tokio::task::spawn_blocking(move || is_allowed(peer, &uids, &gids)).await.unwrap_or(false);
    let router = if allowed {
        router.layer(Extension(Some(peer)))
    } else {
        tracing::warn!(uid = peer.uid, gid = peer.gid, pid = peer.pid, "refused a user of the admin socket");
        forbidden_router(peer)
    };
    serve(stream, router, limits).await;
}

pub(super) async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, router: Router, limits: Limits) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match tokio::time::timeout(LONGEST_CONNECTION, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "an admin connection ended"),
        Err(_) => tracing::debug!("an admin connection reached its longest life"),
    }
}

/// Takes away what a killed process left behind, but nothing that lives.
async fn remove_stale(path: &Path) -> Result<(), AdminError> {
    let Ok(meta) = fs::symlink_metadata(path) else { return Ok(()) };
    if !meta.file_type().is_socket() {
        return Err(AdminError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|source| AdminError::Socket { path: path.to_owned(), source })
        }
        _ => Err(AdminError::InUse(path.to_owned())),
    }
}

/// The tightest mode that lets all of them connect; their credentials are judged besides.
fn restrict(config: &AdminConfig) -> Result<(), AdminError> {
    let mode = match (config.uids.as_slice(), config.gids.as_slice()) {
        ([], []) => 0o600,
        ([], [gid]) => {
            chown(&config.socket, None, Some(*gid))
                .map_err(|source| AdminError::Group { gid: *gid, source })?;
            0o660
        }
        // connect(2) asks for write permission, and a file has one group only.
        _ => 0o666,
    };
    fs::set_permissions(&config.socket, fs::Permissions::from_mode(mode))
        .map_err(|source| AdminError::Socket { path: config.socket.clone(), source })
}

/// The socket's name in the file system, as long as it is ours.
struct SocketFile {
    path: PathBuf,
    device_and_inode: (u64, u64),
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        let meta = fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_owned(), device_and_inode: (meta.dev(), meta.ino()) })
    }
}

impl SocketFile {
    /// It is another process's from now on.
    fn keep(&mut self) {
        self.device_and_inode = (0, 0);
    }
}

/// Whether two names lead to one socket.
fn same_file(a: &Path, b: &Path) -> bool {
    let identity = |path: &Path| fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    identity(a).is_some_and(|a| Some(a) == identity(b))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == self.device_and_inode);
        if ours {
            // Nothing to be done where the directory became unwritable; the next start removes it.
            let _ = fs::remove_file(&self.path);
        }
    }
}
