//! From `accept` to the hand-over: one thread per core on the tokio-uring runtime (plain tokio where io_uring is refused).
//! Everything here is short-lived; no console's bytes pass through it.

mod accept;
mod api;
mod authd;
mod console;
mod dialogue;
mod https;
mod inherited;
mod listen;
mod page;
mod proxy_header;
mod refused;
mod websocket;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::watch;
use tokio::task::LocalSet;

pub(crate) use inherited::descriptors;
pub use inherited::{InheritError, inherited};
pub use listen::{Listener, bind};
pub use page::is_built as has_page;
pub use refused::Refused;

use crate::gate::Gate;
use crate::wire::Runtime;

/// How long a client that was refused may take to read why and to close.
const FAREWELL: std::time::Duration = std::time::Duration::from_secs(1);
/// Entries of each front thread's submission queue: accepts, and a few reads and writes per handshake.
const RING_ENTRIES: u32 = 1024;

/// The front threads.
pub struct Fronts {
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

impl Fronts {
    /// Starts `threads` of them; every listener is served by all.
    pub fn start(
        gate: &Arc<Gate>,
        listeners: &[Listener],
        threads: usize,
        runtime: Runtime,
    ) -> io::Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let mut fronts = Self { stop, threads: Vec::new() };
        for n in 0..threads {
            let listeners = listeners.iter().map(Listener::duplicate).collect::<io::Result<Vec<_>>>()?;
            let (gate, stopped) = (gate.clone(), stopped.clone());
            let serve = move || serve(gate, listeners, runtime, stopped);
            fronts.threads.push(std::thread::Builder::new().name(format!("front-{n}")).spawn(serve)?);
        }
        Ok(fronts)
    }

    /// Accepts nothing from now on; handshakes under way go on.
    pub fn stop_accepting(&self) {
        self.stop.send_replace(true);
    }

    /// Waits for the threads, which end when nothing is accepted any more and the last handshake is over.
    pub fn join(self) {
        self.stop_accepting();
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a front thread panicked");
            }
        }
    }
}

fn serve(gate: Arc<Gate>, listeners: Vec<Listener>, runtime: Runtime, stopped: watch::Receiver<bool>) {
    let work = async move {
        let local = LocalSet::new();
        for listener in listeners {
            local.spawn_local(accept::serve(gate.clone(), listener, runtime, stopped.clone()));
        }
        local.await;
    };
    match runtime {
        Runtime::Uring => {
            let mut ring = tokio_uring::uring_builder();
            if cooperates() {
                ring.setup_coop_taskrun();
            }
            tokio_uring::builder().uring_builder(&ring).entries(RING_ENTRIES).start(work)
        }
        Runtime::Tokio => match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(work),
            Err(error) => tracing::error!(%error, "a front thread could not start"),
        },
    }
}

/// Whether the kernel can leave a completion until the thread enters it anyway (`IORING_SETUP_COOP_TASKRUN`, 5.19), in place
/// of an interrupt for each: a tenth of what a console's start costs.
fn cooperates() -> bool {
    let ring: io::Result<io_uring::IoUring> = io_uring::IoUring::builder().setup_coop_taskrun().build(1);
    ring.is_ok()
}
