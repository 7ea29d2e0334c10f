//! What a gate remembers of tickets outlives its process: a restart, a crash, a full disk, a broken file.

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use mksgate::ticket::journal::Start;
use mksgate::ticket::{KeyRing, Revocation, TicketPolicy, create_key_file};
use mksgate_bench::sim::{Esxi, EsxiConfig, Screen, Ticket, Vm};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use support::{Appliance, HOST_TICKET, PATIENCE, Setup, VM, client, mksgate};

const HERE: &str = "127.0.0.1";
const ELSEWHERE: &str = "127.0.0.9";
/// The first use must come within a second, and two for the portal's clock.
const BRIEF: &str = "[tickets]\nkeys = \"keys\"\nfirst_use_seconds = 1\n[deadlines]\ndrain_seconds = 0.1";

fn host() -> Esxi {
    Esxi::start(EsxiConfig::default().vm(Vm::plain(VM, Screen::echo())).ticket(Ticket::new(HOST_TICKET, VM)))
        .unwrap()
}

fn journal(gate: &Appliance) -> PathBuf {
    gate.dir.path().join("tickets.journal")
}

/// Opens a console as a client at that address; else what it was told.
fn open_from(gate: &Appliance, from: &str, ticket: &str) -> Result<TcpStream, String> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(from.parse::<IpAddr>().unwrap(), 0).into()).unwrap();
    socket.connect(&gate.authd.into()).unwrap();
    let tcp = TcpStream::from(socket);
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    client::open(client::authd_on(tcp), ticket, VM).map(echoes)
}

fn open(gate: &Appliance, ticket: &str) -> Result<TcpStream, String> {
    open_from(gate, HERE, ticket)
}

fn echoes(mut console: TcpStream) -> TcpStream {
    console.write_all(b"ping").unwrap();
    let mut answer = [0; 4];
    console.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"ping");
    console
}

/// It is refused, and for this reason.
fn refused(gate: &mut Appliance, from: &str, ticket: &str, reason: &str) {
    let told = open_from(gate, from, ticket).expect_err(reason);
    assert!(told.starts_with("530"), "{told}");
    gate.wait_refused(reason);
}

