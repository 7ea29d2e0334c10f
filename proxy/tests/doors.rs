//! The raw doors from outside: what a client, a portal and a scanner see, with the real binary and a simulated host.

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use mksgate_bench::sim::{Esxi, EsxiConfig, EventKind, Fault, Faults, Screen, Step, Ticket, Vm};
use support::client::{self, Tls};
use support::{Appliance, HOST_TICKET, PATIENCE, Setup, VM, now};

type Door = fn(SocketAddr) -> Tls;

fn echo_host() -> Esxi {
    host(EsxiConfig::default())
}

fn host(config: EsxiConfig) -> Esxi {
    Esxi::start(config.vm(Vm::plain(VM, Screen::echo())).ticket(Ticket::new(HOST_TICKET, VM))).unwrap()
}

fn ping(stream: &mut std::net::TcpStream, text: &[u8]) {
    stream.write_all(text).unwrap();
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, text);
}

#[test]
fn a_ticket_opens_a_console_through_both_doors_and_its_end_is_accounted() {
    let (mut gate, host) = (Setup::new().start(), echo_host());
    let doors: [(Door, SocketAddr); 2] = [(client::authd, gate.authd), (client::mks, gate.tls)];
    for (through, address) in doors {
        let mut stream = client::open(through(address), &gate.ticket(&host), VM).unwrap();
        ping(&mut stream, b"hello console");
        assert_eq!(gate.metric("mksgate_sessions", &["tenant=\"acme\""]), 1.0);
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
        drop(stream);
        assert_eq!(gate.wait_closed(), "client_closed");
        assert_eq!(gate.metric("mksgate_sessions", &["tenant=\"acme\""]), 0.0);
    }
}

#[test]
fn the_first_byte_of_each_console_is_timed_once() {
    for driver in ["io_uring", "epoll"] {
        let (gate, host) =
            (Setup::new().with(&format!("[flow]\ndriver = \"{driver}\"")).start(), echo_host());
        let timed = || gate.metric("mksgate_first_byte_seconds_count", &[]);
        for n in 1..=3 {
            let mut stream = client::open(client::authd(gate.authd), &gate.ticket(&host), VM).unwrap();
            assert_eq!(timed(), f64::from(n - 1), "the machine has sent nothing yet");
            ping(&mut stream, b"first");
            // The client has the byte before the gate has written that down.
            let limit = Instant::now() + PATIENCE;
            while timed() < f64::from(n) {
                assert!(Instant::now() < limit, "the first byte is timed");
                std::thread::sleep(Duration::from_millis(5));
            }
            (0..10).for_each(|_| ping(&mut stream, b"more"));
        }
        assert_eq!(timed(), 3.0);
        assert!(gate.metric("mksgate_first_byte_seconds_sum", &[]) > 0.0);
    }
}

#[test]
fn tls_no_two_runs_between_client_and_machine() {
    let gate = Setup::new().start();
    let host = Esxi::start(
        EsxiConfig::default()
            .vm(Vm::new(VM, Screen::desktop()))
            .ticket(Ticket::new(HOST_TICKET, VM).one_time()),
    )
    .unwrap();
    let ticket = gate.ticket(&host);
    let mut tls = client::authd(gate.authd);
    let outer = tls.leaf();
    assert!(tls.ask(&format!("USER {ticket}")).unwrap().starts_with("331"));
    assert!(tls.ask(&format!("PASS {ticket}")).unwrap().starts_with("230"));
    let announced = tls.ask("THUMBPRINT c2l4dGVlbiBieXRl").unwrap();
    let vm = host.vm_identity(VM).unwrap();
    assert_eq!(announced, format!("200 {}", vm.sha1()));
    assert_eq!(tls.ask(&format!("CONNECT {VM} mks")).unwrap(), format!("200 Connect {VM}"));
    let mut inner = Tls::start(tls.tcp).unwrap();
    assert_eq!(inner.leaf(), vm.der(), "the certificate is the machine's");
    assert_ne!(inner.leaf(), outer, "and not the appliance's");
    inner.send("c2l4dGVlbiBieXRl").unwrap();
    let mut events = host.events();
    events
        .wait_blocking(PATIENCE, |e| matches!(e.kind, EventKind::ScreenOpen { .. }))
        .expect("the nonce was forwarded");
}

