//! What the flow tests share: engines of every kind, socket pairs, flows whose end can be awaited.
#![allow(dead_code, clippy::allow_attributes, reason = "each test binary uses a part")]

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use mksgate::flow::{Driver, Engines, Flow, FlowConfig, FlowCounters, FlowEnd, FlowLimits, Leg, Mode, Way};

/// Nothing in these tests takes this long unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Every driver with every mode.
pub const SETUPS: [(Driver, Mode); 6] = [
    (Driver::IoUring, Mode::Adaptive),
    (Driver::IoUring, Mode::Splice),
    (Driver::IoUring, Mode::Copy),
    (Driver::Epoll, Mode::Adaptive),
    (Driver::Epoll, Mode::Splice),
    (Driver::Epoll, Mode::Copy),
];

/// No limit that a test would meet by chance.
pub const UNLIMITED: FlowLimits =
    FlowLimits { idle: None, ends_at: None, half_close: Duration::from_secs(3600) };

pub fn config(driver: Driver, mode: Mode) -> FlowConfig {
    FlowConfig { driver, mode, threads: 1, ..FlowConfig::default() }
}

/// Runs `test` on a fresh engine of every kind.
pub fn everywhere(test: impl Fn(&Engines)) {
    for (driver, mode) in SETUPS {
        println!("{driver:?} {mode:?}");
        let engines = Engines::start(&config(driver, mode)).expect("engine");
        test(&engines);
        engines.stop();
    }
}

/// Two ends of a TCP connection over loopback.
pub fn pair() -> (TcpStream, TcpStream) {
    static LISTENER: Mutex<Option<TcpListener>> = Mutex::new(None);
    let mut listener = LISTENER.lock().unwrap_or_else(PoisonError::into_inner);
    let listener =
        listener.get_or_insert_with(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen"));
    let near = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
    let (far, _) = listener.accept().expect("accept");
    for end in [&near, &far] {
        end.set_nodelay(true).expect("nodelay");
        end.set_read_timeout(Some(PATIENCE)).expect("timeout");
        end.set_write_timeout(Some(PATIENCE)).expect("timeout");
    }
    (near, far)
}

/// A flow under test: its outer ends and its account.
pub struct Rig {
    pub id: u64,
    pub client: TcpStream,
    pub backend: TcpStream,
    pub counters: Arc<FlowCounters>,
    pub end: mpsc::Receiver<FlowEnd>,
}

impl Rig {
    pub fn new(engines: &Engines, limits: FlowLimits) -> Self {
        Self::with_bytes(engines, limits, Vec::new(), Vec::new())
    }

    pub fn with_bytes(engines: &Engines, limits: FlowLimits, up: Vec<u8>, down: Vec<u8>) -> Self {
        Self::over(engines, limits, up, down, pair(), pair())
    }

    pub fn over(
        engines: &Engines,
        limits: FlowLimits,
        to_backend: Vec<u8>,
        to_client: Vec<u8>,
        (client, client_leg): (TcpStream, TcpStream),
        (backend, backend_leg): (TcpStream, TcpStream),
    ) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let counters = Arc::new(FlowCounters::default());
        let (send, end) = mpsc::channel();
        let flow = Flow {
            id,
            client: Leg::Raw(OwnedFd::from(client_leg)),
            backend: Leg::Raw(OwnedFd::from(backend_leg)),
            to_backend,
            to_client,
            limits,
            counters: Arc::clone(&counters),
            progress: Default::default(),
            on_first_byte: None,
            on_close: Box::new(move |end| {
                let _ = send.send(end);
            }),
        };
        assert!(engines.submit(flow).is_ok(), "the engine takes the flow");
        Self { id, client, backend, counters, end }
    }

    /// Awaits the account; there is exactly one.
    pub fn account(&self) -> FlowEnd {
        let end = self.end.recv_timeout(PATIENCE).expect("the flow ends");
        assert!(self.end.recv_timeout(PATIENCE).is_err(), "one account per flow");
        end
    }

    /// Whether the account is there already.
    pub fn ended(&self) -> bool {
        self.end.try_recv().is_ok()
    }
}

/// Makes the end go with RST instead of FIN.
pub fn reset(end: TcpStream) {
    socket2::SockRef::from(&end).set_linger(Some(Duration::ZERO)).expect("linger");
}

/// A sum over all threads.
pub fn total(engines: &Engines, way: Way) -> u64 {
    engines.stats().iter().map(|stats| stats.bytes(way)).sum()
}
