//! A younger process takes over from an older one while consoles run: none ends, none is refused, everything still counts.

mod support;
mod web_client;

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use mksgate::session::CloseReason;
use mksgate_bench::sim::{Esxi, EsxiConfig, Screen, Ticket, Vm};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::{Appliance, HOST_TICKET, Setup, VM, client};
use web_client::Web;

/// The appliance whose process changes.
struct Service {
    gate: Appliance,
    program: PathBuf,
}

impl Service {
    fn start(setup: Setup) -> Self {
        let program = setup.dir.path().join("mksgate");
        fs::copy(env!("CARGO_BIN_EXE_mksgate"), &program).unwrap();
        let gate = setup.start_by(Command::new(&program));
        Self { gate, program }
    }

    fn says(&self, args: &[&str]) -> Result<String, String> {
        let output = self.gate.command(args);
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.says(&[args, &["--json"]].concat()).unwrap()).unwrap()
    }

    fn pid(&self) -> i32 {
        self.json(&["status"])["pid"].as_i64().unwrap().try_into().unwrap()
    }

    /// Upgrades; the process in charge afterwards is another one.
    fn upgrade(&mut self) {
        let before = self.pid();
        self.says(&["upgrade"]).unwrap();
        let after = self.pid();
        assert_ne!(before, after);
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // No child of this test: it was born detached.
        if let Ok(status) = self.says(&["status", "--json"])
            && let Some(pid) = serde_json::from_str::<Value>(&status).ok().and_then(|s| s["pid"].as_i64())
        {
            let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
        }
    }
}

fn echo_host() -> Esxi {
    Esxi::start(EsxiConfig::default().vm(Vm::plain(VM, Screen::echo())).ticket(Ticket::new(HOST_TICKET, VM)))
        .unwrap()
}

fn ping(stream: &mut TcpStream) {
    ping_all(std::slice::from_mut(stream));
}

/// Asks all of them, then hears all of them.
fn ping_all(streams: &mut [TcpStream]) {
    streams.iter_mut().for_each(|stream| stream.write_all(b"ping").unwrap());
    for stream in streams {
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"ping");
    }
}

