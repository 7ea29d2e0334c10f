//! Twenty thousand short consoles leave nothing behind: no file, no pipe, no memory, no slot.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};

use mksgate_bench::sim::{Esxi, EsxiConfig, Screen, Ticket, Vm};
use support::{Appliance, HOST_TICKET, Setup, VM, client};

/// As many as run beside each other.
const AT_ONCE: usize = 8;
/// After these, buffers and tables have the size they will keep.
const WARM_UP: u32 = 2_000;
const SESSIONS: u32 = 20_000;
/// Looks at the open files before and after.
const READINGS: u32 = 100;
/// What the allocator may keep in its pockets, bytes; one leaked kilobyte per session would be twice that.
const SLACK: f64 = 8e6;

fn sessions(gate: &Appliance, ticket: &str, count: u32) {
    let (left, door) = (AtomicU32::new(count), gate.authd);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
                    one(door, ticket);
                }
            });
        }
    });
    while gate.metric("mksgate_sessions", &[]) > 0.0 || gate.metric("mksgate_preauth_connections", &[]) > 0.0
    {
        std::thread::yield_now();
    }
}

fn one(door: SocketAddr, ticket: &str) {
    // All its uses may still be on their way out: then it is refused and tried again.
    let mut stream: TcpStream = loop {
        match client::open(client::authd(door), ticket, VM) {
            Ok(stream) => break stream,
            Err(refused) => assert!(refused.starts_with("530"), "{refused}"),
        }
    };
    stream.write_all(b"ping").unwrap();
    stream.read_exact(&mut [0; 4]).unwrap();
}

#[test]
fn twenty_thousand_sessions_leave_nothing_behind() {
    let setup = Setup::new().with(
        "[limits]\nsource_rate = 100000\nsource_burst = 100000\nper_source = 1000\n[log]\nformat = \"json\"\nfilter = \"warn,mksgate::cli=info,mksgate::control=info\"\n[tickets]\nkeys = \"keys\"\nmax_connections = 1000",
    );
    let gate = setup.start();
    let host = Esxi::start(
        EsxiConfig::default().vm(Vm::plain(VM, Screen::echo())).ticket(Ticket::new(HOST_TICKET, VM)),
    )
    .unwrap();
    // One ticket for all: what it says is remembered once.
    let ticket = gate.ticket(&host);
    sessions(&gate, &ticket, WARM_UP);
    let once = || {
        let pipes = gate.metric("mksgate_flow_pipes", &["in_use"]) as usize;
        (gate.open_files() - gate.metric("mksgate_flow_pipes", &["idle"]) as usize * 2, pipes)
    };
    // The lowest of many: the connection that asked for a metric, or the last refused client's, may be a moment on its way out.
    let state = || (0..READINGS).map(|_| once()).min();
    let (before, memory) = (state(), gate.metric("process_resident_memory_bytes", &[]));
    sessions(&gate, &ticket, SESSIONS);
    assert_eq!(state(), before, "open files and pipes");
    let grown = gate.metric("process_resident_memory_bytes", &[]) - memory;
    assert!(grown < SLACK, "{grown} bytes more than after the warm-up");
    assert_eq!(gate.metric("mksgate_flows", &[]), 0.0);
    assert_eq!(gate.metric("mksgate_sessions_opened_total", &[]), f64::from(WARM_UP + SESSIONS));
    assert_eq!(host.open_connections(), 0);
}
