//! The whole chain, every link real but the hypervisor's own software: login at the desk, acquireTicket, `mks://`, `mksgate connect`,
//! CloneSession and AcquireTicket at govmomi's vCenter, a host of the simulator, QEMU's screen.

mod browser;
mod machine;
mod support;
mod vcenter_rig;
mod viewer;

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use browser::Browser;
use machine::{Machine, Tools};
use mksgate::client::url::ConsoleUrl;
use mksgate_bench::sim::{Esxi, EsxiConfig, Screen, Ticket, Vm};
use support::{PATIENCE, Setup, VM, mksgate};
use vcenter_rig::fake::between;
use vcenter_rig::http::ask;
use vcenter_rig::vcsim::Vcsim;
use vcenter_rig::webmks::WebMks;
use viewer::Client;

#[test]
fn from_the_login_at_the_desk_to_the_pixels_of_the_machine() {
    let Some(tools) = Tools::find() else { return };
    let setup = Setup::new();
    let dir = setup.dir.path().to_owned();
    let machine = Machine::boot(&dir);
    let mut config = EsxiConfig::default().vm(Vm::new(VM, Screen::vnc(machine.vnc)));
    for n in 1..20 {
        config = config.ticket(Ticket::new(&format!("console-ticket-{n}"), VM).one_time());
    }
    let host = Esxi::start(config).unwrap();
    let Some(vcenter) = Vcsim::start(&host, &[]) else { return };
    let moref = &vcenter.vms[0];
    let desk = desk(&dir, moref);
    let gate = setup.with(&vcenter.account(&dir)).with(&desk).start();
    let direct = machine.settle(&tools);
    assert!(tools.colours(&direct) >= 2, "a blank screen proves nothing");
    for door in ["mks", "authd"] {
        let url = acquire(gate.tls);
        assert!(url.starts_with("mks://127.0.0.1:"), "{url}");
        let address = if door == "authd" { gate.authd } else { gate.tls }.to_string();
        let args =
            ["--insecure-accept-any-certificate", "--proxy", "none", "--door", door, "--address", &address];
        let client = Client::start(&url, &args, &[]);
        let seen = dir.join(format!("{door}.png"));
        tools.capture(client.listens, &seen).unwrap();
        assert_eq!(tools.differing_pixels(&direct, &seen), "0", "through {door}");
    }
    let asked = vcenter.methods();
    let first = ["RetrieveServiceContent", "Login", "AcquireCloneTicket"];
    let console = ["RetrieveServiceContent", "CloneSession", "AcquireTicket"];
    assert_eq!(asked, [&first[..], &console, &["AcquireCloneTicket"], &console].concat());
}

/// The same in a browser: the page's WebSocket, and the WebMKS ticket that the vCenter gives for it.
#[test]
fn from_the_login_at_the_desk_to_the_pixels_in_a_browser() {
    let Some(tools) = Tools::find() else { return };
    let Some(mut browser) = Browser::start() else { return };
    let setup = Setup::new();
    let dir = setup.dir.path().to_owned();
    let machine = Machine::boot(&dir);
    let webmks = WebMks::start(machine.vnc);
    let nobody = Esxi::start(EsxiConfig::default()).unwrap();
    let port = webmks.address.port().to_string();
    let consoles = ["-console-port", &port, "-console-thumbprint", &webmks.thumbprint];
    let Some(vcenter) = Vcsim::start(&nobody, &consoles) else { return };
    let desk = desk(&dir, &vcenter.vms[0]);
    let gate = setup.with(&vcenter.account(&dir)).with(&desk).start();
    let direct = machine.settle(&tools);
    let url = ConsoleUrl::parse(&acquire(gate.tls)).unwrap();
    browser.open(&format!("https://{}/console/#ticket={}", gate.tls, url.ticket.as_str()));
    browser.wait("#state[data-state=open]");
    let seen = dir.join("browser.png");
    let began = Instant::now();
    loop {
        browser.canvas(&seen);
        if tools.differing_pixels(&direct, &seen) == "0" {
            break;
        }
        assert!(began.elapsed() < 3 * PATIENCE, "the canvas never came to hold the machine's screen");
    }
    assert_eq!((webmks.used(), nobody.accepted()), (1, 0));
    let asked = vcenter.methods();
    assert_eq!(asked[3..], ["RetrieveServiceContent", "CloneSession", "AcquireTicket"], "{asked:?}");
}

/// `[desk]`, its users' file in `dir`: vm-61 of ann@blue is this machine of the vCenter.
fn desk(dir: &Path, moref: &str) -> String {
    std::fs::write(dir.join("users.toml"), user("ann@blue", "open sesame")).unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(dir.join("users.toml"), std::fs::Permissions::from_mode(0o600)).unwrap();
    format!(
        "[desk]\nusers = \"users.toml\"\nclone_tickets = true\n[desk.orgs.blue]\ntenant = \"acme\"\nvms.vm-61 = {{ vcenter = \"lab\", moref = \"{moref}\" }}\n"
    )
}

/// Logs in and acquires: an `mks://` URL.
fn acquire(desk: SocketAddr) -> String {
    let basic = STANDARD.encode("ann@blue:open sesame");
    let accept = "Accept: application/*+xml;version=5.5\r\n";
    let login =
        ask(desk, &format!("POST /api/sessions HTTP/1.1\r\nAuthorization: Basic {basic}\r\n{accept}"), "");
    let token = login.header("x-vcloud-authorization").expect("a login").to_owned();
    let line = format!(
        "POST /api/vApp/vm-61/screen/action/acquireTicket HTTP/1.1\r\nx-vcloud-authorization: {token}\r\n{accept}"
    );
    let acquired = ask(desk, &line, "");
    between(&acquired.body, "v1.5\">", "</ScreenTicket>").expect("a ticket").to_owned()
}

fn user(name: &str, password: &str) -> Vec<u8> {
    let mut child = mksgate()
        .args(["desk", "password", name])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(password.as_bytes()).unwrap();
    child.wait_with_output().unwrap().stdout
}