#[test]
fn consoles_tickets_limits_and_accounts_go_on_in_the_new_process() {
    let tenants =
        "[tenants.acme]\nmax_sessions = 3\nmax_sessions_per_user = 2\ntargets = [\"127.0.0.0/8\"]\n";
    let (mut service, host) = (Service::start(Setup::new().tenants(tenants)), echo_host());
    let ticket = service.gate.ticket_with(&host, |c| c.max_connections = Some(2));
    let open = |service: &Service, ticket: &str| client::open(client::authd(service.gate.authd), ticket, VM);
    let mut first = open(&service, &ticket).unwrap();
    ping(&mut first);
    service.upgrade();
    ping(&mut first);
    let mut second = open(&service, &ticket).expect("the ticket is known and its time is not over");
    ping(&mut second);
    let third = open(&service, &ticket).unwrap_err();
    assert!(third.starts_with("530"), "both connections of the ticket are open: {third}");
    let another = service.gate.ticket(&host);
    let busy = open(&service, &another).unwrap_err();
    assert!(busy.starts_with("552"), "ann has two: {busy}");
    let of = |user: &'static str| service.gate.ticket_with(&host, |c| c.user = user.into());
    let (bob, eve) = (of("bob"), of("eve"));
    let mut third = open(&service, &bob).unwrap();
    assert!(open(&service, &eve).unwrap_err().starts_with("552"), "acme has three");

    service.upgrade();
    for console in [&mut first, &mut second, &mut third] {
        ping(console);
    }
    assert!(open(&service, &eve).unwrap_err().starts_with("552"), "acme still has three");
    let sessions = service.json(&["sessions", "list"])["sessions"].as_array().unwrap().clone();
    let ids: Vec<u64> = sessions.iter().map(|session| session["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, [1, 2, 3], "numbers go on");
    drop(first);
    service.gate.wait_log(|line| line["fields"]["message"] == "console closed");
    let mut fourth = open(&service, &eve).expect("there is room again");
    ping(&mut fourth);
    service.says(&["sessions", "close", "3"]).unwrap();
    assert!(matches!(third.read(&mut [0; 1]), Ok(0) | Err(_)), "an operator's word reaches every console");
    service.gate.wait_log(|line| line["fields"]["message"] == "console closed");

    let audit = service.gate.audit_with("close", 2);
    let events = |kind: &str| -> Vec<(u64, Value)> {
        let of_kind = audit.iter().filter(|record| record["event"] == kind);
        of_kind.map(|record| (record["session"].as_u64().unwrap(), record["up_bytes"].clone())).collect()
    };
    let mut opened: Vec<u64> = events("open").into_iter().map(|(id, _)| id).collect();
    opened.sort_unstable();
    assert_eq!(opened, [1, 2, 3, 4], "one record each, whatever process wrote it");
    assert_eq!(events("close"), [(1, 12.into()), (3, 4.into())], "bytes of all processes add up");
}

#[test]
fn a_program_that_does_not_start_changes_nothing() {
    let (mut service, host) = (Service::start(Setup::new()), echo_host());
    let mut console =
        client::open(client::authd(service.gate.authd), &service.gate.ticket(&host), VM).unwrap();
    let (pid, good) = (service.pid(), fs::read(&service.program).unwrap());
    let install = |content: &[u8]| {
        let new = service.program.with_extension("new");
        fs::write(&new, content).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(new, &service.program).unwrap();
    };
    let refuses = |with: &str| {
        let said = service.says(&["upgrade"]).unwrap_err();
        assert!(said.contains(with), "{said}");
        assert_eq!(service.pid(), pid);
    };
    install(b"#!/bin/sh\nexit 1\n");
    assert_eq!(service.json(&["status"])["service"]["program_replaced"], true);
    refuses("without a word");
    install(b"no program at all");
    refuses("could not be started");
    install(&good);
    let config = service.gate.dir.path().join("mksgate.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}\nmax_sesions = 1\n")).unwrap();
    refuses("max_sesions");
    fs::write(&config, text).unwrap();
    ping(&mut console);
    client::open(client::mks(service.gate.tls), &service.gate.ticket(&host), VM).expect("the doors are open");
    service.upgrade();
    ping(&mut console);
}

/// A host whose consoles browsers can open, too.
fn web_host() -> Esxi {
    let config = EsxiConfig::default().vm(Vm::new(VM, Screen::echo()));
    Esxi::start(config.ticket(Ticket::new(HOST_TICKET, VM))).unwrap()
}

fn browser(service: &Service, host: &Esxi) -> Web {
    let mut web = Web::open(service.gate.tls, &format!("/ticket/{}", service.gate.ticket(host)));
    web.shake_hands();
    web.echo(b"a key");
    web
}

fn elsewhere(service: &Service) -> u64 {
    service.json(&["status"])["service"]["sessions_elsewhere"].as_u64().unwrap()
}

/// TLS cannot move: such a console stays with the older process, is listed and closed by way of the younger one, and the
/// older one ends with the last of them.
#[test]
fn consoles_in_browsers_stay_in_the_older_process_until_they_end() {
    let (mut service, host) = (Service::start(Setup::new()), web_host());
    let (mut first, mut second) = (browser(&service, &host), browser(&service, &host));
    service.upgrade();
    service.gate.wait_log(|line| line["fields"]["message"] == "upgrade: what can move has moved");
    first.echo(b"over the upgrade");
    second.echo(b"this one, too");
    assert_eq!(elsewhere(&service), 2);
    let mut third = browser(&service, &host);
    let listed = service.json(&["sessions", "list"])["sessions"].as_array().unwrap().len();
    assert_eq!(listed, 3, "two of the older process and one of the younger");
    service.says(&["sessions", "close", "1"]).unwrap();
    let (code, words) = CloseReason::Operator.words();
    assert_eq!(first.end(), (code.0, words.to_owned()));
    second.echo(b"the last one there");
    drop(second);
    service.gate.wait_log(|line| line["fields"]["message"] == "stopped");
    third.echo(b"goes on");
    let mut closed: Vec<(u64, Value)> = Vec::new();
    for record in service.gate.audit().iter().filter(|record| record["event"] == "close") {
        closed.push((record["session"].as_u64().unwrap(), record["reason"].clone()));
    }
    assert_eq!(closed, [(1, "operator".into()), (2, "client_closed".into())], "each once");
    assert_eq!(elsewhere(&service), 0);
}

#[test]
fn a_console_in_a_browser_is_told_when_the_time_of_its_process_is_over() {
    let drain = "[deadlines]\ndrain_seconds = 0.2";
    let (mut service, host) = (Service::start(Setup::new().with(drain)), web_host());
    let mut old = browser(&service, &host);
    service.upgrade();
    let (code, words) = CloseReason::Drain.words();
    assert_eq!(old.end(), (code.0, words.to_owned()));
    service.gate.wait_log(|line| line["fields"]["message"] == "stopped");
    browser(&service, &host).echo(b"the younger process serves");
}

/// Opens consoles, lets a younger process take over, and ends that with SIGKILL when the first console has moved. Returns how
/// many had moved and how many had not.
fn heir_dies() -> (usize, usize) {
    const CONSOLES: usize = 120;
    let limits = "[limits]\nper_source = 1000\nsource_rate = 10000\nsource_burst = 10000";
    let (mut service, host) = (Service::start(Setup::new().with(limits)), echo_host());
    let open = |service: &Service| {
        client::open(client::authd(service.gate.authd), &service.gate.ticket(&host), VM).unwrap()
    };
    let mut consoles: Vec<TcpStream> = (0..CONSOLES).map(|_| open(&service)).collect();
    ping_all(&mut consoles);
    // Bytes that are on their way meanwhile, too.
    consoles.iter_mut().for_each(|console| console.write_all(b"before").unwrap());
    service.says(&["upgrade"]).unwrap();
    let heir =
        service.gate.wait_log(|line| line["fields"]["message"] == "upgrade: the new process is in charge");
    let heir = Pid::from_raw(heir["fields"]["pid"].as_i64().unwrap() as i32);
    service.gate.wait_log(|line| line["fields"]["message"] == "console moved");
    kill(heir, Signal::SIGKILL).unwrap();
    let mut moved = 1;
    service.gate.wait_log(|line| {
        moved += usize::from(line["fields"]["message"] == "console moved");
        line["fields"]["message"] == "upgrade: what can move has moved"
    });
    // What had moved ended with the process that had it; every other one goes on here and has lost nothing.
    let lives = |console: &mut TcpStream| {
        let mut answer = [0; 6];
        match console.read_exact(&mut answer).and_then(|()| console.write_all(b"after!")) {
            Ok(()) if &answer == b"before" => {
                console.read_exact(&mut answer).is_ok_and(|()| &answer == b"after!")
            }
            Ok(()) => panic!("{answer:?}"),
            Err(_) => false,
        }
    };
    consoles.retain_mut(lives);
    let stayed = consoles.len();
    assert_eq!(moved + stayed, CONSOLES, "{moved} had moved");
    drop(consoles);
    for _ in 0..stayed {
        let line = service.gate.wait_log(|line| line["fields"]["message"] == "console closed");
        assert_eq!(line["fields"]["reason"], "client_closed", "{line}");
    }
    service.gate.wait_log(|line| line["fields"]["message"] == "stopped");
    (moved, stayed)
}

/// Until it has said that a console is its own, the console is the older process's, whatever becomes of the younger one.
#[test]
fn heavy_a_process_that_dies_while_consoles_move_takes_only_those_it_had() {
    // It may have all of them before the signal reaches it.
    let halfway = (0..10).map(|_| heir_dies()).any(|(_, stayed)| stayed > 0);
    assert!(halfway, "it never died half-way");
}

/// Bytes that no other flow sends, from the beginning again for each reader.
struct Noise(u64);

impl Noise {
    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            chunk.copy_from_slice(&self.0.to_le_bytes()[..chunk.len()]);
        }
    }
}

