//! `mksgate connect` through the real appliance to a simulated host: the whole way of a console, its break, its return, its end.

mod support;
mod viewer;

use std::net::{SocketAddr, TcpStream};

use mksgate::client::url::mks_url;
use mksgate_bench::sim::{Cut, Esxi, EsxiConfig, Screen, Ticket, Vm};
use support::{Appliance, HOST_TICKET, Setup, VM};
use viewer::{Client, ends, read, refusal};

fn host() -> Esxi {
    let config =
        EsxiConfig::default().vm(Vm::new(VM, Screen::desktop())).ticket(Ticket::new(HOST_TICKET, VM));
    Esxi::start(config).unwrap()
}

fn client(gate: &Appliance, ticket: &str, door: &str, vm: &str) -> Client {
    let address: SocketAddr = if door == "authd" { gate.authd } else { gate.tls };
    let ca = gate.dir.path().join("cert.pem");
    let pem = std::fs::read(&ca).unwrap();
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).unwrap();
    let pin = mksgate::tls::Thumbprint::sha1(&pem.contents).to_string();
    Client::start(&mks_url(&address.to_string(), vm, ticket), &["--door", door, "--thumbprint", &pin], &[])
}

/// The desktop's name, which stands at the end of ServerInit.
fn screen(viewer: &mut TcpStream) -> Vec<u8> {
    viewer::shake_hands(viewer);
    let len = u32::from_be_bytes(*read(viewer, 24).last_chunk().unwrap());
    read(viewer, len as usize)
}

#[test]
fn a_console_breaks_comes_back_and_is_revoked() {
    for door in ["authd", "mks"] {
        let (mut gate, host) = (Setup::new().start(), host());
        let ticket = gate.ticket(&host);
        let client = client(&gate, &ticket, door, VM);
        let mut viewer = client.viewer();
        let name = screen(&mut viewer);
        assert!(!name.is_empty());

        host.cut(Cut::Reset);
        assert!(ends(&mut viewer), "the viewer sees the end");
        let mut viewer = client.viewer();
        assert_eq!(screen(&mut viewer), name, "the same ticket, the same console");

        let opened = gate.wait_log(|line| line["fields"]["message"] == "console opened");
        let jti = opened["fields"]["jti"].as_str().unwrap().to_owned();
        let revoked = gate.command(&["ticket", "revoke", &jti]);
        assert!(revoked.status.success(), "{}", String::from_utf8_lossy(&revoked.stderr));
        assert!(ends(&mut viewer), "revoked, it closes");
        let reason = refusal(&mut client.viewer());
        assert!(reason.contains("or it was revoked"), "{reason}");
        assert_eq!(client.end().0, Some(1));
    }
}

#[test]
fn another_machine_than_the_tickets_is_not_shown() {
    let (gate, host) = (Setup::new().start(), host());
    let client = client(&gate, &gate.ticket(&host), "mks", "/vmfs/volumes/datastore 1/other.vmx");
    let reason = refusal(&mut client.viewer());
    assert!(reason.contains("another virtual machine"), "{reason}");
    assert_eq!(client.end().0, Some(1));
}
