//! A running admin API in front of an appliance that does what it is told to say.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use mksgate::admin::client::Client;
use mksgate::admin::{
    Admin, AdminConfig, BackendList, BackendView, Control, Failure, Reloaded, RevokeRequest, Server,
    ServiceState, ServiceStatus, TenantLimits, Upgraded,
};
use mksgate::metrics::{Door, Metrics};
use mksgate::session::{Registry, Session};
use mksgate::xdp::{LoudSource, ShedStatus};
use tokio::sync::oneshot;

/// An appliance that does what it is told to say.
#[derive(Default)]
pub struct Gate {
    pub not_ready: Mutex<Option<String>>,
    pub bad_config: Mutex<Option<Failure>>,
    pub closed: Mutex<Vec<u64>>,
    pub revoked: Mutex<Vec<RevokeRequest>>,
    pub drained: Mutex<Vec<Option<Duration>>>,
}

impl Control for Gate {
    fn ready(&self) -> Result<(), String> {
        self.not_ready.lock().unwrap().clone().map_or(Ok(()), Err)
    }
    fn status(&self) -> ServiceStatus {
        ServiceStatus { state: ServiceState::Serving, flow_driver: "io_uring".into(), ..Default::default() }
    }
    fn tenants(&self) -> Vec<TenantLimits> {
        let tenant = |name: &str, number| TenantLimits { name: name.into(), number, ..Default::default() };
        vec![TenantLimits { max_sessions: Some(5), ..tenant("acme", 1) }, tenant("globex", 2)]
    }
    fn backends(&self) -> BackendList {
        let host = |address: &str| BackendView { address: address.into(), answered: 3, ..Default::default() };
        let failing = BackendView {
            failing: true,
            failed: 2,
            last_error: Some("refused\u{1b}".into()),
            ..host("10.0.0.9:902")
        };
        BackendList { hosts: vec![host("10.0.0.8:902"), failing], vcenters: vec![host("vc.example:443")] }
    }
    fn xdp(&self) -> ShedStatus {
        ShedStatus { off: Some("not here".into()), gate: None, packets: Vec::new(), tenants: Vec::new() }
    }
    fn top_sources(&self, count: usize) -> Vec<LoudSource> {
        vec![LoudSource { source: "192.0.2.1".into(), passed: 1, shed: count as u32 }]
    }
    fn close(&self, id: u64) {
        self.closed.lock().unwrap().push(id);
    }
    fn revoke(&self, what: &RevokeRequest) -> Vec<u64> {
        self.revoked.lock().unwrap().push(what.clone());
        vec![1]
    }
    fn reload(&self) -> Result<Reloaded, Failure> {
        match self.bad_config.lock().unwrap().clone() {
            Some(failure) => Err(failure),
            None => Ok(Reloaded { changed: vec!["tenants.acme".into()], needs_restart: Vec::new() }),
        }
    }
    fn upgrade(self: Arc<Self>) -> Result<Upgraded, Failure> {
        match self.bad_config.lock().unwrap().clone() {
            Some(failure) => Err(failure),
            None => Ok(Upgraded { pid: 4711, version: "9.9.9".into(), sessions: 3 }),
        }
    }
    fn drain(&self, within: Option<Duration>) {
        self.drained.lock().unwrap().push(within);
    }
}

/// A running admin API.
pub struct Running {
    pub dir: tempfile::TempDir,
    pub client: Client,
    pub gate: Arc<Gate>,
    pub metrics: Arc<Metrics>,
    pub registry: Arc<Registry>,
    pub loopback: SocketAddr,
    pub stop: Option<oneshot::Sender<()>>,
    pub thread: Option<JoinHandle<()>>,
}

impl Running {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut AdminConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (gate, metrics) = (Arc::new(Gate::default()), Metrics::new());
        let registry = Registry::new(Instant::now());
        let socket = dir.path().join("admin.sock");
        let loopback = Some("127.0.0.1:0".parse().unwrap());
        let mut config = AdminConfig { socket: socket.clone(), metrics: loopback, ..Default::default() };
        change(&mut config);
        let admin = Admin { control: gate.clone(), metrics: metrics.clone(), registry: registry.clone() };
        let (stop, stopped) = oneshot::channel();
        let (up, ready) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            runtime().block_on(async {
                let server = Server::bind(config, admin).await.unwrap();
                up.send(server.metrics_addr().unwrap()).unwrap();
                tokio::select! { () = server.run() => {}, _ = stopped => {} }
            });
        });
        let loopback = ready.recv().unwrap();
        let client = Client::new(socket);
        Self { dir, client, gate, metrics, registry, loopback, stop: Some(stop), thread: Some(thread) }
    }

    pub fn add(&self, tenant: &str, user: &str) -> u64 {
        let id = self.registry.next_id();
        let source = format!("198.51.100.{id}:50000").parse().unwrap();
        self.registry.insert(Arc::new(Session {
            id,
            door: Door::Mks,
            tenant: tenant.into(),
            user: user.into(),
            vm: "[ds] a/a.vmx".into(),
            jti: format!("t-{id}").into(),
            mark: 1,
            source,
            peer: source,
            local: "192.0.2.1:443".parse().unwrap(),
            backend_local: "10.0.0.1:40000".parse().unwrap(),
            backend: "10.0.0.9:902".parse().unwrap(),
            started: SystemTime::now(),
            since: Instant::now(),
            counters: Arc::default(),
        }));
        id
    }

    /// Sends bytes over the Unix socket and reads until the other side closes.
    pub fn raw(&self, request: &str) -> String {
        let mut stream = UnixStream::connect(self.client.socket()).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    pub fn over_tcp(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.loopback).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}
