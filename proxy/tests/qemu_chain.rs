//! The whole chain, every link real but the hypervisor's own software: login at the desk, acquireTicket, `mks://`, `mksgate connect`,
//! CloneSession and AcquireTicket at govmomi's vCenter, a host of the simulator, QEMU's screen.

mod machine;
mod support;
mod vcenter_rig;
mod viewer;

use std::io::Write;
use std::process::Stdio;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use machine::{Machine, Tools};
use mksgate_bench::sim::{Esxi, EsxiConfig, Screen, Ticket, Vm};
use support::{Setup, VM, mksgate};
use vcenter_rig::fake::between;
use vcenter_rig::http::ask;
use vcenter_rig::vcsim::Vcsim;
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
    let (id, moref) = ("vm-61", &vcenter.vms[0]);
    std::fs::write(dir.join("users.toml"), user("ann@blue", "open sesame")).unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(dir.join("users.toml"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let desk = format!(
        "[desk]\nusers = \"users.toml\"\nclone_tickets = true\n[desk.orgs.blue]\ntenant = \"acme\"\nvms.{id} = {{ vcenter = \"lab\", moref = \"{moref}\" }}\n"
    );
    let gate = setup.with(&vcenter.account(&dir)).with(&desk).start();
    let direct = machine.settle(&tools);
    assert!(tools.colours(&direct) >= 2, "a blank screen proves nothing");
    for door in ["mks", "authd"] {
        let basic = STANDARD.encode("ann@blue:open sesame");
        let accept = "Accept: application/*+xml;version=5.5\r\n";
        let login = ask(
            gate.tls,
            &format!("POST /api/sessions HTTP/1.1\r\nAuthorization: Basic {basic}\r\n{accept}"),
            "",
        );
        let token = login.header("x-vcloud-authorization").expect("a login").to_owned();
        let acquire = format!(
            "POST /api/vApp/{id}/screen/action/acquireTicket HTTP/1.1\r\nx-vcloud-authorization: {token}\r\n{accept}"
        );
        let acquired = ask(gate.tls, &acquire, "");
        let url = between(&acquired.body, "v1.5\">", "</ScreenTicket>").expect("a ticket").to_owned();
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