const PIECE: usize = 16 << 10;

/// Pieces on their way at once: enough that splice has always something to move, and little enough that all of it comes
/// back in moderate time on a busy machine.
const WINDOW: usize = 32;

/// Sends noise, a piece for each permit, until it is told to stop; returns how much.
fn send(mut stream: TcpStream, seed: u64, permits: &mpsc::Receiver<()>, stop: &AtomicBool) -> u64 {
    let (mut noise, mut piece, mut sent) = (Noise(seed), vec![0; PIECE], 0);
    while !stop.load(Ordering::Relaxed) && permits.recv().is_ok() {
        noise.fill(&mut piece);
        stream.write_all(&piece).unwrap();
        sent += PIECE as u64;
    }
    stream.shutdown(Shutdown::Write).unwrap();
    sent
}

/// Reads the echo to its end: every byte has to be the one that was sent. Returns how many came, and when gaps of more than
/// a millisecond ended, with their lengths.
fn check(mut stream: TcpStream, seed: u64, permits: &mpsc::Sender<()>) -> (u64, Vec<(Instant, Duration)>) {
    let (mut noise, mut expected, mut got) = (Noise(seed), vec![0; PIECE], vec![0; PIECE]);
    let (mut received, mut gaps, mut last) = (0, Vec::new(), Instant::now());
    let mut filled = 0;
    loop {
        let n = stream.read(&mut got[filled..]).unwrap();
        let now = Instant::now();
        if now - last > Duration::from_millis(1) {
            gaps.push((now, now - last));
        }
        last = now;
        received += n as u64;
        filled += n;
        if n == 0 {
            assert_eq!(filled, 0, "pieces are whole at the end");
            return (received, gaps);
        }
        if filled == PIECE {
            noise.fill(&mut expected);
            assert!(got == expected, "a byte between {} and {received} is wrong", received - PIECE as u64);
            filled = 0;
            // The sender may have stopped.
            let _ = permits.send(());
        }
    }
}

