//! The host: its listener and threads, and the handle that a test holds.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};
use tokio::sync::watch;

use super::authd;
use super::cert::Identity;
use super::config::{EsxiConfig, Ticket, Vm};
use super::event::{Closed, EventKind, Events, Journal};
use super::fault::{Cut, Faults};
use super::screen::Screen;
use super::stream::Traffic;
use super::wire::reset_on_close;

/// A running ESXi host. Dropping it ends it and every connection.
pub struct Esxi {
    addr: SocketAddr,
    host: Arc<Host>,
    stopping: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

/// What all connections of a host share.
pub(super) struct Host {
    pub(super) banner: String,
    pub(super) identity: Identity,
    /// A certificate that nobody announced.
    pub(super) stranger: Identity,
    pub(super) journal: Arc<Journal>,
    faults: Mutex<Faults>,
    vms: Mutex<HashMap<String, Arc<LiveVm>>>,
    tickets: Mutex<HashMap<String, Ticket>>,
    config: EsxiConfig,
    /// Generation and kind of the last cut.
    cut: watch::Sender<Option<Cut>>,
    accepted: AtomicU64,
    open: AtomicUsize,
}

/// A registered machine at run time.
pub(super) struct LiveVm {
    pub(super) path: String,
    pub(super) plain: bool,
    pub(super) screen: Screen,
    pub(super) identity: Identity,
    max_consoles: usize,
    consoles: AtomicUsize,
}

impl Esxi {
    /// Starts a host on threads of its own; works with and without a runtime around it.
    pub fn start(config: EsxiConfig) -> io::Result<Self> {
        let listener = TcpListener::bind(config.listen)?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let host = Arc::new(Host::new(config)?);
        let (stopping, stopped) = watch::channel(false);

        let mut threads = Vec::new();
        let mut workers = Vec::new();
        for n in 1..host.config.threads.max(1) {
            let (thread, handle) = worker(n, stopped.clone())?;
            threads.push(thread);
            workers.push(handle);
        }
        let runtime = Builder::new_current_thread().enable_all().build()?;
        workers.push(runtime.handle().clone());
        let task = accept(listener, host.clone(), workers, stopped);
        let main = std::thread::Builder::new().name("sim-0".to_owned());
        threads.push(main.spawn(move || runtime.block_on(task))?);
        Ok(Self { addr, host, stopping, threads })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// SHA-1 of the host's own certificate (TLS no. 1), `AA:BB:..`.
    pub fn thumbprint_sha1(&self) -> String {
        self.host.identity.sha1()
    }

    /// SHA-256 of the host's own certificate.
    pub fn thumbprint_sha256(&self) -> String {
        self.host.identity.sha256()
    }

    /// The certificate of TLS no. 1.
    pub fn identity(&self) -> &Identity {
        &self.host.identity
    }

    /// The certificate of a machine (TLS no. 2).
    pub fn vm_identity(&self, path: &str) -> Option<Identity> {
        self.host.vm(path).map(|vm| vm.identity.clone())
    }

    /// Registers a machine, or replaces it.
    pub fn add_vm(&self, vm: Vm) -> io::Result<()> {
        self.host.add_vm(vm)
    }

    /// Takes a machine out of the register.
    pub fn remove_vm(&self, path: &str) {
        lock(&self.host.vms).remove(path);
    }

    /// Adds a ticket, or renews it.
    pub fn add_ticket(&self, ticket: Ticket) {
        lock(&self.host.tickets).insert(ticket.name.clone(), ticket);
    }

    /// Sets the faults of connections accepted from now on.
    pub fn set_faults(&self, faults: Faults) {
        *lock(&self.host.faults) = faults;
    }

    /// A reader of everything that happened since the start.
    pub fn events(&self) -> Events {
        Events::new(self.host.journal.clone())
    }

    /// Connections that stand now, in whatever step.
    pub fn open_connections(&self) -> usize {
        self.host.open.load(Ordering::SeqCst)
    }

    /// Connections ever accepted.
    pub fn accepted(&self) -> u64 {
        self.host.accepted.load(Ordering::SeqCst)
    }

    /// Ends every connection that stands; new ones are welcome.
    pub fn cut(&self, how: Cut) {
        self.host.cut.send_replace(Some(how));
    }

    /// Ends the host: the listener, every connection, the threads.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stopping.send_replace(true);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Esxi {
    fn drop(&mut self) {
        self.end();
    }
}

impl Host {
    fn new(mut config: EsxiConfig) -> io::Result<Self> {
        let vms = std::mem::take(&mut config.vms);
        let tickets = std::mem::take(&mut config.tickets);
        let host = Self {
            banner: config.banner.clone(),
            identity: Identity::new("esxi.mksgate.example", config.tls)?,
            stranger: Identity::new("stranger.mksgate.example", config.tls)?,
            journal: Arc::default(),
            faults: Mutex::new(config.faults.clone()),
            vms: Mutex::default(),
            tickets: Mutex::new(tickets.into_iter().map(|ticket| (ticket.name.clone(), ticket)).collect()),
            config,
            cut: watch::Sender::new(None),
            accepted: AtomicU64::new(0),
            open: AtomicUsize::new(0),
        };
        vms.into_iter().try_for_each(|vm| host.add_vm(vm))?;
        Ok(host)
    }

