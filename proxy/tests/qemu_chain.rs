//! The whole chain, every link real but the hypervisor's own software: login at the desk, acquireTicket, `mks://`, `mksgate connect`,
//! CloneSession and AcquireTicket at govmomi's vCenter, a host of the simulator, QEMU's screen.

mod browser;
mod machine;
mod support;
mod vcenter_rig;
mod viewer;

use std::path::Path;
use std::time::Instant;

use browser::Browser;
use machine::{Machine, Tools};
use mksgate::client::url::ConsoleUrl;
use mksgate_bench::sim::{Esxi, EsxiConfig, Screen, Ticket, Vm};
use support::{PATIENCE, Setup, VM};
use vcenter_rig::desk::{PASSWORD, acquire, secret, user};
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
    secret(&dir.join("users.toml"), user("ann@blue", PASSWORD));
    format!(
        "[desk]\nusers = \"users.toml\"\nclone_tickets = true\n[desk.orgs.blue]\ntenant = \"acme\"\nvms.vm-61 = {{ vcenter = \"lab\", moref = \"{moref}\" }}\n"
    )
}