fn revoke(gate: &Appliance, jti: &str) {
    let done = gate.command(&["ticket", "revoke", jti]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// Returns once a ticket minted with this one is too old for a first use: the gate says so of another one.
fn until_too_late(gate: &mut Appliance, host: &Esxi) {
    let witness = |gate: &Appliance, iat: u64| gate.ticket_with(host, |c| (c.iat, c.nbf) = (iat, iat));
    let iat = support::now();
    let began = Instant::now();
    loop {
        match open(gate, &witness(gate, iat)) {
            Ok(console) => drop(console),
            Err(_) => return drop(gate.wait_refused("ticket_used_too_late")),
        }
        assert!(began.elapsed() < PATIENCE, "first_use_seconds is 1");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Opens a ticket that was minted some seconds from now, once it may.
fn until_valid(gate: &Appliance, ticket: &str) {
    let began = Instant::now();
    while open(gate, ticket).is_err() {
        assert!(began.elapsed() < PATIENCE, "a ticket minted after the start");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What was said of failures.
fn errors(gate: &Appliance) -> Vec<String> {
    gate.seen().iter().filter(|line| line["level"] == "ERROR").map(Value::to_string).collect()
}

/// Three tickets: used here, used here and revoked, revoked before any use.
struct Tickets {
    used: String,
    revoked: String,
    never: String,
}

fn use_some(gate: &Appliance, host: &Esxi) -> Tickets {
    let named = |jti: &str| gate.ticket_with(host, |c| c.jti = jti.into());
    let tickets = Tickets { used: named("used"), revoked: named("revoked"), never: named("never") };
    drop(open(gate, &tickets.used).unwrap());
    drop(open(gate, &tickets.revoked).unwrap());
    revoke(gate, "revoked");
    revoke(gate, "never");
    tickets
}

/// What was true of them before still is.
fn still_known(gate: &mut Appliance, tickets: &Tickets) {
    refused(gate, ELSEWHERE, &tickets.used, "ticket_other_source");
    refused(gate, HERE, &tickets.revoked, "ticket_revoked");
    refused(gate, ELSEWHERE, &tickets.revoked, "ticket_revoked");
    refused(gate, HERE, &tickets.never, "ticket_revoked");
    drop(open(gate, &tickets.used).expect("it may reconnect"));
}

#[test]
fn used_and_revoked_tickets_are_known_after_a_crash_and_a_restart() {
    let (mut gate, host) = (Setup::new().with(BRIEF).start(), host());
    let tickets = use_some(&gate, &host);
    gate.restart(&[Signal::SIGKILL], || ());
    // Whoever had forgotten them would open them all: they are young enough for a first use.
    still_known(&mut gate, &tickets);
    until_too_late(&mut gate, &host);
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGKILL] {
        gate.restart(&[signal], || ());
        still_known(&mut gate, &tickets);
    }
    let found = fs::metadata(journal(&gate)).unwrap();
    assert_eq!(found.mode() & 0o7777, 0o600);
    let text = fs::read_to_string(journal(&gate)).unwrap();
    assert!(text.contains("\"used\"") && !text.contains(HOST_TICKET), "names and times, no secret: {text}");
    assert_eq!(gate.metric("mksgate_ticket_journal_lost_total", &[]), 0.0);
    assert_eq!(gate.metric("mksgate_ticket_journal_behind", &[]), 0.0);
}

#[test]
fn an_unused_ticket_opens_after_a_restart_and_nothing_is_kept_where_the_journal_is_off() {
    let (mut gate, host) = (Setup::new().start(), host());
    let ticket = gate.ticket(&host);
    gate.restart(&[Signal::SIGKILL], || ());
    open(&gate, &ticket).expect("a good ticket that nobody used");

    let off = Setup::new().with("[tickets]\nkeys = \"keys\"\njournal = \"off\"");
    let mut gate = off.start();
    let ticket = gate.ticket(&host);
    drop(open(&gate, &ticket).unwrap());
    gate.restart(&[Signal::SIGKILL], || ());
    assert!(!journal(&gate).exists() && !gate.metrics().contains("ticket_journal"));
    drop(open_from(&gate, ELSEWHERE, &ticket).expect("it was forgotten, as was asked for"));
}

#[test]
fn half_a_line_at_the_end_is_dropped_and_the_rest_is_known() {
    let (mut gate, host) = (Setup::new().with(BRIEF).start(), host());
    let tickets = use_some(&gate, &host);
    let path = journal(&gate);
    gate.restart(&[Signal::SIGKILL], || append(&path, b"8d2b6b1f {\"use\":[\"torn\",{\"ia"));
    let fresh = gate.ticket(&host);
    drop(open(&gate, &fresh).expect("that is no reason to refuse anybody"));
    still_known(&mut gate, &tickets);
    gate.restart(&[Signal::SIGKILL], || ());
    still_known(&mut gate, &tickets);
    refused(&mut gate, ELSEWHERE, &fresh, "ticket_other_source");
    assert!(!fs::read_to_string(&path).unwrap().contains("torn"));
}

#[test]
fn a_broken_line_is_said_and_lets_no_ticket_in_twice() {
    let (mut gate, host) = (Setup::new().start(), host());
    let tickets = use_some(&gate, &host);
    let (lost, unused) = (gate.ticket_with(&host, |c| c.jti = "lost".into()), gate.ticket(&host));
    drop(open(&gate, &lost).unwrap());
    let path = journal(&gate);
    gate.restart(&[Signal::SIGKILL], || {
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes.windows(6).position(|part| part == b"\"lost\"").unwrap();
        bytes[at + 1] ^= 1;
        fs::write(&path, bytes).unwrap();
    });
    let after = gate.ticket_with(&host, |c| c.iat += 5);
    let said = errors(&gate).pop().expect("it is said");
    assert!(said.contains("tickets.journal") && said.contains("ticket journal lacks uses"), "{said}");
    // Which one is missing nobody knows: what is unknown and was minted before counts as used.
    refused(&mut gate, HERE, &lost, "ticket_used_too_late");
    refused(&mut gate, HERE, &unused, "ticket_used_too_late");
    still_known(&mut gate, &tickets);
    // The file is whole again, and what it does not know stays refused.
    gate.restart(&[Signal::SIGKILL], || ());
    assert_eq!(errors(&gate).len(), 1, "it was written anew");
    refused(&mut gate, HERE, &lost, "ticket_used_too_late");
    still_known(&mut gate, &tickets);
    until_valid(&gate, &after);
}

#[test]
fn what_is_no_journal_is_not_touched_and_the_gate_serves() {
    let elsewhere = tempfile::tempdir().unwrap();
    let precious = elsewhere.path().join("precious");
    fs::write(&precious, "something\nelse\nthan a journal\n").unwrap();
    for link in [false, true] {
        let setup = Setup::new();
        let path = setup.dir.path().join("tickets.journal");
        match link {
            true => std::os::unix::fs::symlink(&precious, &path).unwrap(),
            false => drop(fs::copy(&precious, &path).unwrap()),
        }
        let (mut gate, host) = (setup.start(), host());
        let said = errors(&gate).pop().expect("it is said");
        assert!(
            said.contains(if link { "symbolic link" } else { "something else than a journal" }),
            "{said}"
        );
        let older = gate.ticket_with(&host, |c| (c.iat, c.nbf) = (c.iat - 5, c.nbf - 5));
        refused(&mut gate, HERE, &older, "ticket_used_too_late");
        let young = gate.ticket_with(&host, |c| c.iat += 5);
        until_valid(&gate, &young);
        assert!(gate.metric("mksgate_ticket_journal_lost_total", &[]) >= 1.0);
        assert_eq!(gate.metric("mksgate_ticket_journal_behind", &[]), 1.0);
        assert_eq!(fs::read_to_string(&precious).unwrap(), "something\nelse\nthan a journal\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "something\nelse\nthan a journal\n");
        // Repaired as it says, it is made up for without a restart.
        fs::remove_file(&path).unwrap();
        let whole = |line: &Value| line["fields"]["message"] == "the ticket journal is whole again";
        gate.wait_log(whole);
        gate.restart(&[Signal::SIGKILL], || ());
        refused(&mut gate, ELSEWHERE, &young, "ticket_other_source");
    }
}

#[test]
fn a_second_gate_does_not_take_the_journal_of_the_first() {
    let (gate, _host) = (Setup::new().start(), host());
    let path = journal(&gate);
    let mut other = Setup::new();
    other = other.with(&format!("[tickets]\nkeys = \"keys\"\njournal = \"{}\"", path.display()));
    let refused = mksgate().args(["serve", "--config"]).arg(other.write()).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success(), "{said}");
    assert!(said.contains(path.to_str().unwrap()) && said.contains("held by another mksgate"), "{said}");
    drop(gate);
    other.start();
}

#[test]
fn on_a_full_disk_consoles_open_and_what_is_lost_is_counted_and_made_up_for() {
    if !nix::unistd::geteuid().is_root() {
        return println!("left out: a namespace of its own needs root");
    }
    let setup = Setup::new().with("[tickets]\nkeys = \"keys\"\njournal = \"small/tickets.journal\"");
    let small = setup.dir.path().join("small");
    fs::create_dir(&small).unwrap();
    let mut command = Command::new("unshare");
    let script =
        format!("mount -t tmpfs -o size=16k,mode=0700 tmpfs '{}' && exec \"$0\" \"$@\"", small.display());
    command.args(["--mount", "--", "sh", "-c", &script, env!("CARGO_BIN_EXE_mksgate")]);
    let (mut gate, host) = (setup.start_by(command), host());
    let inside = PathBuf::from(format!("/proc/{}/root", gate.pid())).join(small.strip_prefix("/").unwrap());
    let before = gate.ticket(&host);
    drop(open(&gate, &before).unwrap());
    let lost = |gate: &Appliance| gate.metric("mksgate_ticket_journal_lost_total", &[]);
    assert_eq!(lost(&gate), 0.0);
    let fill = inside.join("fill");
    let mut filling = File::create(&fill).unwrap();
    while filling.write(&[0; 512]).is_ok() {}
    // The page that the journal has already takes some more lines.
    let mut opened = Vec::new();
    while lost(&gate) == 0.0 {
        opened.push(gate.ticket(&host));
        drop(open(&gate, opened.last().unwrap()).expect("consoles go on"));
    }
    let said = gate.wait_log(|line| line["level"] == "ERROR").to_string();
    assert!(said.contains("No space left") && said.contains("give it space"), "{said}");
    let marked = fs::metadata(inside.join("tickets.journal")).unwrap().permissions().mode();
    assert_eq!(marked & 0o7777, 0o1600, "whoever starts now knows that something is missing");
    let text = fs::read(inside.join("tickets.journal")).unwrap();
    assert_eq!(text.last(), Some(&b'\n'), "no half lines");
    drop(filling);
    fs::remove_file(fill).unwrap();
    gate.wait_log(|line| line["fields"]["message"] == "the ticket journal is whole again");
    assert_eq!(gate.metric("mksgate_ticket_journal_behind", &[]), 0.0);
    let text = fs::read_to_string(inside.join("tickets.journal")).unwrap();
    assert_eq!(text.matches("\"use\"").count(), 1 + opened.len(), "all of them: {text}");
}

#[test]
fn a_crash_on_a_full_disk_lets_no_ticket_in_twice() {
    let (mut gate, host) = (Setup::new().start(), host());
    let unused = gate.ticket(&host);
    let path = journal(&gate);
    gate.restart(&[Signal::SIGKILL], || {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o1600)).unwrap();
    });
    refused(&mut gate, HERE, &unused, "ticket_used_too_late");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600, "written anew from what is known");
}

/// The process in charge.
fn pid(gate: &Appliance) -> Pid {
    let status: Value = serde_json::from_slice(&gate.command(&["status", "--json"]).stdout).unwrap();
    Pid::from_raw(status["pid"].as_i64().unwrap().try_into().unwrap())
}

#[test]
fn the_heir_of_an_upgrade_has_the_journal_and_an_elder_that_goes_on_keeps_it() {
    let (mut gate, host) = (
        {
            let setup = Setup::new().with(BRIEF);
            let program = setup.dir.path().join("mksgate");
            fs::copy(env!("CARGO_BIN_EXE_mksgate"), &program).unwrap();
            setup.start_by(Command::new(program))
        },
        host(),
    );
    let tickets = use_some(&gate, &host);
    let program = gate.dir.path().join("mksgate");
    fs::rename(&program, program.with_extension("good")).unwrap();
    fs::write(&program, "#!/bin/sh\nexit 1\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(!gate.command(&["upgrade"]).status.success());
    let with_the_elder = gate.ticket(&host);
    drop(open(&gate, &with_the_elder).unwrap());
    fs::rename(program.with_extension("good"), &program).unwrap();
    let (elder, file) = (pid(&gate), fs::metadata(journal(&gate)).unwrap().ino());
    let upgraded = gate.command(&["upgrade"]);
    assert!(upgraded.status.success(), "{}", String::from_utf8_lossy(&upgraded.stderr));
    let heir = pid(&gate);
    assert_ne!(heir, elder);
    assert_ne!(fs::metadata(journal(&gate)).unwrap().ino(), file, "a file of its own");
    still_known(&mut gate, &tickets);
    let with_the_heir = gate.ticket(&host);
    drop(open(&gate, &with_the_heir).unwrap());
    gate.restart(&[], || {
        kill(heir, Signal::SIGKILL).unwrap();
        while kill(heir, None).is_ok() {
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    still_known(&mut gate, &tickets);
    for ticket in [&with_the_elder, &with_the_heir] {
        refused(&mut gate, ELSEWHERE, ticket, "ticket_other_source");
        drop(open(&gate, ticket).unwrap());
    }
    assert_eq!(errors(&gate).len(), 1, "that of the upgrade: {:?}", errors(&gate));
}

fn store(dir: &Path) -> (mksgate::ticket::Tickets, KeyRing) {
    let keys = dir.join("keys");
    if !keys.exists() {
        create_key_file(&keys, None, SystemTime::now()).unwrap();
    }
    let ring = KeyRing::load(&keys).unwrap();
    (mksgate::ticket::Tickets::new(TicketPolicy::default(), ring.clone()), ring)
}

#[test]
fn tickets_minted_before_the_machine_came_up_open_only_if_the_journal_knows_them() {
    let dir = tempfile::tempdir().unwrap();
    let at = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds);
    let (first, keys) = store(dir.path());
    let sealed = |jti: &str, iat: u64| {
        let mut claims = support::claims("127.0.0.1:902".parse().unwrap(), "");
        claims.target.thumbprints.clear();
        let iat = 1_800_000_000 + iat;
        (claims.jti, claims.iat, claims.nbf, claims.exp) = (jti.into(), iat, iat, iat + 600);
        keys.seal(&claims).unwrap()
    };
    let open = |tickets: &mksgate::ticket::Tickets, sealed: &str, seconds: u64| {
        let opened = tickets.open(sealed, HERE.parse().unwrap(), at(seconds));
        opened.map(|permit| permit.is_first_use()).map_err(|error| error.as_str())
    };
    let path = dir.path().join("journal");
    first.keep_journal(&path, Start { now: at(0), booted: at(0), heir: false }).unwrap();
    assert_eq!(open(&first, &sealed("known", 5), 6), Ok(true));
    drop(first);
    let (second, _) = store(dir.path());
    second.keep_journal(&path, Start { now: at(20), booted: at(15), heir: false }).unwrap();
    assert_eq!(open(&second, &sealed("known", 5), 21), Ok(false));
    assert_eq!(open(&second, &sealed("before", 15), 21), Err("ticket_used_too_late"));
    assert_eq!(open(&second, &sealed("after", 18), 21), Ok(true));
    // A clock that was set back since says nothing about when that was.
    assert_eq!(open(&second, &sealed("set back", 8), 10), Ok(true));
}

#[test]
fn the_file_stays_short_whatever_comes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let begin = || {
        let (tickets, _) = store(dir.path());
        tickets.keep_journal(&path, Start::of_this_process(false)).unwrap();
        tickets
    };
    let (tickets, now) = (begin(), SystemTime::now());
    let name = |n: usize| Revocation::Jti(format!("{n}{}", "x".repeat(250)));
    let mut written = 0;
    while written < 8 << 20 {
        tickets.revoke(&name(written / 300 % 50), now);
        written += 300;
        // The thread that writes it anew may have to wait for a core: it is waited for, each time.
        let began = Instant::now();
        while fs::metadata(&path).unwrap().len() > 2 << 20 {
            assert!(began.elapsed() < PATIENCE, "{:?}", fs::metadata(&path));
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    drop(tickets);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "the second file has the first one's name");
    assert_eq!(begin().stats().revocations, 50);
}

fn append(path: &Path, bytes: &[u8]) {
    OpenOptions::new().append(true).open(path).unwrap().write_all(bytes).unwrap();
}
