//! The WebSocket doors from outside: what opens none, what opens one and no console, and why.

mod support;
mod web_client;

use std::io::{Read, Write};
use std::net::SocketAddr;

use mksgate::session::NotOpened;
use mksgate::ticket::{Claims, KeyRing, TargetKind};
use mksgate_bench::sim::{Esxi, EsxiConfig, Fault, Faults, Screen, Step, Ticket, Vm};
use support::client::{self, Tls};
use support::{Appliance, HOST_TICKET, Setup, VM, now};
use web_client::{Web, ask, drain, read_until, tcp_host, tls_host, upgrade, vnc_host};

fn host(config: EsxiConfig) -> Esxi {
    Esxi::start(config.vm(Vm::new(VM, Screen::echo())).ticket(Ticket::new(HOST_TICKET, VM))).unwrap()
}

/// A ticket for something else than the simulated host.
fn ticket_for(gate: &Appliance, kind: TargetKind, address: SocketAddr, thumbprint: Option<&str>) -> String {
    let mut claims = support::claims(address, "");
    claims.target.kind = kind;
    claims.target.thumbprints = thumbprint.map(str::to_owned).into_iter().collect();
    gate.keys.seal(&claims).unwrap()
}

/// An appliance that waits for no host.
fn hasty() -> Appliance {
    Setup::new().with("[deadlines]\nbackend_seconds = 0.5").start()
}

/// No console: the code and the words for it, and the reason for the operator. Nothing is left open.
fn refused(gate: &mut Appliance, target: &str, not: NotOpened, reason: &str) {
    let (code, words) = not.words();
    let mut web = Web::open(gate.tls, target);
    let told = web.end();
    assert_eq!(told, (code.0, words.to_owned()), "{reason}");
    drop(web);
    gate.wait_refused(reason);
    assert_eq!(gate.metric("mksgate_sessions", &[]), 0.0);
}

#[test]
fn a_ticket_opens_a_console_through_both_addresses_in_every_form() {
    let (mut gate, host) = (Setup::new().start(), host(EsxiConfig::default()));
    let encoded = |ticket: &str| ticket.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
    let names: [(&str, bool); 3] = [(VM, false), (VM.trim_start_matches('/'), true), (VM, true)];
    for (vm, encode) in names {
        let ticket = gate.ticket(&host);
        let ticket = if encode { encoded(&ticket) } else { ticket };
        let mut cell = Web::open(gate.tls, &format!("/902;{ticket}"));
        assert_eq!(cell.data(), b"connect info vmx\n", "these 17 bytes in one frame");
        // The answer may come in fragments, with a ping between.
        let (half, rest) = vm.as_bytes().split_at(10);
        cell.frame(0x02, half).unwrap();
        cell.frame(0x89, b"still there?").unwrap();
        cell.frame(0x80, rest).unwrap();
        while cell.next() != web_client::Came::Pong(b"still there?".into()) {}
        cell.shake_hands();
        cell.echo(b"through the cell's address");
        let mut webmks = Web::open(gate.tls, &format!("/ticket/{ticket}"));
        webmks.shake_hands();
        webmks.echo(b"through WebMKS' address");
        for mut web in [cell, webmks] {
            web.frame(0x88, &1000_u16.to_be_bytes()).unwrap();
            assert_eq!(web.end(), (1000, String::new()));
            assert_eq!(gate.wait_closed(), "client_closed");
        }
    }
}