#[test]
fn a_killed_client_takes_the_hosts_connection_with_it() {
    let (mut gate, host) = (Setup::new().start(), echo_host());
    let mut stream = client::open(client::authd(gate.authd), &gate.ticket(&host), VM).unwrap();
    ping(&mut stream, b"x");
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
    let mut events = host.events();
    events
        .wait_blocking(PATIENCE, |e| matches!(e.kind, EventKind::Closed { .. }))
        .expect("the host's side closes");
    assert_eq!(gate.wait_closed(), "client_reset");
}

#[test]
fn wrong_dialogues_get_the_protocols_own_codes() {
    let mut gate = Setup::new().start();
    for (lines, code, reason) in [
        (vec!["PROXY nfc".into()], "554", "quit"),
        (vec!["PASS x".into()], "503", "quit"),
        (vec!["CONNECT /x.vmx mks".into()], "530", "quit"),
        (vec!["XYZZY".into()], "500", "quit"),
        (vec!["USER a b".into()], "501", "quit"),
        (vec!["GET / HTTP/1.1".into()], "500", "quit"),
        (vec!["USER a".into(), "PASS b".into()], "530", "bad_dialogue"),
        (vec!["US\0ER a".into()], "502", "malformed"),
        (vec![format!("USER {}", "a".repeat(5000))], "502", "malformed"),
    ] {
        let mut tls = client::authd(gate.authd);
        let mut last = String::new();
        for line in &lines {
            last = tls.ask(line).unwrap();
        }
        assert!(last.starts_with(code), "{lines:?}: {last}");
        if reason == "quit" {
            assert!(tls.ask("QUIT").unwrap().starts_with("221"));
        }
        assert_eq!(tls.rest(), "");
        drop(tls);
        gate.wait_refused(reason);
    }
    let mut tls = client::authd(gate.authd);
    tls.send("USER a\n").unwrap();
    assert!(tls.line().unwrap().starts_with("502"), "a bare LF is no line end");
}

#[test]
fn what_is_no_tls_gets_an_answer_it_can_read() {
    let mut gate = Setup::new().start();
    let mut plain = client::connect(gate.tls);
    plain.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    plain.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    gate.wait_refused("not_tls");

    let mut http = client::connect(gate.authd);
    client::plain_line(&mut http).unwrap();
    http.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert!(client::plain_line(&mut http).unwrap().starts_with("502"));
    gate.wait_refused("not_tls");

    for address in [gate.tls, gate.authd] {
        let mut garbage = client::connect(address);
        garbage.write_all(&[22, 3, 1, 0, 200]).unwrap();
        garbage.write_all(&[0xaa; 300]).unwrap();
        let mut answer = Vec::new();
        let _ = garbage.read_to_end(&mut answer);
        gate.wait_refused("tls");
    }
}

#[test]
fn requests_that_open_no_door_get_their_status() {
    let gate = Setup::new().start();
    let long = format!("GET /mks HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(9000));
    let many = format!("GET /mks HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(100));
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
        ("GET /mks HTTP/1.1\r\nHost: x\r\n\r\n", "426"),
        ("POST /mks HTTP/1.1\r\nHost: x\r\n\r\n", "405"),
        ("POST /mks HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "400"),
        ("\x16\x03\x01 what\r\n\r\n", "400"),
        (&long, "431"),
        (&many, "431"),
    ] {
        let mut tls = Tls::start(client::connect(gate.tls)).unwrap();
        tls.send(request).unwrap();
        let answer = tls.rest();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:.40}: {answer}");
    }
}

#[test]
fn bytes_behind_connect_are_refused_inside_and_forwarded_outside() {
    let (mut gate, host) = (Setup::new().start(), echo_host());
    let login = |gate: &Appliance| {
        let (mut tls, ticket) = (client::authd(gate.authd), gate.ticket(&host));
        tls.ask(&format!("USER {ticket}")).unwrap();
        assert!(tls.ask(&format!("PASS {ticket}")).unwrap().starts_with("230"));
        tls
    };
    let mut tls = login(&gate);
    assert!(tls.ask(&format!("CONNECT {VM} mks\r\nsmuggled")).unwrap().starts_with("502"));
    gate.wait_refused("malformed");

    let mut tls = login(&gate);
    tls.send(&format!("CONNECT {VM} mks\r\n")).unwrap();
    tls.tcp.write_all(b"early").unwrap();
    assert!(tls.line().unwrap().starts_with("200"));
    let mut answer = [0; 5];
    tls.tcp.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"early", "what came early arrives first, once");
}

