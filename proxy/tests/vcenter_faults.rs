//! vCenters that say no, say nonsense, say nothing or say too much: the client hears its protocol's refusal, the operator the
//! reason, nobody else notices.

mod support;
mod vcenter_rig;

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};

use mksgate::ticket::{Claims, TargetKind};
use mksgate_bench::sim::{Esxi, EsxiConfig, Screen, Ticket, Vm};
use support::client::{self, echoes};
use support::{Appliance, Setup, VM};
use vcenter_rig::fake::{Answer, Call, Console, FakeVcenter, envelope};
use vcenter_rig::vcsim;

const QUICK: &str = "[vcenter]\ncall_seconds = 1\nconnect_seconds = 1\nbreaker_failures = 1000\n";

/// A host that takes whatever the fakes give out, and where it is.
fn host() -> (Esxi, Console) {
    let host = vcsim::host(1);
    let console = Console { host: host.addr(), thumbprint: host.thumbprint_sha1(), path: VM.into() };
    (host, console)
}

fn gate_for(vcenter: &FakeVcenter, section: &str) -> Appliance {
    let setup = Setup::new();
    let account = vcenter.account("lab", setup.dir.path());
    setup.with(section).with(&account).start()
}

/// A ticket for `vm-1` at a vCenter, for the service account.
fn ticket(gate: &Appliance, vcenter: &FakeVcenter, change: impl FnOnce(&mut Claims)) -> String {
    let mut claims = support::claims(vcenter.address, "");
    claims.vm = "vm-1".into();
    claims.target.kind = TargetKind::Vcenter;
    claims.target.ticket = None;
    claims.target.thumbprints.clear();
    change(&mut claims);
    gate.keys.seal(&claims).unwrap()
}

/// The same with a clone ticket.
fn clone_ticket(gate: &Appliance, vcenter: &FakeVcenter, clone: &str) -> String {
    ticket(gate, vcenter, |claims| {
        claims.target.ticket = Some(clone.into());
        claims.target.thumbprints = vec![vcenter.thumbprint()];
    })
}

fn open(door: SocketAddr, ticket: &str) -> Result<TcpStream, String> {
    client::open(client::authd(door), ticket, "vm-1")
}

/// One method is answered otherwise, the others as usual.
fn only(method: &'static str, answer: Answer) -> impl Fn(&Call) -> Answer + Send + Sync {
    move |call| if call.method == method { answer.clone() } else { Answer::Usual }
}

#[test]
fn every_fault_is_told_to_the_client_and_to_the_operator() {
    let (host, console) = host();
    let vcenter = FakeVcenter::start(console, |_| Answer::Usual);
    let mut gate = gate_for(&vcenter, QUICK);
    for (method, fault, code, reason) in [
        ("Login", "InvalidLogin", "513", "vcenter_login"),
        ("Login", "NoPermission", "513", "vcenter_login"),
        ("RetrieveServiceContent", "RuntimeFault", "512", "vcenter_fault"),
        ("AcquireTicket", "InvalidPowerState", "511", "vcenter_powered_off"),
        ("AcquireTicket", "InvalidState", "512", "vcenter_fault"),
        ("AcquireTicket", "NoPermission", "512", "vcenter_fault"),
        ("AcquireTicket", "ManagedObjectNotFound", "512", "vcenter_fault"),
        ("AcquireTicket", "HostNotConnected", "512", "vcenter_fault"),
    ] {
        vcenter.forget_sessions();
        vcenter.script(only(method, Answer::Fault(fault)));
        let refused = open(gate.authd, &ticket(&gate, &vcenter, |_| {})).unwrap_err();
        assert!(refused.starts_with(code), "{method} {fault}: {refused}");
        let line = gate.wait_refused(reason);
        let said = line["fields"]["detail"].as_str().unwrap_or_default().to_owned();
        assert!(said.contains(fault) || fault == "InvalidPowerState", "{method} {fault}: {line}");
    }
    assert_eq!(host.accepted(), 0);
    // None of it counts against the vCenter: it answered.
    assert_eq!(gate.metric("mksgate_vcenter_failures_total", &[]), 0.0);
    assert!(gate.metric("mksgate_vcenter_faults_total", &["vcenter=\"lab\""]) >= 8.0);
    vcenter.forget_sessions();
    vcenter.script(|_| Answer::Usual);
    echoes(open(gate.authd, &ticket(&gate, &vcenter, |_| {})).unwrap());
}

