//! How consoles in browsers end: each with a code and a sentence for the person in front of them. And how they are kept alive.

mod support;
mod web_client;

use std::time::Duration;

use mksgate::session::CloseReason;
use mksgate_bench::sim::{Cut, Esxi, EsxiConfig, Screen, Ticket, Vm};
use nix::sys::signal::Signal;
use support::{Appliance, HOST_TICKET, Setup, VM};
use web_client::{Came, Web};

fn host(screen: Screen) -> Esxi {
    Esxi::start(EsxiConfig::default().vm(Vm::new(VM, screen)).ticket(Ticket::new(HOST_TICKET, VM))).unwrap()
}

fn console(gate: &Appliance, host: &Esxi) -> Web {
    let mut web = Web::open(gate.tls, &format!("/ticket/{}", gate.ticket(host)));
    web.shake_hands();
    web
}

/// The viewer is told, and the account has the same reason.
fn ends(gate: &mut Appliance, mut web: Web, reason: CloseReason) {
    let (code, words) = reason.words();
    assert_eq!(web.end(), (code.0, words.to_owned()));
    assert_eq!(gate.wait_closed(), reason.as_str());
}

fn succeeds(gate: &Appliance, args: &[&str]) {
    let output = gate.command(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn each_end_is_told_with_its_code_and_its_sentence() {
    let setup = Setup::new().tenants(
        "[tenants.acme]\nmax_sessions = 9\ntargets = [\"127.0.0.0/8\"]\n[tenants.gone]\nmax_sessions = 9\ntargets = [\"127.0.0.0/8\"]\n",
    );
    let setup = setup.with("[deadlines]\ndrain_seconds = 0.2");
    let (mut gate, host) = (setup.start(), host(Screen::echo()));

    let mut web = console(&gate, &host);
    web.echo(b"closed by an operator");
    let list = gate.command(&["sessions", "list", "--json"]);
    let list: serde_json::Value = serde_json::from_slice(&list.stdout).unwrap();
    succeeds(&gate, &["sessions", "close", &list["sessions"][0]["id"].to_string()]);
    ends(&mut gate, web, CloseReason::Operator);

    let mut jti = String::new();
    let ticket = gate.ticket_with(&host, |claims| jti.clone_from(&claims.jti));
    let mut web = Web::open(gate.tls, &format!("/ticket/{ticket}"));
    web.shake_hands();
    succeeds(&gate, &["ticket", "revoke", &jti]);
    ends(&mut gate, web, CloseReason::TicketRevoked);

    let ticket = gate.ticket_with(&host, |claims| claims.session_seconds = Some(1));
    let mut web = Web::open(gate.tls, &format!("/ticket/{ticket}"));
    web.shake_hands();
    ends(&mut gate, web, CloseReason::SessionDeadline);

    let ticket = gate.ticket_with(&host, |claims| claims.tenant = "gone".into());
    let mut web = Web::open(gate.tls, &format!("/ticket/{ticket}"));
    web.shake_hands();
    let config = gate.dir.path().join("mksgate.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, &text[..text.find("[tenants.gone]").unwrap()]).unwrap();
    gate.signal(Signal::SIGHUP);
    ends(&mut gate, web, CloseReason::TenantRemoved);

    let mut web = console(&gate, &host);
    web.echo(b"the host closes");
    host.cut(Cut::Close);
    ends(&mut gate, web, CloseReason::BackendClosed);

    let mut web = console(&gate, &host);
    web.echo(b"the host's connection breaks");
    host.cut(Cut::Reset);
    ends(&mut gate, web, CloseReason::BackendReset);

    let mut web = console(&gate, &host);
    web.frame(0xc2, b"a reserved bit").unwrap();
    assert_eq!(web.end(), (1002, "a reserved bit is set".into()));
    assert_eq!(gate.wait_closed(), CloseReason::ProtocolError.as_str());

    let mut web = console(&gate, &host);
    web.frame(0x88, &[&4321_u16.to_be_bytes()[..], b"enough"].concat()).unwrap();
    assert_eq!(web.end(), (4321, String::new()), "its own code comes back");
    assert_eq!(gate.wait_closed(), CloseReason::ClientClosed.as_str());

    // The last: a drain that waits no longer.
    let web = console(&gate, &host);
    gate.signal(Signal::SIGTERM);
    ends(&mut gate, web, CloseReason::Drain);
    assert!(gate.wait_end().success());
}

#[test]
fn pings_keep_a_silent_connection_awake_and_are_no_activity() {
    let setup = Setup::new().with("[web]\nping_seconds = 0.1");
    let (gate, host) = (setup.start(), host(Screen::echo()));
    let mut web = console(&gate, &host);
    for _ in 0..5 {
        assert!(matches!(web.next(), Came::Ping(_)));
    }
    drop(gate);

    let setup = Setup::new().with("[web]\nping_seconds = 0.1\n[deadlines]\nidle_seconds = 3");
    let mut gate = setup.start();
    let mut web = console(&gate, &host);
    let mut pings = 0;
    let end = loop {
        match web.next() {
            Came::Ping(_) => pings += 1,
            Came::Close(code, words) => break (code, words),
            other => panic!("{other:?}"),
        }
    };
    // Answered as they were, they keep no console open in which nothing happens.
    assert!(pings > 0);
    let (code, words) = CloseReason::IdleTimeout.words();
    assert_eq!(end, (code.0, words.to_owned()));
    assert_eq!(gate.wait_closed(), "idle_timeout");
}

#[test]
fn without_pings_a_silent_console_is_silent() {
    let setup = Setup::new().with("[web]\nping_seconds = 0\n[deadlines]\nidle_seconds = 1.5");
    let (gate, host) = (setup.start(), host(Screen::echo()));
    let mut web = console(&gate, &host);
    assert!(matches!(web.next(), Came::Close(1008, _)), "the first that comes is its end");
}

#[test]
fn a_viewer_that_is_gone_takes_the_hosts_connection_with_it() {
    let (mut gate, host) = (Setup::new().start(), host(Screen::echo()));
    let mut events = host.events();
    for reason in ["client_reset", "client_closed"] {
        let mut web = console(&gate, &host);
        web.echo(b"here");
        if reason == "client_reset" {
            socket2::SockRef::from(&web.tls.tcp).set_linger(Some(Duration::ZERO)).unwrap();
        }
        drop(web);
        assert_eq!(gate.wait_closed(), reason);
        let closed = |event: &mksgate_bench::sim::Event| {
            matches!(event.kind, mksgate_bench::sim::EventKind::Closed { .. })
        };
        events.wait_blocking(support::PATIENCE, closed).expect("the host's side closes");
    }
    assert_eq!(gate.metric("mksgate_sessions", &[]), 0.0);
}
