//! What an operator does while consoles run: revoke, close, rotate, reload, drain; and a host without io_uring.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;

use mksgate::ticket::KeyRing;
use mksgate_bench::sim::{Esxi, EsxiConfig, Screen, Ticket, Vm};
use nix::sys::signal::Signal;
use support::client::{self, Tls};
use support::{Appliance, HOST_TICKET, Setup, VM, mksgate};

fn echo_host() -> Esxi {
    Esxi::start(EsxiConfig::default().vm(Vm::plain(VM, Screen::echo())).ticket(Ticket::new(HOST_TICKET, VM)))
        .unwrap()
}

fn ping(stream: &mut TcpStream) {
    stream.write_all(b"ping").unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"ping");
}

fn is_cut(stream: &mut TcpStream) -> bool {
    matches!(stream.read(&mut [0; 16]), Ok(0) | Err(_))
}

fn succeeds(gate: &Appliance, args: &[&str]) -> String {
    let output = gate.command(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_revocation_closes_what_was_opened_and_refuses_what_comes() {
    let (mut gate, host) = (Setup::new().start(), echo_host());
    for by in ["jti", "user", "tenant"] {
        let mut jti = String::new();
        let ticket = gate.ticket_with(&host, |c| {
            // A tenant's or a user's revocation reaches tickets minted up to now: each turn has its own user.
            c.user = by.into();
            jti.clone_from(&c.jti);
        });
        let mut stream = client::open(client::authd(gate.authd), &ticket, VM).unwrap();
        ping(&mut stream);
        let said = match by {
            "jti" => succeeds(&gate, &["ticket", "revoke", &jti]),
            "user" => succeeds(&gate, &["ticket", "revoke", "--user", by]),
            _ => succeeds(&gate, &["ticket", "revoke", "--tenant", "acme"]),
        };
        assert!(said.contains("closed 1"), "{said}");
        assert!(is_cut(&mut stream));
        assert_eq!(gate.wait_closed(), "ticket_revoked");
        assert!(client::open(client::authd(gate.authd), &ticket, VM).unwrap_err().starts_with("530"));
        gate.wait_refused("ticket_revoked");
    }
}

#[test]
fn a_line_of_the_list_is_a_session_and_closes_it() {
    let (mut gate, host) = (Setup::new().start(), echo_host());
    let mut stream = client::open(client::mks(gate.tls), &gate.ticket(&host), VM).unwrap();
    ping(&mut stream);
    let listed: serde_json::Value =
        serde_json::from_str(&succeeds(&gate, &["sessions", "list", "--json"])).unwrap();
    let session = &listed["sessions"][0];
    assert_eq!(session["client"]["peer"], stream.local_addr().unwrap().to_string());
    assert_eq!(session["client"]["local"], gate.tls.to_string());
    assert_eq!(session["backend"]["peer"], host.addr().to_string());
    assert_eq!((&session["vm"], &session["user"]), (&VM.into(), &"ann".into()));
    succeeds(&gate, &["sessions", "close", &session["id"].to_string()]);
    assert!(is_cut(&mut stream));
    assert_eq!(gate.wait_closed(), "operator");
    let audit = gate.audit_with("close", 1);
    let close = audit.iter().find(|r| r["event"] == "close").unwrap();
    assert_eq!(
        (&close["reason"], &close["tenant"], &close["user"]),
        (&"operator".into(), &"acme".into(), &"ann".into())
    );
    assert_eq!((&close["up_bytes"], &close["down_bytes"]), (&4.into(), &4.into()));
}

#[test]
fn keys_and_certificates_change_by_themselves_when_their_files_do() {
    let (mut gate, host) = (Setup::new().start(), echo_host());
    let before = client::authd(gate.authd).leaf();
    let keys = gate.dir.path().join("keys");
    assert!(mksgate().args(["ticket", "keygen"]).arg(&keys).status().unwrap().success());
    gate.wait_log(|line| line["fields"]["message"] == "ticket keys and certificate read again");
    gate.keys = KeyRing::load(&keys).unwrap();
    assert_eq!(gate.keys.len(), 2);
    client::open(client::authd(gate.authd), &gate.ticket(&host), VM).expect("the new key opens");

    support::write_certificate(gate.dir.path());
    // Two files change, one after the other: a look in between may find a key that does not fit.
    while client::authd(gate.authd).leaf() == before {
        gate.wait_log(|line| line["fields"]["message"] == "ticket keys and certificate read again");
    }
}

#[test]
fn a_bad_file_changes_nothing_and_a_good_one_everything_it_says() {
    let (mut gate, host) = (Setup::new().start(), echo_host());
    let path = gate.dir.path().join("mksgate.toml");
    let good = fs::read_to_string(&path).unwrap();
    let mut stream = client::open(client::authd(gate.authd), &gate.ticket(&host), VM).unwrap();

    fs::write(&path, good.replace("[tenants.acme]", "[tenants.acme]\nmax_sesions = 3")).unwrap();
    gate.signal(Signal::SIGHUP);
    let said =
        gate.wait_log(|line| line["fields"]["message"].as_str().is_some_and(|m| m.contains("not reloaded")));
    assert!(said["fields"]["error"].as_str().unwrap().contains("max_sesions"), "{said}");
    let refused = gate.command(&["reload"]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("max_sesions"));
    ping(&mut stream);
    client::open(client::authd(gate.authd), &gate.ticket(&host), VM).expect("the old file is in force");
    assert_eq!(gate.wait_closed(), "client_closed");

    fs::write(&path, good.replace("[tenants.acme]", "[tenants.bolt]")).unwrap();
    succeeds(&gate, &["reload"]);
    assert!(is_cut(&mut stream));
    assert_eq!(gate.wait_closed(), "tenant_removed");
    assert!(client::open(client::authd(gate.authd), &gate.ticket(&host), VM).unwrap_err().starts_with("550"));
    let bolt = gate.ticket_with(&host, |c| c.tenant = "bolt".into());
    client::open(client::authd(gate.authd), &bolt, VM).expect("the new tenant is served");
}

#[test]
fn a_drain_lets_consoles_finish_and_nobody_in() {
    let (mut gate, host) = (Setup::new().start(), echo_host());
    let mut stream = client::open(client::authd(gate.authd), &gate.ticket(&host), VM).unwrap();
    gate.signal(Signal::SIGTERM);
    gate.wait_log(|line| line["fields"]["message"] == "draining");
    ping(&mut stream);
    let mut late = match TcpStream::connect(gate.authd) {
        Ok(late) => late,
        Err(_) => return finish(gate, stream),
    };
    late.set_read_timeout(Some(support::PATIENCE)).unwrap();
    assert!(is_cut(&mut late));
    finish(gate, stream);
}

fn finish(mut gate: Appliance, stream: TcpStream) {
    drop(stream);
    gate.wait_log(|line| line["fields"]["message"] == "stopped");
    assert!(gate.wait_end().success());
}

#[test]
fn without_io_uring_the_doors_are_the_same() {
    let (mut gate, host) = (Setup::new().with("[flow]\ndriver = \"epoll\"").start(), echo_host());
    let doors: [fn(&Appliance) -> Tls; 2] = [|gate| client::authd(gate.authd), |gate| client::mks(gate.tls)];
    for door in doors {
        let mut stream = client::open(door(&gate), &gate.ticket(&host), VM).unwrap();
        ping(&mut stream);
        drop(stream);
        assert_eq!(gate.wait_closed(), "client_closed");
    }
    let _silent = client::connect(gate.authd);
    assert!(gate.stop().success());
}

#[test]
fn what_serve_would_refuse_check_names_with_its_remedy() {
    let setup = Setup::new();
    let path = setup.write();
    let check = || mksgate().args(["check", "--config"]).arg(&path).output().unwrap();
    assert!(check().status.success(), "{}", String::from_utf8_lossy(&check().stderr));
    let refuses = |with: &[&str]| {
        let output = check();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success());
        with.iter().for_each(|w| assert!(said.contains(w), "{w}: {said}"));
    };
    let mode = |file: &str, mode| {
        fs::set_permissions(setup.dir.path().join(file), fs::Permissions::from_mode(mode)).unwrap();
    };
    mode("key.pem", 0o644);
    refuses(&["key.pem", "0644", "chmod 600"]);
    mode("key.pem", 0o600);
    let jwk = fs::read_dir(setup.dir.path().join("keys")).unwrap().next().unwrap().unwrap().path();
    fs::set_permissions(&jwk, fs::Permissions::from_mode(0o644)).unwrap();
    refuses(&[&jwk.file_name().unwrap().to_string_lossy(), "chmod"]);
    fs::set_permissions(&jwk, fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(setup.dir.path().join("cert.pem")).unwrap();
    refuses(&["cert.pem", "cannot be read"]);
    support::write_certificate(setup.dir.path());
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{text}\n[tenants.bolt]\nmax_sessions = 1\ntargets = [\"10.0.0.1/8\"]\n"))
        .unwrap();
    let line = text.matches('\n').count() + 4;
    refuses(&[&format!("mksgate.toml:{line}"), "tenants.bolt.targets", "10.0.0.0/8"]);
}