#[test]
fn every_trouble_below_soap_is_a_refusal_in_time() {
    let (host, console) = host();
    let vcenter = FakeVcenter::start(console, |_| Answer::Usual);
    let mut gate = gate_for(&vcenter, QUICK);
    let deep = format!(
        "<AcquireTicketResponse xmlns=\"urn:vim25\">{}{}</AcquireTicketResponse>",
        "<a>".repeat(5_000),
        "</a>".repeat(5_000)
    );
    let wide = format!(
        "<AcquireTicketResponse xmlns=\"urn:vim25\">{}</AcquireTicketResponse>",
        "<a/>".repeat(100_000)
    );
    let doctype = format!(
        "<!DOCTYPE x [<!ENTITY a \"aaaaaaaaaa\"><!ENTITY b \"&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;\">]>{}",
        envelope(
            "<AcquireTicketResponse xmlns=\"urn:vim25\"><returnval>&b;</returnval></AcquireTicketResponse>"
        )
    );
    let entity =
        "<AcquireTicketResponse xmlns=\"urn:vim25\"><returnval>&file;</returnval></AcquireTicketResponse>";
    let nothing = "<AcquireTicketResponse xmlns=\"urn:vim25\"/>";
    let bare = "<AcquireTicketResponse xmlns=\"urn:vim25\"><returnval><ticket>t</ticket></returnval></AcquireTicketResponse>";
    let page = "<html><body>It works</body></html>".to_owned();
    let moved = "Location: https://198.51.100.1/sdk\r\n";
    for (name, answer, reason) in [
        ("hang", Answer::Hang, "vcenter_timeout"),
        ("drop", Answer::Drop, "vcenter_http"),
        ("redirect", Answer::Http("302 Found", moved, String::new()), "vcenter_redirect"),
        ("redirect", Answer::Http("308 Permanent Redirect", moved, String::new()), "vcenter_redirect"),
        ("1 GiB", Answer::Huge(1 << 30), "vcenter_bad_answer"),
        ("deep", Answer::Inside(deep), "vcenter_bad_answer"),
        ("wide", Answer::Inside(wide), "vcenter_bad_answer"),
        ("doctype", Answer::Http("200 OK", "", doctype), "vcenter_bad_answer"),
        ("entity", Answer::Inside(entity.into()), "vcenter_bad_answer"),
        ("no ticket", Answer::Inside(nothing.into()), "vcenter_bad_answer"),
        ("half a ticket", Answer::Inside(bare.into()), "vcenter_bad_answer"),
        ("a web page", Answer::Http("200 OK", "", page.clone()), "vcenter_bad_answer"),
        ("an error page", Answer::Http("503 Service Unavailable", "", page.clone()), "vcenter_status"),
        ("a broken server", Answer::Http("500 Internal Server Error", "", page), "vcenter_status"),
        ("not UTF-8", Answer::Http("200 OK", "", "\u{fffe}".into()), "vcenter_bad_answer"),
    ] {
        vcenter.script(only("AcquireTicket", answer));
        let refused = open(gate.authd, &ticket(&gate, &vcenter, |_| {})).unwrap_err();
        assert!(refused.starts_with("514"), "{name}: {refused}");
        gate.wait_refused(reason);
        let asked = vcenter.methods();
        let tickets = asked.iter().filter(|method| *method == "AcquireTicket").count();
        assert_eq!(tickets, 1, "{name}: a call that may have been carried out is not made again: {asked:?}");
    }
    assert!(vcenter.huge_sent() < 64 << 20, "{} bytes of 1 GiB were taken", vcenter.huge_sent());
    assert_eq!(host.accepted(), 0);
    vcenter.script(|_| Answer::Usual);
    echoes(open(gate.authd, &ticket(&gate, &vcenter, |_| {})).unwrap());
    assert_eq!(vcenter.methods(), ["AcquireTicket"], "the session outlived all of it");
}

#[test]
fn another_certificate_gets_neither_password_nor_session() {
    let (_host, console) = host();
    let vcenter = FakeVcenter::start(console, |_| Answer::Usual);
    let mut gate = gate_for(&vcenter, "[vcenter]\nmax_calls = 1\ncall_seconds = 5\n");
    let sealed = ticket(&gate, &vcenter, |_| {});
    echoes(open(gate.authd, &sealed).unwrap());
    vcenter.calls();
    // The kept connection is closed, and the next one meets somebody else.
    vcenter.renew_certificate();
    vcenter.script(|_| Answer::Drop);
    open(gate.authd, &ticket(&gate, &vcenter, |_| {})).unwrap_err();
    vcenter.calls();
    vcenter.script(|_| Answer::Usual);
    let refused = open(gate.authd, &ticket(&gate, &vcenter, |_| {})).unwrap_err();
    assert!(refused.starts_with("514"), "{refused}");
    gate.wait_refused("vcenter_wrong_certificate");
    assert_eq!(vcenter.methods(), Vec::<String>::new());
}

