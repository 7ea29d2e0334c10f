//! The status page, on the port of `admin.metrics` and by `mksgate status --listen`, in a real browser: it draws what the
//! appliance counts, from nowhere else.

mod browser;
mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use browser::Browser;
use mksgate_bench::sim::{Esxi, EsxiConfig, Screen, Ticket, Vm};
use nix::sys::signal::Signal;
use support::{Appliance, HOST_TICKET, Setup, VM, client, mksgate};

const TENANTS: &str = "[tenants.acme]\nmax_sessions = 100\ntargets = [\"127.0.0.0/8\"]\n\
                       [tenants.globex]\nmax_sessions = 100\ntargets = [\"127.0.0.0/8\"]\n";

fn get(address: SocketAddr, path: &str) -> String {
    ask(address, &address.to_string(), &format!("GET {path}"))
}

/// A request of somebody who calls the port `host`.
fn ask(address: SocketAddr, host: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "{request} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// A running `mksgate status --listen`.
struct Page {
    child: Child,
    address: SocketAddr,
}

impl Page {
    fn start(socket: &Path) -> Self {
        let mut child = page_of(socket, "127.0.0.1:0").stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("http://").and_then(|rest| rest.strip_suffix('/'));
        let address = address.and_then(|address| address.parse().ok());
        Self { child, address: address.unwrap_or_else(|| panic!("it says where it listens: {line:?}")) }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn page_of(socket: &Path, listen: &str) -> Command {
    let mut command = mksgate();
    command.args(["status", "--listen", listen, "--socket"]).arg(socket);
    command
}

/// Files of its own only, under a strict policy, for who calls the port by a name of this host's.
fn strict(port: SocketAddr) {
    for path in ["/", "/status.js", "/status.css"] {
        let answer = get(port, path);
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
        for header in [
            "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';",
            "x-content-type-options: nosniff",
            "cache-control: no-store",
        ] {
            assert!(answer.contains(header), "{header}: {answer}");
        }
        let body = answer.split_once("\r\n\r\n").unwrap().1.replace("http://www.w3.org/2000/svg", "");
        assert!(!body.contains("://"), "{path} names another host");
    }
    // A site of somebody else's whose name leads here reads nothing; whoever comes through a tunnel does.
    for path in ["/", "/metrics", "/ready"] {
        for host in ["evil.example", &format!("evil.example:{}", port.port()), "127.0.0.1.evil.example", ""] {
            let answer = ask(port, host, &format!("GET {path}"));
            assert!(answer.starts_with("HTTP/1.1 421"), "{host:?} {path}: {answer}");
            assert!(answer.contains("ask for 127.0.0.1") && !answer.contains("mksgate_"), "{answer}");
        }
        for host in ["localhost:8080", "[::1]:1", "127.0.0.1"] {
            let answer = ask(port, host, &format!("GET {path}"));
            assert!(answer.starts_with("HTTP/1.1 200"), "{host} {path}: {answer}");
        }
    }
}

fn host() -> Esxi {
    Esxi::start(EsxiConfig::default().vm(Vm::plain(VM, Screen::echo())).ticket(Ticket::new(HOST_TICKET, VM)))
        .unwrap()
}

fn console(gate: &Appliance, host: &Esxi, tenant: &str) -> TcpStream {
    let ticket = gate.ticket_with(host, |claims| claims.tenant = tenant.into());
    client::open(client::authd(gate.authd), &ticket, VM).unwrap()
}

fn metrics_port(gate: &Appliance) -> SocketAddr {
    let line = gate.seen().iter().find(|line| line["fields"]["message"] == "metrics");
    let address = line.and_then(|line| line["fields"]["address"].as_str()?.parse().ok());
    address.expect("the log says where the port is")
}

/// The table of latencies has so many of a stage.
fn timed(stage: &str, count: u32) -> String {
    format!(
        "[...document.querySelectorAll('#latencies tr:not(.idle)')].some((row) => row.cells[0].textContent === '{stage}' \
         && row.cells[1].textContent === '{count}')"
    )
}

#[test]
fn a_page_of_its_own_needs_no_port_of_the_service() {
    let mut gate = Setup::new().tenants(TENANTS).start();
    let host = host();
    // These came before the page was opened.
    let open = |gate: &Appliance| drop(console(gate, &host, "acme"));
    (0..3).for_each(|_| open(&gate));
    let mut page = Page::start(&gate.dir.path().join("admin.sock"));
    strict(page.address);
    let metrics = get(page.address, "/metrics");
    assert!(metrics.contains("application/openmetrics-text") && metrics.ends_with("# EOF\n"), "{metrics}");
    // Nothing else of the admin API, and nothing that changes anything.
    for path in ["/v1/sessions", "/v1/status", "/openapi.json", "//v1/sessions", "/metrics/../v1/sessions"] {
        assert!(get(page.address, path).starts_with("HTTP/1.1 404"), "{path}");
    }
    for request in ["POST /metrics", "DELETE /ready", "POST /"] {
        let answer = ask(page.address, "localhost", request);
        assert!(answer.starts_with("HTTP/1.1 405"), "{request}: {answer}");
    }
    let mut browser = Browser::start();
    let state = |text: &str| format!("document.querySelector('#state').textContent.includes('{text}')");
    if let Some(browser) = &mut browser {
        browser.open(&format!("http://{}/", page.address));
        browser.until(&state("serving"));
    }
    // The appliance may end and come back: the page says so and goes on.
    gate.restart(&[Signal::SIGTERM], || {
        let answer = get(page.address, "/metrics");
        assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("admin.sock"), "{answer}");
        if let Some(browser) = &mut browser {
            browser.until(&state("start the service"));
        }
    });
    assert!(get(page.address, "/ready").starts_with("HTTP/1.1 200"));
    open(&gate);
    if let Some(browser) = &mut browser {
        browser.until(&state("serving"));
        // One, although the counters that the page began with stood at three.
        browser.until(&timed("backend handshake", 1));
        assert_eq!(browser.log()["errors"], serde_json::json!([]));
    }
    // Ctrl-C is its end, not a failure.
    let pid = nix::unistd::Pid::from_raw(page.child.id() as i32);
    nix::sys::signal::kill(pid, Signal::SIGINT).unwrap();
    assert!(page.child.wait().unwrap().success());
}

#[test]
fn a_page_of_its_own_is_for_this_host_only_and_says_who_has_its_port() {
    let nowhere = Path::new("/nonexistent/admin.sock");
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:9465"] {
        let refused = page_of(nowhere, address).output().unwrap();
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{said}");
        for part in [address, "is not a loopback address", "127.0.0.1", "ssh -L"] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
    let thief = TcpListener::bind("127.0.0.1:0").unwrap();
    let refused = page_of(nowhere, &thief.local_addr().unwrap().to_string()).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    let holder = format!("(pid {})", std::process::id());
    assert!(!refused.status.success() && said.contains(&holder), "{said}");
    assert_eq!(page_of(nowhere, "localhost").output().unwrap().status.code(), Some(2), "no address");
}

#[test]
fn a_scraper_may_come_by_a_name_that_the_operator_gave() {
    let names = "metrics_names = [\"cell1.example\", \"10.1.2.3\"]";
    let admin = format!("[admin]\nsocket = \"admin.sock\"\nmetrics = \"127.0.0.1:0\"\n{names}");
    let gate = Setup::new().with(&admin).start();
    let port = metrics_port(&gate);
    for host in ["cell1.example", "Cell1.Example:9464", "10.1.2.3:80", "localhost"] {
        let answer = ask(port, host, "GET /metrics");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("mksgate_"), "{host}: {answer}");
    }
    for host in ["cell1.example.evil.example", "evil.example", "cell2.example:9464"] {
        let answer = ask(port, host, "GET /metrics");
        assert!(answer.starts_with("HTTP/1.1 421") && answer.contains("admin.metrics_names"), "{answer}");
    }
    let path = gate.dir.path().join("mksgate.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("cell1.example", "cell1.example:9464")).unwrap();
    let checked = mksgate().args(["check", "--config"]).arg(&path).output().unwrap();
    let said = String::from_utf8_lossy(&checked.stderr) + String::from_utf8_lossy(&checked.stdout);
    assert!(!checked.status.success() && said.contains("admin.metrics_names"), "{said}");
    assert!(said.contains("without a port"), "{said}");
}

#[test]
fn the_page_draws_what_the_appliance_counts_and_asks_nobody_else() {
    let admin = "[admin]\nsocket = \"admin.sock\"\nmetrics = \"127.0.0.1:0\"";
    let mut gate = Setup::new().with(admin).tenants(TENANTS).start();
    let port = metrics_port(&gate);
    let host = host();
    strict(port);
    let Some(mut browser) = Browser::start() else { return };
    browser.viewport(1280, 1700);
    browser.open(&format!("http://{port}/"));
    browser.until("document.querySelector('#state').textContent === 'serving'");
    let open = |tenant: &str| console(&gate, &host, tenant);
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
    browser.until(&timed("backend handshake", 5));
    // The same over time: a map for eyes, a sentence for a screen reader.
    let maps = "[...document.querySelectorAll('#heat figure')]";
    browser.until(&format!(
        "{maps}.some((map) => map.querySelector('figcaption').textContent === 'backend handshake' \
         && /^backend handshake over time: p99 [0-9.]+ (µs|ms|s) .*, at most [0-9.]+ (µs|ms|s) /.test(map.querySelector('svg').getAttribute('aria-label')) \
         && [...map.querySelectorAll('.cell title')].reduce((all, cell) => all + Number(cell.textContent.split(': ')[1]), 0) === 5)"
    ));
    browser.screenshot("status-page");
    drop(consoles);
    browser.until(&shows("#figures", "0 consoles"));
    let log = browser.log();
    assert_eq!(log["errors"].as_array().map_or(0, Vec::len), 0, "{log}");
    assert!(!log["console"].to_string().contains("Content Security Policy"), "{log}");
    gate.signal(Signal::SIGTERM);
    gate.wait_end();
    browser.until("document.querySelector('#state').className === 'bad'");
}
