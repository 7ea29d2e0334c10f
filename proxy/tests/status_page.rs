//! The status page in a real browser: it draws what the appliance counts, from nowhere else.

mod browser;
mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use browser::Browser;
use mksgate_bench::sim::{Esxi, EsxiConfig, Screen, Ticket, Vm};
use support::{HOST_TICKET, Setup, VM, client};

const TENANTS: &str = "[tenants.acme]\nmax_sessions = 100\ntargets = [\"127.0.0.0/8\"]\n\
                       [tenants.globex]\nmax_sessions = 100\ntargets = [\"127.0.0.0/8\"]\n";

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn the_page_draws_what_the_appliance_counts_and_asks_nobody_else() {
    let admin = "[admin]\nsocket = \"admin.sock\"\nmetrics = \"127.0.0.1:0\"";
    let mut gate = Setup::new().with(admin).tenants(TENANTS).start();
    let port: SocketAddr = gate
        .seen()
        .iter()
        .find(|line| line["fields"]["message"] == "metrics")
        .and_then(|line| line["fields"]["address"].as_str()?.parse().ok())
        .expect("the log says where the port is");
    let host = Esxi::start(
        EsxiConfig::default().vm(Vm::plain(VM, Screen::echo())).ticket(Ticket::new(HOST_TICKET, VM)),
    )
    .unwrap();
    for path in ["/", "/status.js", "/status.css"] {
        let answer = get(port, path);
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
        assert!(
            answer.contains("content-security-policy: default-src 'none'; script-src 'self'"),
            "{answer}"
        );
        let body = answer.split_once("\r\n\r\n").unwrap().1.replace("http://www.w3.org/2000/svg", "");
        assert!(!body.contains("://"), "{path} names another host");
    }
    let Some(mut browser) = Browser::start() else { return };
    browser.viewport(1280, 1340);
    browser.open(&format!("http://{port}/"));
    browser.until("document.querySelector('#state').textContent === 'serving'");
    let open = |tenant: &str| {
        let ticket = gate.ticket_with(&host, |claims| claims.tenant = tenant.into());
        client::open(client::authd(gate.authd), &ticket, VM).unwrap()
    };
    let mut consoles: Vec<TcpStream> = ["acme", "acme", "acme", "globex", "globex"].map(open).into();
    for console in &mut consoles {
        console.write_all(&[7; 4096]).unwrap();
        console.read_exact(&mut [0; 4096]).unwrap();
    }
    let refused = client::open(client::authd(gate.authd), "no.such.ticket", VM);
    assert!(refused.is_err());
    let shows = |part: &str, text: &str| {
        format!("document.querySelector('{part}').innerText.replace(/\\s+/g, ' ').includes('{text}')")
    };
    browser.until(&shows("#sessions-legend", "acme 3"));
    browser.until(&shows("#sessions-legend", "globex 2"));
    browser.until(&shows("#figures", "5 consoles"));
    browser.until(&shows("#bytes-legend", "interactive"));
    browser.until(&shows("#refused-legend", "ticket_malformed"));
    browser.until("document.querySelectorAll('#sessions polygon').length === 2");
    browser.until("[...document.querySelectorAll('#latencies tr:not(.idle)')].some((row) => row.cells[0].textContent === 'backend handshake' && row.cells[1].textContent === '5')");
    browser.screenshot("status-page");
    drop(consoles);
    browser.until(&shows("#figures", "0 consoles"));
    let log = browser.log();
    assert_eq!(log["errors"].as_array().map_or(0, Vec::len), 0, "{log}");
    assert!(!log["console"].to_string().contains("Content Security Policy"), "{log}");
    gate.signal(nix::sys::signal::Signal::SIGTERM);
    gate.wait_end();
    browser.until("document.querySelector('#state').className === 'bad'");
}