#[test]
fn a_dead_vcenter_costs_its_own_tenants_only() {
    let (host, console) = host();
    let dead = FakeVcenter::start(console.clone(), |_| Answer::Hang);
    let alive = FakeVcenter::start(console, |_| Answer::Usual);
    let setup = Setup::new();
    let accounts =
        [dead.account("dead", setup.dir.path()), alive.account("alive", setup.dir.path())].join("\n");
    let section = "[vcenter]\ncall_seconds = 1\nconnect_seconds = 1\nbreaker_failures = 3\nbreaker_seconds = 3600\nmax_calls = 2\n";
    let mut gate = setup.with(section).with(&accounts).start();
    // More of them than the dead one has places, all waiting at once.
    let waiting: Vec<_> = (0..6)
        .map(|_| {
            let (door, sealed) = (gate.authd, ticket(&gate, &dead, |_| {}));
            std::thread::spawn(move || open(door, &sealed).unwrap_err())
        })
        .collect();
    dead.wait_calls("RetrieveServiceContent", 1);
    for _ in 0..3 {
        echoes(open(gate.authd, &ticket(&gate, &alive, |_| {})).unwrap());
    }
    for refused in waiting {
        let refused = refused.join().unwrap();
        assert!(refused.starts_with("514"), "{refused}");
    }
    let listed = String::from_utf8(gate.command(&["sessions", "backends"]).stdout).unwrap();
    let line = |address: SocketAddr| {
        let line = listed.lines().find(|line| line.contains(&format!(" {address} "))).unwrap_or_default();
        line.split_whitespace().take(3).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(line(dead.address), ["vcenter", &dead.address.to_string(), "failing"], "{listed}");
    assert_eq!(line(alive.address), ["vcenter", &alive.address.to_string(), "ok"], "{listed}");
    assert_eq!(line(host.addr()), ["host", &host.addr().to_string(), "ok"], "{listed}");
    let sessions = String::from_utf8(gate.command(&["sessions", "list"]).stdout).unwrap();
    assert!(sessions.contains(&format!("failing: {} (", dead.address)), "{sessions}");
    // Left alone from now on: refused without a call.
    while gate.metric("mksgate_vcenter_breaker_open", &["vcenter=\"dead\""]) == 0.0 {
        open(gate.authd, &ticket(&gate, &dead, |_| {})).unwrap_err();
    }
    let before = dead.calls().len();
    assert!(before >= 3, "{before}");
    let refused = open(gate.authd, &ticket(&gate, &dead, |_| {})).unwrap_err();
    assert!(refused.starts_with("514"), "{refused}");
    gate.wait_refused("vcenter_breaker_open");
    assert_eq!(dead.calls(), []);
    assert_eq!(gate.metric("mksgate_vcenter_breaker_open", &["vcenter=\"alive\""]), 0.0);
    echoes(open(gate.authd, &ticket(&gate, &alive, |_| {})).unwrap());
}

#[test]
fn a_vcenter_that_comes_back_is_asked_again() {
    let (_host, console) = host();
    let vcenter = FakeVcenter::start(console, |_| Answer::Drop);
    let gate = gate_for(&vcenter, "[vcenter]\nbreaker_failures = 1\nbreaker_seconds = 0.2\n");
    open(gate.authd, &ticket(&gate, &vcenter, |_| {})).unwrap_err();
    assert_eq!(gate.metric("mksgate_vcenter_breaker_open", &["vcenter=\"lab\""]), 1.0);
    vcenter.script(|_| Answer::Usual);
    // Until its rest is over it is left alone; then one call tries and finds it well.
    let console = (0..).find_map(|_| open(gate.authd, &ticket(&gate, &vcenter, |_| {})).ok());
    echoes(console.unwrap());
    assert_eq!(gate.metric("mksgate_vcenter_breaker_open", &["vcenter=\"lab\""]), 0.0);
}

#[test]
fn calls_to_one_vcenter_are_bounded_and_wait_their_turn() {
    let (_host, console) = host();
    let (inside, most) = (std::sync::Arc::new(AtomicUsize::new(0)), 3);
    let counting = inside.clone();
    let vcenter = FakeVcenter::start(console, move |call| {
        if call.method == "AcquireTicket" {
            // Each stays until as many are in as may be, so that a wider gate would show.
            let mut seen = counting.fetch_add(1, Ordering::SeqCst) + 1;
            for _ in 0..50 {
                if seen > most {
                    break;
                }
                std::thread::yield_now();
                seen = counting.load(Ordering::SeqCst);
            }
        }
        Answer::Usual
    });
    let gate = gate_for(&vcenter, "[vcenter]\nmax_calls = 3\n");
    let clients: Vec<_> = (0..12)
        .map(|_| {
            let (door, sealed) = (gate.authd, ticket(&gate, &vcenter, |_| {}));
            std::thread::spawn(move || drop(echoes(open(door, &sealed).unwrap())))
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
    assert_eq!(inside.load(Ordering::SeqCst), 12);
    assert!(vcenter.busiest() <= 3, "{} calls at once", vcenter.busiest());
}

#[test]
fn a_clone_ticket_opens_one_session_for_all_connections_of_its_ticket() {
    let (_host, console) = host();
    let vcenter = FakeVcenter::start(console, |_| Answer::Usual);
    let mut gate = gate_for(&vcenter, QUICK);
    let sealed = clone_ticket(&gate, &vcenter, "cst-VCT-one");
    // One fewer than a ticket may have at once: whether these have ended by then must not matter below.
    let consoles: Vec<_> = (0..3).map(|_| echoes(open(gate.authd, &sealed).unwrap())).collect();
    let methods = vcenter.methods();
    assert_eq!(methods[..2], ["RetrieveServiceContent", "CloneSession"]);
    assert_eq!(methods[2..], ["AcquireTicket"; 3]);
    drop(consoles);
    // Its session is gone, and the clone ticket cannot open another.
    vcenter.forget_sessions();
    let refused = open(gate.authd, &sealed).unwrap_err();
    assert!(refused.starts_with("513"), "{refused}");
    gate.wait_refused("vcenter_login");
    // A spent one in another ticket is the same; one that is none too.
    for clone in ["cst-VCT-one", "expired"] {
        let again = clone_ticket(&gate, &vcenter, clone);
        let refused = open(gate.authd, &again).unwrap_err();
        assert!(refused.starts_with("513"), "{clone}: {refused}");
        gate.wait_refused("vcenter_login");
    }
    let other = clone_ticket(&gate, &vcenter, "cst-VCT-two");
    echoes(open(gate.authd, &other).unwrap());
}

#[test]
fn the_accounts_session_is_opened_again_when_lost_and_logged_out_at_the_end() {
    let (_host, console) = host();
    let vcenter = FakeVcenter::start(console, |_| Answer::Usual);
    let gate = gate_for(&vcenter, QUICK);
    let sealed = ticket(&gate, &vcenter, |_| {});
    echoes(open(gate.authd, &sealed).unwrap());
    vcenter.forget_sessions();
    vcenter.calls();
    echoes(open(gate.authd, &sealed).unwrap());
    let (login, ask) = (["RetrieveServiceContent", "Login"], ["AcquireTicket"]);
    assert_eq!(vcenter.methods(), [&ask[..], &login, &ask].concat());
    gate.stop();
    assert_eq!(vcenter.methods(), ["Logout"]);
}

#[test]
fn a_session_nobody_uses_is_logged_out_and_another_is_opened_for_the_next() {
    let (_host, console) = host();
    let vcenter = FakeVcenter::start(console, |_| Answer::Usual);
    let gate = gate_for(&vcenter, "[vcenter]\nsession_idle_seconds = 0.5\n");
    let sealed = ticket(&gate, &vcenter, |_| {});
    echoes(open(gate.authd, &sealed).unwrap());
    vcenter.wait_calls("Logout", 1);
    vcenter.calls();
    echoes(open(gate.authd, &sealed).unwrap());
    assert_eq!(vcenter.methods()[..2], ["RetrieveServiceContent", "Login"]);
}

#[test]
fn a_vm_that_is_at_no_host_any_more_is_asked_for_twice_and_no_more() {
    // A host that knows none of the tickets: whatever the vCenter names, the VM is not there.
    let host = Esxi::start(EsxiConfig::default().vm(Vm::plain(VM, Screen::echo()))).unwrap();
    let console = Console { host: host.addr(), thumbprint: host.thumbprint_sha1(), path: VM.into() };
    let vcenter = FakeVcenter::start(console, |_| Answer::Usual);
    let mut gate = gate_for(&vcenter, QUICK);
    let refused = open(gate.authd, &ticket(&gate, &vcenter, |_| {})).unwrap_err();
    assert!(refused.starts_with("513"), "{refused}");
    gate.wait_refused("backend_refused");
    assert_eq!(vcenter.methods().iter().filter(|method| *method == "AcquireTicket").count(), 2);
    // It moved in between: the second ticket is for a host that takes it.
    vcenter.calls();
    host.add_ticket(Ticket::new("console-ticket-5", VM).one_time());
    echoes(open(gate.authd, &ticket(&gate, &vcenter, |_| {})).unwrap());
    assert_eq!(vcenter.methods().iter().filter(|method| *method == "AcquireTicket").count(), 2);
}
