//! `mksgate connect` between a VNC viewer and a gate: the real binary, a viewer that speaks RFB 3.8, a gate of the test's own.

mod gate;
mod viewer;

use std::net::TcpStream;
use std::process::Command;

use gate::{Gate, SERVER_INIT, TICKET, Turn, VM, gate};
use mksgate::client::url::mks_url;
use viewer::{Client, echo, ends, read, refusal};

/// A client of this gate, the gate's certificate pinned.
fn client_of(gate: &Gate, args: &[&str]) -> Client {
    let pin = gate.thumbprint.to_string();
    Client::start(&url(gate), &[&["--thumbprint", &pin], args].concat(), &[])
}

fn shake_hands(viewer: &mut TcpStream) {
    viewer::shake_hands(viewer);
    assert_eq!(read(viewer, SERVER_INIT.len()), SERVER_INIT);
}

fn url(gate: &Gate) -> String {
    mks_url(&gate.address.to_string(), VM, TICKET)
}

#[test]
fn a_viewer_gets_its_console_through_either_door() {
    let noise: Vec<u8> = (0..8u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for (mks, door) in [(false, "authd"), (true, "mks")] {
        for sha in [&[][..], &["--sha256"]] {
            let gate = gate(mks, &[]);
            let client = client_of(&gate, &[&["--once", "--door", door], sha].concat());
            let mut viewer = client.viewer();
            shake_hands(&mut viewer);
            echo(&mut viewer, b"x");
            echo(&mut viewer, &noise);
            drop(viewer);
            let (status, said) = client.end();
            assert_eq!(status, Some(0), "{said}");
            let heard = gate.heard.lock().unwrap();
            assert_eq!(heard.len(), 4, "USER, PASS, THUMBPRINT, CONNECT and nothing else");
            assert_eq!(heard[3], format!("CONNECT {VM} mks"));
        }
    }
}

#[test]
fn several_viewers_have_consoles_of_their_own() {
    let gate = gate(true, &[]);
    let client = client_of(&gate, &[]);
    let mut viewers: Vec<_> = (0..3).map(|_| client.viewer()).collect();
    for viewer in &mut viewers {
        shake_hands(viewer);
    }
    for (n, viewer) in viewers.iter_mut().enumerate() {
        echo(viewer, &[n as u8; 5000]);
    }
}

#[test]
fn it_goes_through_the_proxy_of_the_environment() {
    let (proxy, asked) = gate::http_proxy();
    for (mks, door) in [(false, "authd"), (true, "mks")] {
        let gate = gate(mks, &[]);
        let pin = gate.thumbprint.to_string();
        let args = ["--thumbprint", &pin, "--once", "--door", door];
        let through = format!("http://user:pa%20ss@{proxy}");
        let client =
            Client::start(&url(&gate), &args, &[("HTTPS_PROXY", &through), ("NO_PROXY", "10.0.0.0/8")]);
        let mut viewer = client.viewer();
        shake_hands(&mut viewer);
        echo(&mut viewer, b"hello");
        assert_eq!(asked.lock().unwrap().pop(), Some(gate.address.to_string()));

        let exempt = [("HTTPS_PROXY", through.as_str()), ("NO_PROXY", "127.0.0.0/8")];
        shake_hands(&mut Client::start(&url(&gate), &args, &exempt).viewer());
        assert!(asked.lock().unwrap().is_empty());
    }
    let gate = gate(true, &[]);
    let client = Client::start(
        &url(&gate),
        &["--insecure-accept-any-certificate"],
        &[("https_proxy", &format!("http://{proxy}"))],
    );
    assert!(refusal(&mut client.viewer()).contains("407"));
    let (status, said) = client.end();
    assert!(
        status == Some(1) && said.contains("USER:PASSWORD") && asked.lock().unwrap().is_empty(),
        "{said}"
    );
}

#[test]
fn a_gate_that_cannot_be_trusted_gets_no_ticket() {
    let (other, gate) = (gate(false, &[]), gate(true, &[]));
    let pin = other.thumbprint.to_string();
    for args in [&["--thumbprint", pin.as_str()][..], &[]] {
        let client = Client::start(&url(&gate), args, &[]);
        let reason = refusal(&mut client.viewer());
        assert!(reason.contains(&gate.thumbprint.to_string()), "what it showed: {reason}");
        assert_eq!(client.end().0, Some(1));
    }
    assert!(gate.heard.lock().unwrap().is_empty());
}

#[test]
fn a_console_that_is_not_the_announced_one_is_not_shown() {
    let gate = gate(false, &[Turn::OtherConsole]);
    let client = client_of(&gate, &["--door", "authd"]);
    assert!(refusal(&mut client.viewer()).contains("not the announced one"));
    assert_eq!(client.end().0, Some(1));
}

#[test]
fn what_is_final_is_said_in_words_and_ends_it() {
    for (turn, words) in [
        (Turn::Login("530 Login incorrect."), "Ask the portal for a new one"),
        (Turn::Login("550 No access to this console."), "tenant may not open"),
        (Turn::Connect("553 The ticket is for another virtual machine."), "another virtual machine"),
        (Turn::Connect("513 Refused."), "its own ticket"),
        (Turn::Connect("630 52-abc"), "two-pass"),
        (Turn::Greeting("220 VMware Authentication Daemon Version 1.10, , x\r\n"), "without TLS"),
        (Turn::Greeting("SSH-2.0-OpenSSH_9.2\r\n"), "right port"),
    ] {
        let gate = gate(false, std::slice::from_ref(&turn));
        let client = client_of(&gate, &["--door", "authd"]);
        let reason = refusal(&mut client.viewer());
        let (status, said) = client.end();
        assert!(status == Some(1) && reason.contains(words) && said.contains(words), "{turn:?}: {reason}");
    }
    for (answer, words) in [
        ("HTTP/1.1 404 Not Found\r\n\r\n", "no console door"),
        ("HTTP/1.1 200 OK\r\n\r\n", "status 200"),
        ("220 what\r\n\r\n", "not answer in HTTP"),
    ] {
        let gate = gate(true, &[Turn::Greeting(answer)]);
        let client = client_of(&gate, &[]);
        let reason = refusal(&mut client.viewer());
        assert!(reason.contains(words) && client.end().0 == Some(1), "{reason}");
    }
}

#[test]
fn what_may_pass_is_tried_again() {
    let turns = [
        Turn::Close,
        Turn::Login("552 Too many consoles are open."),
        Turn::Connect("514 The host cannot be reached."),
        Turn::Echo,
    ];
    let gate = gate(false, &turns);
    let client = client_of(&gate, &["--once", "--door", "authd"]);
    let mut viewer = client.viewer();
    shake_hands(&mut viewer);
    echo(&mut viewer, b"patience");
    drop(viewer);
    let (status, said) = client.end();
    assert_eq!((status, said.matches("trying again").count()), (Some(0), 3), "{said}");
}

#[test]
fn patience_ends_and_a_viewer_that_leaves_ends_it_at_once() {
    let turns: Vec<_> = (0..50).map(|_| Turn::Login("552 Busy.")).collect();
    let gate = gate(false, &turns);
    let client = client_of(&gate, &["--once", "--door", "authd", "--patience", "0"]);
    assert!(refusal(&mut client.viewer()).contains("too many consoles"));
    assert_eq!(client.end().0, Some(1));
    let client = client_of(&gate, &["--once", "--door", "authd", "--patience", "3600"]);
    drop(client.viewer());
    assert_eq!(client.end().0, Some(0));
}

#[test]
fn a_broken_console_comes_back_with_the_same_ticket_until_its_time_is_over() {
    let gate = gate(true, &[Turn::Break, Turn::Echo, Turn::Login("530 Login incorrect.")]);
    let client = client_of(&gate, &[]);
    let mut viewer = client.viewer();
    shake_hands(&mut viewer);
    assert!(ends(&mut viewer), "the viewer sees the end");
    let mut viewer = client.viewer();
    shake_hands(&mut viewer);
    echo(&mut viewer, b"again");
    let reason = refusal(&mut client.viewer());
    assert!(reason.contains("time for reconnecting is over"), "{reason}");
    // The console that runs is not harmed by a ticket that opens no other.
    echo(&mut viewer, b"still here");
    drop(viewer);
    assert_eq!(client.end().0, Some(1));
}

#[test]
fn a_viewer_command_is_run_and_its_end_is_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let note = dir.path().join("note");
    let gate = gate(true, &[]);
    let client = client_of(&gate, &["--viewer", &format!("echo {{host}} {{port}} > {}", note.display())]);
    let listens = client.listens;
    assert_eq!(client.end().0, Some(0));
    assert_eq!(std::fs::read_to_string(&note).unwrap(), format!("127.0.0.1 {}\n", listens.port()));
    let client = client_of(&gate, &["--viewer", "/nonexistent/viewer"]);
    let (status, said) = client.end();
    assert!(status == Some(1) && said.contains("/nonexistent/viewer"), "{said}");
}

#[test]
fn others_are_not_let_in_by_accident() {
    let output = Command::new(env!("CARGO_BIN_EXE_mksgate"))
        .args(["connect", "mks://gate/vm-61?ticket=t", "--listen", "0.0.0.0:0"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--allow-remote-viewers"));
}