/// The longest gap of each flow that overlaps a span, in the order of length.
fn stalls(flows: &[Vec<(Instant, Duration)>], spans: &[(Instant, Instant)]) -> Vec<Duration> {
    let overlaps = |(end, length): &&(Instant, Duration)| {
        spans.iter().any(|(from, to)| *end >= *from && *end - *length <= *to)
    };
    let longest = |gaps: &Vec<(Instant, Duration)>| gaps.iter().filter(overlaps).map(|gap| gap.1).max();
    let mut all: Vec<Duration> = flows.iter().map(|gaps| longest(gaps).unwrap_or_default()).collect();
    all.sort_unstable();
    all
}

/// A hundred consoles at full rate and a hundred silent ones, five upgrades in a row. How long the busy ones stood still is
/// printed: the longest gap of each during an upgrade, and in as many spans of the same length without one.
#[test]
fn heavy_no_byte_is_lost_over_five_upgrades() {
    const EACH: usize = 100;
    let limits = "[limits]\nper_source = 1000\nsource_rate = 10000\nsource_burst = 10000";
    let (mut service, host) = (Service::start(Setup::new().with(limits)), echo_host());
    let open = |service: &Service| {
        client::open(client::authd(service.gate.authd), &service.gate.ticket(&host), VM).unwrap()
    };
    let mut silent: Vec<TcpStream> = (0..EACH).map(|_| open(&service)).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let mut busy = Vec::new();
    for seed in 1..=EACH as u64 {
        let (stream, stop) = (open(&service), stop.clone());
        let writing = stream.try_clone().unwrap();
        let (permit, permits) = mpsc::channel();
        (0..WINDOW).for_each(|_| permit.send(()).unwrap());
        let writer = thread::spawn(move || send(writing, seed, &permits, &stop));
        busy.push((writer, thread::spawn(move || check(stream, seed, &permit))));
    }
    let (mut during, mut between) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let began = Instant::now();
        service.upgrade();
        service.gate.wait_log(|line| line["fields"]["message"] == "upgrade: what can move has moved");
        let moved = Instant::now();
        during.push((began, moved));
        ping_all(&mut silent);
        assert_eq!(service.json(&["sessions", "list"])["sessions"].as_array().unwrap().len(), 2 * EACH);
        service.gate.wait_log(|line| line["fields"]["message"] == "stopped");
        assert_eq!(service.json(&["status"])["service"]["sessions_elsewhere"], 0);
        // As long a time without an upgrade, to compare with.
        let quiet = Instant::now();
        while quiet.elapsed() < moved - began {
            ping_all(&mut silent);
        }
        between.push((quiet, Instant::now()));
    }
    stop.store(true, Ordering::Relaxed);
    let (mut total, mut gaps) = (0, Vec::new());
    for (writer, reader) in busy {
        let (received, of_this) = reader.join().unwrap();
        assert_eq!(writer.join().unwrap(), received);
        total += received;
        gaps.push(of_this);
    }
    let (with, without) = (stalls(&gaps, &during), stalls(&gaps, &between));
    for (name, stalls) in [("during an upgrade", with), ("without", without)] {
        println!("longest gap {name}: p50 {:?}, p99 {:?}", stalls[EACH / 2], stalls[EACH * 99 / 100]);
    }
    println!("{} MiB came back right, through six processes", total >> 20);
    drop(silent);
    let closed = |service: &mut Service| {
        let line = service.gate.wait_log(|line| line["fields"]["message"] == "console closed");
        assert_eq!(line["fields"]["reason"], "client_closed", "{line}");
    };
    (0..2 * EACH).for_each(|_| closed(&mut service));
}