    fn add_vm(&self, vm: Vm) -> io::Result<()> {
        let live = LiveVm {
            identity: Identity::new("vm.mksgate.example", self.config.tls)?,
            path: vm.path.clone(),
            plain: vm.plain,
            screen: vm.screen,
            max_consoles: vm.max_consoles.unwrap_or(usize::MAX),
            consoles: AtomicUsize::new(0),
        };
        lock(&self.vms).insert(vm.path, Arc::new(live));
        Ok(())
    }

    pub(super) fn faults(&self) -> Faults {
        lock(&self.faults).clone()
    }

    pub(super) fn ticket_faults(&self, name: &str) -> Option<Faults> {
        lock(&self.tickets).get(name).map(|ticket| ticket.faults.clone())
    }

    pub(super) fn vm(&self, path: &str) -> Option<Arc<LiveVm>> {
        lock(&self.vms).get(path).cloned()
    }

    /// The machine that a ticket opens; a one-time ticket is gone afterwards.
    pub(super) fn redeem(&self, name: &str) -> Option<String> {
        let mut tickets = lock(&self.tickets);
        let ticket = tickets.get(name)?;
        let vm = ticket.vm.clone();
        if ticket.one_time {
            tickets.remove(name);
        }
        Some(vm)
    }
}

impl LiveVm {
    pub(super) fn full(&self) -> bool {
        self.consoles.load(Ordering::SeqCst) >= self.max_consoles
    }

    /// Counts a console until the guard is dropped.
    pub(super) fn enter(self: &Arc<Self>) -> OpenConsole {
        self.consoles.fetch_add(1, Ordering::SeqCst);
        OpenConsole(self.clone())
    }
}

pub(super) struct OpenConsole(Arc<LiveVm>);

impl Drop for OpenConsole {
    fn drop(&mut self) {
        self.0.consoles.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A thread that only runs what is spawned onto its handle.
fn worker(n: usize, mut stopped: watch::Receiver<bool>) -> io::Result<(JoinHandle<()>, Handle)> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let thread = std::thread::Builder::new().name(format!("sim-{n}")).spawn(move || {
        let _ = runtime.block_on(stopped.wait_for(|stopped| *stopped));
    })?;
    Ok((thread, handle))
}

async fn accept(
    listener: TcpListener,
    host: Arc<Host>,
    workers: Vec<Handle>,
    mut stopped: watch::Receiver<bool>,
) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    let mut turn = 0;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.wait_for(|stopped| *stopped) => return,
        };
        match accepted.and_then(|(tcp, peer)| Ok((tcp.into_std()?, peer))) {
            Ok((tcp, peer)) => {
                let conn = host.accepted.fetch_add(1, Ordering::SeqCst) + 1;
                host.open.fetch_add(1, Ordering::SeqCst);
                host.journal.record(conn, EventKind::Accepted { peer });
                turn = (turn + 1) % workers.len();
                workers[turn].spawn(supervise(host.clone(), conn, tcp, stopped.clone()));
            }
            // Out of files, or the client was gone: the listener itself is well.
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
        }
    }
}

/// Runs a connection and writes down its end.
async fn supervise(host: Arc<Host>, conn: u64, tcp: std::net::TcpStream, mut stopped: watch::Receiver<bool>) {
    let traffic = Arc::<Traffic>::default();
    let how = match adopt(tcp) {
        Err(err) => Closed::Error(err.to_string()),
        Ok(tcp) => {
            let mut cut = host.cut.subscribe();
            tokio::select! {
                how = authd::serve(host.clone(), conn, tcp.clone(), traffic.clone()) => how,
                _ = stopped.wait_for(|stopped| *stopped) => Closed::Cut,
                _ = cut.changed() => {
                    if *cut.borrow() == Some(Cut::Reset) {
                        reset_on_close(&tcp);
                    }
                    Closed::Cut
                }
            }
        }
    };
    host.open.fetch_sub(1, Ordering::SeqCst);
    let received = traffic.received.load(Ordering::Relaxed);
    let sent = traffic.sent.load(Ordering::Relaxed);
    host.journal.record(conn, EventKind::Closed { how, received, sent });
}

fn adopt(tcp: std::net::TcpStream) -> io::Result<Arc<TcpStream>> {
    tcp.set_nonblocking(true)?;
    tcp.set_nodelay(true)?;
    Ok(Arc::new(TcpStream::from_std(tcp)?))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