#[test]
fn tickets_that_may_not_be_used_are_refused_with_their_reason() {
    let setup = Setup::new().tenants(
        "[tenants.acme]\nmax_sessions = 2\nmax_sessions_per_user = 1\ntargets = [\"127.0.0.1/32\"]\n\
         [tenants.far]\nmax_sessions = 2\ntargets = [\"192.0.2.0/24\"]\n[tenants.none]\nmax_sessions = 0\ntargets = [\"127.0.0.1/32\"]\n",
    );
    let (mut gate, host) = (setup.start(), echo_host());
    let good = gate.ticket(&host);
    let other = Setup::new();
    let forger = mksgate::ticket::KeyRing::load(&other.dir.path().join("keys")).unwrap();
    let mut forged = good.clone().into_bytes();
    let last = forged.len() - 3;
    forged[last] = if forged[last] == b'A' { b'B' } else { b'A' };
    let cases: Vec<(String, &str, &str)> = vec![
        (good[..good.len() / 2].into(), "530", "ticket_malformed"),
        ("nonsense".into(), "530", "ticket_malformed"),
        (String::from_utf8(forged).unwrap(), "530", "ticket_forged"),
        (
            forger.seal(&support::claims(host.addr(), &host.thumbprint_sha1())).unwrap(),
            "530",
            "ticket_unknown_key",
        ),
        (
            gate.ticket_with(&host, |c| {
                c.iat -= 20;
                c.nbf -= 20;
                c.exp = now() - 10;
            }),
            "530",
            "ticket_expired",
        ),
        (gate.ticket_with(&host, |c| c.nbf = now() + 60), "530", "ticket_not_yet_valid"),
        (
            gate.ticket_with(&host, |c| {
                c.iat -= 60;
                c.nbf -= 60
            }),
            "530",
            "ticket_used_too_late",
        ),
        (gate.ticket_with(&host, |c| c.source = Some([192, 0, 2, 1].into())), "530", "ticket_other_source"),
        (gate.ticket_with(&host, |c| c.view_only = true), "530", "ticket_view_only"),
        (gate.ticket_with(&host, |c| c.tenant = "removed".into()), "550", "unknown_tenant"),
        (gate.ticket_with(&host, |c| c.tenant = "none".into()), "552", "tenant_full"),
    ];
    for (ticket, code, reason) in cases {
        let refused = client::open(client::authd(gate.authd), &ticket, VM).unwrap_err();
        assert!(refused.starts_with(code), "{reason}: {refused}");
        assert!(!refused.contains(&ticket), "the refusal does not repeat the ticket");
        gate.wait_refused(reason);
    }
    let outside = gate.ticket_with(&host, |c| c.tenant = "far".into());
    assert!(client::open(client::authd(gate.authd), &outside, VM).unwrap_err().starts_with("550"));
    gate.wait_refused("outside_targets");
    assert!(client::open(client::authd(gate.authd), &good, "/other.vmx").unwrap_err().starts_with("553"));
    gate.wait_refused("wrong_vm");

    let again = gate.ticket_with(&host, |c| c.max_connections = Some(1));
    let held = client::open(client::authd(gate.authd), &again, VM).unwrap();
    assert!(client::open(client::authd(gate.authd), &again, VM).unwrap_err().starts_with("530"));
    gate.wait_refused("ticket_too_many_connections");
    let second = gate.ticket(&host);
    assert!(client::open(client::authd(gate.authd), &second, VM).unwrap_err().starts_with("552"));
    gate.wait_refused("user_full");
    drop(held);
    gate.wait_closed();
    assert!(client::open(client::authd(gate.authd), &again, VM).is_ok(), "the same ticket reconnects");
    assert_eq!(host.accepted(), 2, "no refused ticket reached a host");
}

