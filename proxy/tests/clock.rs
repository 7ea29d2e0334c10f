//! The wall clock jumps while the appliance runs: consoles and deadlines and rate limits do not notice, tickets are judged by the new time.

mod support;

use std::env;
use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use mksgate_bench::sim::{Esxi, EsxiConfig, Screen, Ticket, Vm};
use support::{Appliance, HOST_TICKET, PATIENCE, Setup, VM, client, mksgate};

const HOUR: i64 = 3600;

/// The library of faketime(1), which takes the wall clock of a process and leaves its other clocks alone.
fn library() -> Option<PathBuf> {
    let found = fs::read_dir("/usr/lib")
        .ok()?
        .flatten()
        .map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"));
    let found = found.filter(|path| path.is_file()).min();
    if found.is_none() {
        assert!(env::var_os("MKSGATE_FULL_TESTS").is_none(), "libfaketime is missing; package faketime");
        println!("left out: libfaketime is missing (package faketime)");
    }
    found
}

/// `command` with a clock that is `file`'s offset ahead of the machine's, at every look.
fn with_clock(mut command: Command, library: &Path, file: &Path) -> Command {
    command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", file).env("FAKETIME_NO_CACHE", "1");
    command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("DONT_FAKE_MONOTONIC", "1");

    command
}

/// Sets the clock at once and whole.
fn jump(file: &Path, seconds: i64) {
    let next = file.with_extension("next");
    fs::write(&next, format!("{seconds:+}\n")).unwrap();
    fs::rename(next, file).unwrap();
}

/// A ticket by a portal whose clock is so far from the machine's.
fn ticket(gate: &Appliance, host: &Esxi, ahead: i64) -> String {
    gate.ticket_with(host, |claims| {
        for time in [&mut claims.iat, &mut claims.nbf, &mut claims.exp] {
            *time = time.checked_add_signed(ahead).unwrap();
        }
        // Twice as long as the farthest jump: only a deadline by the wall clock would end it.
        claims.session_seconds = Some(2 * 3 * HOUR as u64);
    })
}

fn open(gate: &Appliance, ticket: &str) -> Result<TcpStream, String> {
    client::open(client::authd(gate.authd), ticket, VM)
}

/// Waits for what the test cannot be woken by: a bucket's next token.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < 3 * PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The same by somebody who may be turned away before the first word.
fn try_open(gate: &Appliance, ticket: &str) -> io::Result<TcpStream> {
    let mut tcp = client::connect(gate.authd);
    client::plain_line(&mut tcp)?;
    client::open(client::Tls::start(tcp)?, ticket, VM).map_err(io::Error::other)
}

fn ping(stream: &mut TcpStream) {
    stream.write_all(b"ping").unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"ping");
}

#[test]
fn a_clock_that_jumps_ends_no_console_and_judges_the_tickets_that_come() {
    let Some(library) = library() else { return };
    let setup = Setup::new().with("[deadlines]\nidle_seconds = 3000");
    let clock = setup.dir.path().join("clock");
    jump(&clock, 0);
    let mut gate = setup.start_by(with_clock(mksgate(), &library, &clock));
    let config = EsxiConfig::default().vm(Vm::plain(VM, Screen::echo()));
    let host = Esxi::start(config.ticket(Ticket::new(HOST_TICKET, VM))).unwrap();
    let mut consoles = vec![open(&gate, &ticket(&gate, &host, 0)).unwrap()];
    let mut before = 0;
    for (ahead, why) in [(3 * HOUR, "ticket_expired"), (HOUR, "ticket_not_yet_valid")] {
        // A ticket of the time before the jump is judged by the time after it.
        let ticket_before = ticket(&gate, &host, before);
        jump(&clock, ahead);
        consoles.iter_mut().for_each(ping);
        let refused = open(&gate, &ticket_before).unwrap_err();
        assert!(refused.starts_with("530"), "{ahead:+} s: {refused}");
        gate.wait_refused(why);
        consoles.push(open(&gate, &ticket(&gate, &host, ahead)).expect("a ticket of the new time"));
        consoles.iter_mut().for_each(ping);
        before = ahead;
    }
    // Behind the time of a ticket that was used and is forgotten by now: one that is not younger might be that one.
    jump(&clock, -3 * HOUR);
    open(&gate, &ticket(&gate, &host, -3 * HOUR)).unwrap_err();
    gate.wait_refused("ticket_used_too_late");
    consoles.iter_mut().for_each(ping);
    jump(&clock, HOUR);
    consoles.push(open(&gate, &ticket(&gate, &host, HOUR)).expect("the clock was set again"));
    consoles.iter_mut().for_each(ping);
    let list = gate.command(&["sessions", "list", "--json"]);
    let list: serde_json::Value = serde_json::from_slice(&list.stdout).unwrap();
    assert_eq!(list["sessions"].as_array().unwrap().len(), consoles.len(), "{list}");
    assert!(gate.audit().iter().all(|record| record["event"] != "close"), "no deadline came early");
}