#[test]
fn requests_that_open_no_websocket_get_their_status() {
    let setup = Setup::new().with("[web]\norigins = [\"https://portal.example\"]");
    let (gate, host) = (setup.start(), host(EsxiConfig::default()));
    let good = upgrade(&format!("/ticket/{}", gate.ticket(&host)));
    let without = |field: &str| {
        let start = good.find(field).unwrap();
        let end = start + good[start..].find("\r\n").unwrap() + 2;
        format!("{}{}", &good[..start], &good[end..])
    };
    let with = |fields: &str| good.replacen("\r\n\r\n", &format!("\r\n{fields}\r\n\r\n"), 1);
    let to = |target: &str| upgrade(target);
    let cases = [
        (without("Upgrade:"), "426"),
        (without("Connection:"), "426"),
        (without("Sec-WebSocket-Version:"), "426"),
        (good.replace("Version: 13", "Version: 8"), "426"),
        (without("Sec-WebSocket-Key:"), "400"),
        (with("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), "400"),
        (good.replace("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ="), "400"),
        (good.replace(": binary", ": vmware-vvc"), "400"),
        (good.replace("GET", "POST"), "405"),
        (good.replace("HTTP/1.1", "HTTP/1.0"), "400"),
        (with("Content-Length: 3") + "abc", "400"),
        // Pages of others.
        (with("Origin: https://evil.example"), "403"),
        (with("Origin: http://console.example"), "403"),
        (with("Origin: https://console.example.evil.example"), "403"),
        (with("Origin: null"), "403"),
        (with("Origin: https://portal.example\r\nOrigin: https://evil.example"), "403"),
        // Addresses that are none.
        (to("/ticket/"), "400"),
        (to("/902;"), "400"),
        (to("/ticket/%zz"), "400"),
        (to("/ticket/%00"), "400"),
        (to("//902;x"), "404"),
        (to("/../ticket/x"), "404"),
        (to("/./ticket/x"), "404"),
        (to("/99999;x"), "404"),
        (to("*"), "404"),
        (to(&format!("/ticket/{}", "a".repeat(1 << 20))), "414"),
        (to(&format!("/902;{}", "/..//".repeat(1 << 18))), "414"),
        (with(&format!("X: {}", "a".repeat(1 << 20))), "431"),
        (with(&"A: b\r\n".repeat(100)), "431"),
    ];
    for (request, status) in cases {
        let answer = ask(gate.tls, request.as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:.60}…: {answer}");
        assert!(answer.contains("Connection: ") && answer.contains("close\r\n"), "{answer}");
        if status == "426" {
            assert!(answer.contains("\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"), "{answer}");
        }
    }
    for target in ["/console/../ticket/x", "/console//page.js", "/console/%2e%2e/ticket/x"] {
        let mut tls = Tls::start(client::connect(gate.tls)).unwrap();
        tls.send(&to(target)).unwrap();
        assert_eq!(tls.line().unwrap(), "HTTP/1.1 404 Not Found", "{target}");
    }
    assert_eq!(host.accepted(), 0, "none of these reached a host");
    // The gate's own page and the portal's may; so may a client that is no browser.
    for origin in ["https://console.example", "https://portal.example"] {
        let mut tls = Tls::start(client::connect(gate.tls)).unwrap();
        tls.send(&with(&format!("Origin: {origin}"))).unwrap();
        assert_eq!(tls.line().unwrap(), "HTTP/1.1 101 Switching Protocols", "{origin}");
    }
}

#[test]
fn tickets_that_may_not_be_used_are_refused_in_words_that_tell_nothing_of_them() {
    let setup = Setup::new().tenants(
        "[tenants.acme]\nmax_sessions = 2\nmax_sessions_per_user = 1\ntargets = [\"127.0.0.1/32\"]\n\
         [tenants.far]\nmax_sessions = 2\ntargets = [\"192.0.2.0/24\"]\n[tenants.none]\nmax_sessions = 0\ntargets = [\"127.0.0.1/32\"]\n",
    );
    let (mut gate, host) = (setup.start(), host(EsxiConfig::default()));
    let good = gate.ticket(&host);
    let forger = Setup::new();
    let forger = KeyRing::load(&forger.dir.path().join("keys")).unwrap();
    let mut forged = good.clone().into_bytes();
    let last = forged.len() - 3;
    forged[last] = if forged[last] == b'A' { b'B' } else { b'A' };
    let old = |by: u64| {
        move |c: &mut Claims| {
            c.iat -= by;
            c.nbf -= by;
        }
    };
    let mut cases = vec![
        (good[..good.len() / 2].into(), NotOpened::Ticket, "ticket_malformed"),
        ("nonsense".into(), NotOpened::Ticket, "ticket_malformed"),
        (String::from_utf8(forged).unwrap(), NotOpened::Ticket, "ticket_forged"),
        (
            forger.seal(&support::claims(host.addr(), &host.thumbprint_sha1())).unwrap(),
            NotOpened::Ticket,
            "ticket_unknown_key",
        ),
        (gate.ticket_with(&host, old(60)), NotOpened::Ticket, "ticket_used_too_late"),
    ];
    let changes: [(fn(&mut Claims), NotOpened, &str); 6] = [
        (
            |c| {
                (c.iat, c.nbf, c.exp) = (c.iat - 20, c.nbf - 20, now() - 10);
            },
            NotOpened::Ticket,
            "ticket_expired",
        ),
        (|c| c.nbf = now() + 60, NotOpened::Ticket, "ticket_not_yet_valid"),
        (|c| c.source = Some([192, 0, 2, 1].into()), NotOpened::Ticket, "ticket_other_source"),
        (|c| c.tenant = "removed".into(), NotOpened::UnknownTenant, "unknown_tenant"),
        (|c| c.tenant = "none".into(), NotOpened::TooMany, "tenant_full"),
        (|c| c.tenant = "far".into(), NotOpened::OutsideTargets, "outside_targets"),
    ];
    for (change, not, reason) in changes {
        cases.push((gate.ticket_with(&host, change), not, reason));
    }
    for (ticket, not, reason) in &cases {
        refused(&mut gate, &format!("/ticket/{ticket}"), *not, reason);
        if *not != NotOpened::OutsideTargets {
            refused(&mut gate, &format!("/443;{ticket}"), *not, reason);
        }
    }
    assert_eq!(host.accepted(), 0, "no refused ticket reached a host");

    let again = gate.ticket_with(&host, |c| c.max_connections = Some(1));
    let mut held = Web::open(gate.tls, &format!("/ticket/{again}"));
    held.shake_hands();
    let (code, words) = NotOpened::Ticket.words();
    let told = Web::open(gate.tls, &format!("/ticket/{again}")).end();
    assert_eq!(told, (code.0, words.into()));
    gate.wait_refused("ticket_too_many_connections");
    let (code, words) = NotOpened::TooMany.words();
    let told = Web::open(gate.tls, &format!("/ticket/{}", gate.ticket(&host))).end();
    assert_eq!(told, (code.0, words.into()));
    gate.wait_refused("user_full");
    held.frame(0x88, &[]).unwrap();
    held.end();
    gate.wait_closed();
    let mut back = Web::open(gate.tls, &format!("/ticket/{again}"));
    back.shake_hands();
    back.echo(b"the same ticket reconnects");
}

#[test]
fn viewers_that_do_not_do_their_part_are_sent_away_in_time() {
    let hasty = Setup::new().with("[deadlines]\ndialogue_seconds = 0.5");
    let (mut gate, host) = (hasty.start(), host(EsxiConfig::default()));
    let target = |gate: &Appliance, form: &str| format!("/{form}{}", gate.ticket(&host));
    // Never answers `connect info vmx`.
    let silent = target(&gate, "902;");
    refused(&mut gate, &silent, NotOpened::TooSlow, "deadline_dialogue");
    // Never answers RFB's handshake.
    let silent = target(&gate, "ticket/");
    refused(&mut gate, &silent, NotOpened::TooSlow, "deadline_dialogue");

    let played = |gate: &mut Appliance, form: &str, play: &dyn Fn(&mut Web), not: NotOpened, reason: &str| {
        let mut web = Web::open(gate.tls, &target(gate, form));
        web.data();
        play(&mut web);
        let (code, words) = not.words();
        assert_eq!(web.end(), (code.0, words.to_owned()), "{reason}");
        drop(web);
        gate.wait_refused(reason);
    };
    let slow = |web: &mut Web| {
        // A byte now and then is no answer.
        for byte in b"RFB 003" {
            if web.frame(0x82, &[*byte]).is_err() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    };
    played(&mut gate, "ticket/", &slow, NotOpened::TooSlow, "deadline_dialogue");
    assert_eq!(gate.metric("mksgate_sessions", &[]), 0.0);

    let mut gate = Setup::new().start();
    let other = |web: &mut Web| web.send(b"/vmfs/volumes/other.vmx");
    played(&mut gate, "902;", &other, NotOpened::WrongVm, "wrong_vm");
    played(&mut gate, "902;", &|web| web.send(&[b'x'; 9000]), NotOpened::TooMuch, "bad_websocket");
    played(&mut gate, "ticket/", &|web| web.send(b"GET / HTTP/1.1"), NotOpened::NotRfb, "bad_rfb");
    let chooses = |web: &mut Web| {
        web.send(b"RFB 003.008\n");
        assert_eq!(web.data(), [1, 1]);
        web.send(&[2]);
    };
    played(&mut gate, "ticket/", &chooses, NotOpened::NotRfb, "bad_rfb");
    assert_eq!(gate.metric("mksgate_sessions", &[]), 0.0);
}

#[test]
fn hosts_that_misbehave_are_named_to_the_operator_and_told_in_words_to_the_viewer() {
    let (mut gate, mut hasty) = (Setup::new().start(), hasty());
    let at = |step, fault| Faults::none().at(step, fault);
    let plain = "220 VMware Authentication Daemon Version 1.10: ServerDaemonProtocol:SOAP";
    for (faults, not, reason) in [
        (at(Step::Pass, Fault::code(530)), NotOpened::HostRefused, "backend_refused"),
        (at(Step::Pass, Fault::line("630 52-x")), NotOpened::HostRefused, "backend_second_pass"),
        (at(Step::Connect, Fault::code(553)), NotOpened::HostFailed, "backend_unexpected"),
        (at(Step::Banner, Fault::line("SSH-2.0-OpenSSH")), NotOpened::HostFailed, "backend_not_authd"),
        (at(Step::Banner, Fault::line(plain)), NotOpened::HostFailed, "backend_plain"),
        (at(Step::Tls1, Fault::WrongCertificate), NotOpened::WrongHost, "backend_wrong_certificate"),
        (at(Step::Tls2, Fault::WrongCertificate), NotOpened::WrongHost, "backend_wrong_certificate"),
        (at(Step::User, Fault::Stall), NotOpened::Unreachable, "backend_timeout"),
        (at(Step::Tls2, Fault::Stall), NotOpened::Unreachable, "backend_timeout"),
        (at(Step::Pass, Fault::Close), NotOpened::HostFailed, "backend_closed"),
        (at(Step::Connect, Fault::Reset), NotOpened::HostFailed, "backend_closed"),
    ] {
        let host = host(EsxiConfig::default().faults(faults));
        let gate = if reason == "backend_timeout" { &mut hasty } else { &mut gate };
        let target = format!("/ticket/{}", gate.ticket(&host));
        refused(gate, &target, not, reason);
    }
    let gone = host(EsxiConfig::default());
    let target = format!("/ticket/{}", gate.ticket(&gone));
    gone.stop();
    refused(&mut gate, &target, NotOpened::Unreachable, "backend_unreachable");
    let unpinned = ticket_for(&gate, TargetKind::EsxiMks, ([127, 0, 0, 1], 9).into(), None);
    let not = NotOpened::Unreachable;
    refused(&mut gate, &format!("/ticket/{unpinned}"), not, "backend_unreachable");
}

#[test]
fn vnc_servers_that_misbehave() {
    let (mut gate, mut hasty) = (Setup::new().start(), hasty());
    const NO_PASSWORD: &[u8] = b"\0\0\0\x01\0\0\0\x12Invalid password!!";
    let scripts: [(&'static [(usize, &'static [u8])], NotOpened, &str); 7] = [
        (&[(0, b"HTTP/1.1 400 Bad Request\r\n\r\n")], NotOpened::HostFailed, "backend_rfb"),
        (&[(0, b"RFB 003.008\n"), (12, &[2, 19, 30])], NotOpened::HostFailed, "backend_rfb"),
        (&[(0, b"RFB 003.008\n"), (12, b"\0\0\0\0\x08too many")], NotOpened::HostRefused, "backend_rfb"),
        (
            &[(0, b"RFB 003.008\n"), (12, &[1, 2]), (1, &[7; 16]), (16, NO_PASSWORD)],
            NotOpened::HostRefused,
            "backend_rfb",
        ),
        (&[(0, b"RFB 003.003\n"), (12, &[0, 0, 0, 99])], NotOpened::HostFailed, "backend_rfb"),
        (&[(0, b"RFB 003.008\n")], NotOpened::Unreachable, "backend_timeout"),
        (&[], NotOpened::Unreachable, "backend_timeout"),
    ];
    for (script, not, reason) in scripts {
        let gate = if reason == "backend_timeout" { &mut hasty } else { &mut gate };
        let ticket = ticket_for(gate, TargetKind::Vnc, vnc_host(script), None);
        refused(gate, &format!("/ticket/{ticket}"), not, reason);
    }
    let closes = tcp_host(|mut tcp| tcp.write_all(b"RFB 003"));
    let ticket = ticket_for(&gate, TargetKind::Vnc, closes, None);
    refused(&mut gate, &format!("/ticket/{ticket}"), NotOpened::HostFailed, "backend_closed");
    // TLS was promised by the ticket, and a certificate with it.
    let (address, thumbprint) = tls_host(|tls| tls.write_all(b"RFB 003.008\n"));
    let other = thumbprint.replace(|c: char| c.is_ascii_digit(), "0");
    let ticket = ticket_for(&gate, TargetKind::Vnc, address, Some(&other));
    refused(&mut gate, &format!("/ticket/{ticket}"), NotOpened::WrongHost, "backend_wrong_certificate");
}

#[test]
fn webmks_hosts_that_misbehave() {
    let (mut gate, mut hasty) = (Setup::new().start(), hasty());
    let answers: [(&'static str, NotOpened, &str); 5] = [
        (
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
            NotOpened::HostRefused,
            "backend_not_websocket",
        ),
        ("SSH-2.0-OpenSSH\r\n", NotOpened::HostRefused, "backend_not_websocket"),
        (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n",
            NotOpened::HostRefused,
            "backend_not_websocket",
        ),
        ("", NotOpened::HostFailed, "backend_closed"),
        ("(nothing)", NotOpened::Unreachable, "backend_timeout"),
    ];
    for (answer, not, reason) in answers {
        let (address, thumbprint) = tls_host(move |tls| {
            let request = String::from_utf8(read_until(tls, b"\r\n\r\n")?).unwrap();
            assert!(request.starts_with(&format!("GET /ticket/{HOST_TICKET} HTTP/1.1\r\n")), "{request}");
            match answer {
                "(nothing)" => drain(tls),
                answer => tls.write_all(answer.as_bytes())?,
            }
            Ok(())
        });
        let gate = if reason == "backend_timeout" { &mut hasty } else { &mut gate };
        let ticket = ticket_for(gate, TargetKind::EsxiWebmks, address, Some(&thumbprint));
        refused(gate, &format!("/ticket/{ticket}"), not, reason);
    }
    let (address, thumbprint) = tls_host(|tls| tls.read(&mut [0]).map(drop));
    let other = thumbprint.replace(|c: char| c.is_ascii_digit(), "0");
    let ticket = ticket_for(&gate, TargetKind::EsxiWebmks, address, Some(&other));
    refused(&mut gate, &format!("/ticket/{ticket}"), NotOpened::WrongHost, "backend_wrong_certificate");
    let ticket = ticket_for(&gate, TargetKind::EsxiWebmks, address, None);
    refused(&mut gate, &format!("/ticket/{ticket}"), NotOpened::Unsupported, "backend_bad_target");
}