#[test]
fn hosts_that_misbehave_are_named_to_the_operator_and_hidden_from_the_client() {
    let setup = Setup::new().with("[deadlines]\nbackend_seconds = 0.5\nconnect_seconds = 1");
    let mut gate = setup.start();
    let at = |step, fault| Faults::none().at(step, fault);
    for (faults, code, reason) in [
        (at(Step::Pass, Fault::code(530)), "513", "backend_refused"),
        (at(Step::Pass, Fault::line("630 52-second-ticket")), "512", "backend_second_pass"),
        (at(Step::Connect, Fault::code(553)), "512", "backend_unexpected"),
        (at(Step::Banner, Fault::line("SSH-2.0-OpenSSH")), "512", "backend_not_authd"),
        (
            at(
                Step::Banner,
                Fault::line("220 VMware Authentication Daemon Version 1.10: ServerDaemonProtocol:SOAP"),
            ),
            "512",
            "backend_plain",
        ),
        (at(Step::Tls1, Fault::WrongCertificate), "512", "backend_wrong_certificate"),
        (at(Step::User, Fault::Stall), "514", "backend_timeout"),
        (at(Step::Banner, Fault::Stall), "514", "backend_timeout"),
        (at(Step::Pass, Fault::Close), "512", "backend_closed"),
        (at(Step::Connect, Fault::Reset), "512", "backend_closed"),
    ] {
        let host = host(EsxiConfig::default().faults(faults));
        let refused = client::open(client::authd(gate.authd), &gate.ticket(&host), VM).unwrap_err();
        assert!(refused.starts_with(code), "{reason}: {refused}");
        assert!(!refused.contains("127.0.0.1") && !refused.contains(HOST_TICKET), "{refused}");
        gate.wait_refused(reason);
    }
    let gone = echo_host();
    let ticket = gate.ticket(&gone);
    gone.stop();
    assert!(client::open(client::authd(gate.authd), &ticket, VM).unwrap_err().starts_with("514"));
    gate.wait_refused("backend_unreachable");
    assert_eq!(gate.metric("mksgate_sessions", &[]), 0.0);
}

#[test]
fn silence_and_drip_end_at_their_deadlines() {
    let setup = Setup::new().with("[deadlines]\nhandshake_seconds = 0.4\ndialogue_seconds = 0.6");
    let mut gate = setup.start();
    let silent = client::connect(gate.authd);
    gate.wait_refused("deadline_handshake");
    drop(silent);
    let mut silent = client::authd(gate.authd);
    assert!(silent.line().unwrap().starts_with("221"));
    gate.wait_refused("deadline_dialogue");
    let mut slow = Tls::start(client::connect(gate.tls)).unwrap();
    slow.send("GET /mks HT").unwrap();
    assert!(slow.rest().starts_with("HTTP/1.1 408"));
    gate.wait_refused("deadline_request");
}

#[test]
fn only_a_configured_balancer_may_name_the_client() {
    let mut gate = Setup::new().start();
    let mut liar = client::connect(gate.tls);
    liar.write_all(b"PROXY TCP4 192.0.2.7 10.0.0.1 4660 443\r\n").unwrap();
    gate.wait_refused("not_tls");
    drop(gate);

    let mut gate = Setup::new().with("[proxy_protocol]\nfrom = [\"127.0.0.0/8\"]").start();
    let host = echo_host();
    let mut v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    v2.extend([192, 0, 2, 7, 10, 0, 0, 1, 0x12, 0x34, 0x01, 0xbb]);
    for header in [b"PROXY TCP4 192.0.2.7 10.0.0.1 4660 443\r\n".to_vec(), v2] {
        let ticket = gate.ticket_with(&host, |c| c.source = Some([192, 0, 2, 7].into()));
        let mut tcp = client::connect(gate.authd);
        tcp.write_all(&header).unwrap();
        client::plain_line(&mut tcp).unwrap();
        let mut stream = client::open(Tls::start(tcp).unwrap(), &ticket, VM).unwrap();
        ping(&mut stream, b"behind a balancer");
        let opened = gate.wait_log(|line| line["fields"]["message"] == "console opened");
        assert_eq!(opened["fields"]["source"], "192.0.2.7:4660");
    }
    let mut silent = client::connect(gate.tls);
    silent.write_all(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03").unwrap();
    gate.wait_refused("proxy_header");
}

#[test]
fn ipv6_and_several_addresses_are_served() {
    let setup = Setup::new().with("[listen]\ntls = [\"[::1]:0\"]\nauthd = [\"127.0.0.1:0\", \"[::1]:0\"]");
    let gate = setup.start();
    let host = host(EsxiConfig { listen: "[::1]:0".parse().unwrap(), ..EsxiConfig::default() });
    assert!(gate.authd.is_ipv6() && gate.tls.is_ipv6());
    let mut stream = client::open(client::mks(gate.tls), &gate.ticket(&host), VM).unwrap();
    ping(&mut stream, b"six");
}

#[test]
fn a_source_has_its_share_of_handshakes() {
    let mut gate = Setup::new().with("[limits]\nper_source = 3").start();
    let held: Vec<_> = (0..3).map(|_| client::authd(gate.authd)).collect();
    let mut fourth = client::connect(gate.authd);
    let mut byte = [0];
    assert!(matches!(fourth.read(&mut byte), Ok(0) | Err(_)), "closed before any TLS work");
    gate.wait_refused("source_full");
    drop(held);
    for _ in 0..3 {
        gate.wait_refused("client_closed");
    }
    client::authd(gate.authd);
}
