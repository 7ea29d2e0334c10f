//! Reloads while consoles come and go: nothing leaks, no limit is wrong, no console is lost.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use mksgate::admin::Reloaded;
use mksgate::admin::client::Client;
use mksgate::ticket::KeyRing;
use mksgate_bench::sim::{Esxi, EsxiConfig, Screen, Ticket, Vm};
use support::{Appliance, HOST_TICKET, Setup, VM, claims, client};

const RELOADS: u32 = 1000;
const WORKERS: usize = 3;

fn tenants(max_sessions: u32) -> String {
    format!("[tenants.acme]\nmax_sessions = {max_sessions}\ntargets = [\"127.0.0.0/8\"]\n")
}

fn ping(stream: &mut TcpStream) {
    stream.write_all(b"ping").unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"ping");
}

/// Opens a console, uses it and closes it, until it is told to stop.
fn come_and_go(door: SocketAddr, keys: &KeyRing, host: &Esxi, stop: &AtomicBool, count: &AtomicU64) {
    while !stop.load(Ordering::Relaxed) {
        let ticket = keys.seal(&claims(host.addr(), &host.thumbprint_sha256())).unwrap();
        let mut console = client::open(client::authd(door), &ticket, VM).expect("there always is room");
        ping(&mut console);
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Descriptors and threads of the process, once nothing is under way. The helpers of the admin API come and go.
fn belongings(gate: &Appliance) -> (usize, usize) {
    let tasks = fs::read_dir(format!("/proc/{}/task", gate.pid())).unwrap().flatten();
    let name = |task: &fs::DirEntry| fs::read_to_string(task.path().join("comm")).unwrap_or_default();
    // The lowest of many: the connection that asked for a metric may be a moment on its way out.
    let files = (0..100).map(|_| {
        gate.metric("mksgate_sessions", &[]);
        gate.open_files()
    });
    (files.min().unwrap_or_default(), tasks.filter(|task| !name(task).starts_with("tokio-")).count())
}

fn wait_until_only(gate: &Appliance, sessions: f64) {
    while gate.metric("mksgate_sessions", &[]) != sessions
        || gate.metric("mksgate_preauth_connections", &[]) > 0.0
    {
        thread::yield_now();
    }
}

#[test]
fn heavy_a_thousand_reloads_while_consoles_come_and_go() {
    let limits = "[limits]\nsource_rate = 100000\nsource_burst = 100000\nper_source = 1000\n\
                  [log]\nformat = \"json\"\nfilter = \"mksgate=info\"";
    let gate = Setup::new().with(limits).tenants(&tenants(20)).start();
    let host = Esxi::start(
        EsxiConfig::default().vm(Vm::plain(VM, Screen::echo())).ticket(Ticket::new(HOST_TICKET, VM)),
    )
    .unwrap();
    let path = gate.dir.path().join("mksgate.toml");
    let with_20 = fs::read_to_string(&path).unwrap();
    let write = |max: u32| {
        let text = with_20.replace("max_sessions = 20", &format!("max_sessions = {max}"));
        let new = path.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, &path).unwrap();
    };
    let admin = Client::new(gate.dir.path().join("admin.sock"));
    let reload = || admin.post::<Reloaded>("/v1/reload", &serde_json::json!({}));
    let open = |gate: &Appliance| client::open(client::authd(gate.authd), &gate.ticket(&host), VM);
    let mut steady = open(&gate).unwrap();
    ping(&mut steady);
    reload().unwrap();
    wait_until_only(&gate, 1.0);
    let before = belongings(&gate);

    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| come_and_go(gate.authd, &gate.keys, &host, &stop, &count));
        }
        for n in 1..=RELOADS {
            // Good ones that change a limit, and every tenth a bad one.
            if n % 10 == 0 {
                fs::write(&path, with_20.replace("max_sessions", "max_sesions")).unwrap();
                let said = reload().unwrap_err().to_string();
                assert!(said.contains("max_sesions"), "{said}");
            } else {
                write(20 + n % 2);
                let Reloaded { needs_restart, .. } = reload().unwrap();
                assert!(needs_restart.is_empty(), "{needs_restart:?}");
            }
            if n % 50 == 0 {
                ping(&mut steady);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let came = count.load(Ordering::Relaxed);
    println!("{came} consoles came and went during {RELOADS} reloads");
    assert!(came > 0);

    wait_until_only(&gate, 1.0);
    ping(&mut steady);
    let after = belongings(&gate);
    assert!(after.0 <= before.0 && after.1 == before.1, "before {before:?}, after {after:?}");
    assert_eq!(gate.metric("mksgate_sessions_opened_total", &[]), came as f64 + 1.0);
    assert_eq!(gate.metric("mksgate_sessions_closed_total", &["client_closed"]), came as f64);

    // The limit of the last file holds exactly, the steady console included.
    write(3);
    assert_eq!(reload().unwrap().changed, ["tenants"]);
    let _held: Vec<TcpStream> = (0..2).map(|_| open(&gate).unwrap()).collect();
    assert!(open(&gate).unwrap_err().starts_with("552"));
    // What only a restart brings into force is named.
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("[audit]", "[flow]\nthreads = 7\n[audit]\njournal = true")).unwrap();
    assert_eq!(reload().unwrap().needs_restart, ["flow", "audit"]);
}