/// A bucket of 20 that gets one a second is emptied, the clock jumps, and it is emptied again. What it gives is no more than
/// by the time that passed, which is measured by a clock that does not jump; and a jump back does not shut it.
fn a_bucket_does_not_notice(limit: &str, tenants: &str, reason: &str) {
    const BURST: u64 = 20;
    let Some(library) = library() else { return };
    let setup = Setup::new().with(limit).tenants(tenants);
    let clock = setup.dir.path().join("clock");
    jump(&clock, 0);
    let gate = setup.start_by(with_clock(mksgate(), &library, &clock));
    let config = EsxiConfig::default().vm(Vm::plain(VM, Screen::echo()));
    let host = Esxi::start(config.ticket(Ticket::new(HOST_TICKET, VM))).unwrap();
    let (start, mut opened) = (Instant::now(), 0);
    for ahead in [0, 3 * HOUR, HOUR, 2 * HOUR, 3 * HOUR] {
        jump(&clock, ahead);
        // Shut for two hours by a jump back, it would give nothing before the test is given up.
        until("one more console", || try_open(&gate, &ticket(&gate, &host, ahead)).is_ok());
        opened += 1;
        while try_open(&gate, &ticket(&gate, &host, ahead)).is_ok() {
            opened += 1;
        }
        let most = BURST + start.elapsed().as_secs() + 1;
        assert!(opened <= most, "{opened} consoles by {ahead:+} s, of {most} at the most");
    }
    assert!(opened >= BURST, "{opened}");
    let refused = gate.metric("mksgate_refusals_total", &[&format!("reason=\"{reason}\"")]);
    assert!(refused >= 5.0, "{refused} times by the bucket");
}

#[test]
fn a_clock_that_jumps_fills_no_bucket_of_a_source_and_shuts_none() {
    let tenants = "[tenants.acme]\nmax_sessions = 1000\ntargets = [\"127.0.0.0/8\"]\n";
    a_bucket_does_not_notice("[limits]\nsource_rate = 1\nsource_burst = 20", tenants, "source_rate");
}

#[test]
fn a_clock_that_jumps_fills_no_bucket_of_a_tenant_and_shuts_none() {
    let tenants = "[tenants.acme]\nmax_sessions = 1000\ntargets = [\"127.0.0.0/8\"]\nsessions_per_second = 1\nburst = 20\n";
    a_bucket_does_not_notice("[limits]\nsource_rate = 10000\nsource_burst = 10000", tenants, "tenant_rate");
}

#[test]
fn doctor_names_a_clock_that_stands_years_back_and_is_content_when_it_is_set() {
    let Some(library) = library() else { return };
    let setup = Setup::new();
    let (clock, config) = (setup.dir.path().join("clock"), setup.write());
    let finding = || {
        let mut doctor = with_clock(mksgate(), &library, &clock);
        let output = doctor.args(["doctor", "--json", "--config"]).arg(&config).output().unwrap();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let checks = report["checks"].as_array().unwrap().clone();
        let found = checks.into_iter().find(|check| check["check"] == "clock").expect("a line on the clock");
        (found, output.status.code())
    };
    jump(&clock, -20 * 365 * 24 * HOUR);
    let (found, code) = finding();
    assert_eq!((found["verdict"].as_str(), code), (Some("fail"), Some(2)), "{found}");
    assert!(found["remedy"].as_str().unwrap().contains("time service"), "{found}");
    jump(&clock, 0);
    let (found, _) = finding();
    assert_ne!(found["verdict"], "fail", "{found}");
}
