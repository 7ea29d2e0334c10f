//! `mksgate console`: every form in which consoles are handed out, against the appliance itself, with a VNC viewer at the end.

mod support;
mod vcenter_rig;
mod viewer;

use std::process::{Command, Stdio};

use mksgate::ticket::TargetKind;
use mksgate_bench::sim::{Esxi, EsxiConfig, Screen, Ticket, Vm};
use support::{Appliance, HOST_TICKET, Setup, VM};
use vcenter_rig::desk::{PASSWORD, secret, user};
use vcenter_rig::fake::{Answer, Console, FakeVcenter};
use viewer::{Client, echo, shake_hands};

struct Rig {
    gate: Appliance,
    vcenter: FakeVcenter,
    host: Esxi,
    pin: String,
}

/// A desk with vm-61 for ann@blue, a vCenter behind, and a host whose machine talks TLS no. 2.
fn rig() -> Rig {
    let mut config =
        EsxiConfig::default().vm(Vm::new(VM, Screen::echo())).ticket(Ticket::new(HOST_TICKET, VM));
    for n in 1..50 {
        config = config.ticket(Ticket::new(&format!("console-ticket-{n}"), VM).one_time());
    }
    let host = Esxi::start(config).unwrap();
    let console = Console { host: host.addr(), thumbprint: host.thumbprint_sha1(), path: VM.into() };
    let vcenter = FakeVcenter::start(console, |_| Answer::Usual);
    let setup = Setup::new();
    let dir = setup.dir.path().to_owned();
    secret(&dir.join("users.toml"), user("ann@blue", PASSWORD));
    secret(&dir.join("password"), format!("{PASSWORD}\n"));
    let desk =
        "[desk]\nusers = \"users.toml\"\n[desk.orgs.blue]\ntenant = \"acme\"\nvms.vm-61.vcenter = \"lab\"\n";
    let gate = setup.with(&vcenter.account("lab", &dir)).with(desk).start();
    let pem = std::fs::read(gate.dir.path().join("cert.pem")).unwrap();
    let der = rustls::pki_types::pem::PemObject::from_pem_slice(&pem).unwrap();
    let der: rustls::pki_types::CertificateDer<'static> = der;
    let pin = mksgate::tls::Thumbprint::sha256(&der).to_string();
    Rig { gate, vcenter, host, pin }
}

impl Rig {
    fn cell(&self, action: &str) -> String {
        format!("https://{}/api/vApp/vm-61/screen/action/{action}", self.gate.tls)
    }

    fn password_file(&self) -> String {
        self.gate.dir.path().join("password").display().to_string()
    }

    fn client(&self, url: &str, args: &[&str], environment: &[(&str, &str)]) -> Client {
        let all = [&["--no-viewer", "--once", "--thumbprint", &self.pin], args].concat();
        Client::run("console", url, &all, environment)
    }

    /// Its exit code and its words, where it does not come to serve a viewer.
    fn fails(&self, args: &[&str]) -> (i32, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_mksgate"))
            .args(["console", "--no-viewer", "--listen", "127.0.0.1:0", "--proxy", "none"])
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }
}

/// A viewer sees the console, and its end ends the client well. What the client said meanwhile.
fn views(client: Client) -> String {
    let mut viewer = client.viewer();
    shake_hands(&mut viewer);
    echo(&mut viewer, b"hello console");
    drop(viewer);
    let (status, said) = client.end();
    assert_eq!(status, Some(0), "{said}");
    said
}

#[test]
fn a_person_logs_in_at_the_cell_and_sees_the_machine() {
    let rig = rig();
    let file = rig.password_file();
    for action in ["acquireTicket", "acquireMksTicket"] {
        let args = ["-c", "ann@blue", "--password-file", &file];
        let said = views(rig.client(&rig.cell(action), &args, &[]));
        assert!(!said.contains("command line"), "{said}");
    }
    views(rig.client(&rig.cell("acquireTicket"), &["-c", "ann@blue"], &[("MKSGATE_PASSWORD", PASSWORD)]));
    let given = format!("ann@blue:{PASSWORD}");
    let said = views(rig.client(&rig.cell("acquireTicket"), &["-c", &given], &[]));
    assert!(said.contains("seen by every user of this host") && !said.contains(PASSWORD), "{said}");
    // Each console was asked for at the vCenter, and each login was ended.
    let asked = rig.vcenter.methods();
    assert_eq!(asked.iter().filter(|method| *method == "AcquireTicket").count(), 4);
}

#[test]
fn what_the_cell_says_is_said_to_the_person() {
    let rig = rig();
    let (url, pin, file) = (rig.cell("acquireTicket"), rig.pin.as_str(), rig.password_file());
    let right = ["--password-file", file.as_str()];
    let wrong = rig.gate.dir.path().join("wrong");
    std::fs::write(&wrong, "guess").unwrap();
    let wrong = wrong.display().to_string();
    let other = url.replace("vm-61", "vm-7");
    for (args, words) in [
        (
            vec![url.as_str(), "--thumbprint", pin, "-c", "ann@blue", "--password-file", &wrong],
            "status 401: Unauthorized",
        ),
        (
            [&[other.as_str(), "--thumbprint", pin, "-c", "ann@blue"][..], &right].concat(),
            "No access to entity",
        ),
        (vec![url.as_str(), "--thumbprint", pin, "-c", "ann@blue"], "no password"),
        ([&[url.as_str(), "--thumbprint", pin][..], &right].concat(), "-c USER@ORG"),
        ([&[url.as_str(), "--thumbprint", pin, "-c", "ann"][..], &right].concat(), "USER@ORG"),
        ([&[url.as_str(), "-c", "ann@blue"][..], &right].concat(), "certificate is not trusted"),
        (vec!["https://127.0.0.1/api/org", "-c", "ann@blue"], "acquireTicket"),
        (vec!["ftp://127.0.0.1/"], "mks://"),
    ] {
        let (code, said) = rig.fails(&args);
        assert!(code == 1 && said.contains(words), "{args:?}: {said}");
        assert!(!said.contains(PASSWORD) && !said.contains("guess"), "{said}");
    }
    let nowhere = "https://127.0.0.1:9/api/vApp/vm-61/screen/action/acquireTicket";
    let (code, said) = rig.fails(&[&[nowhere, "-c", "ann@blue"][..], &right].concat());
    assert!(code == 1 && said.contains("cannot connect to 127.0.0.1:9"), "{said}");
}

#[test]
fn a_clone_ticket_becomes_a_console_and_its_session_ends_with_it() {
    let rig = rig();
    let mut claims = support::claims(rig.vcenter.address, "");
    claims.vm = "vm-61".into();
    (claims.target.kind, claims.target.ticket) = (TargetKind::Vcenter, None);
    claims.target.thumbprints.clear();
    let sealed = rig.gate.keys.seal(&claims).unwrap();
    let url = format!("vmrc://clone:{sealed}@{}/?moid=vm-61", rig.gate.tls);
    views(rig.client(&url, &[], &[]));
    rig.vcenter.wait_calls("Logout", 1);
    let asked = rig.vcenter.methods();
    assert_eq!(asked, ["RetrieveServiceContent", "Login", "AcquireTicket", "Logout"]);
    let spent = format!("vmrc://clone:nonsense@{}/?moid=vm-61", rig.gate.tls);
    let (code, said) = rig.fails(&[&spent, "--thumbprint", &rig.pin]);
    assert!(code == 1 && said.contains("InvalidLogin") && said.contains("Ask for a new one"), "{said}");
    let (code, said) = rig.fails(&[&url.replace("moid=vm-61", "moid=vm-7"), "--thumbprint", &rig.pin]);
    assert!(code == 1 && said.contains("NoPermission"), "{said}");
}

#[test]
fn tickets_for_raw_doors_are_taken_as_connect_takes_them() {
    let rig = rig();
    let ticket = rig.gate.ticket(&rig.host);
    let vm = VM.replace(' ', "%20");
    views(rig.client(&format!("mks://{}/{vm}?ticket={ticket}", rig.gate.tls), &[], &[]));
    let ticket = rig.gate.ticket(&rig.host);
    views(rig.client(&format!("vmrc://{}/?mksticket={ticket}&path={vm}", rig.gate.tls), &[], &[]));
}

#[test]
fn a_browsers_console_is_shown_in_a_viewer() {
    let rig = rig();
    let ticket = rig.gate.ticket(&rig.host);
    views(rig.client(&format!("wss://{}/ticket/{ticket}", rig.gate.tls), &[], &[]));
    let ticket = rig.gate.ticket(&rig.host);
    let url = format!("wss://{}/443;{ticket}", rig.gate.tls);
    // Ten megabytes and back: neither direction waits for the other.
    let client = rig.client(&url, &["--vm", VM], &[]);
    let mut viewer = client.viewer();
    shake_hands(&mut viewer);
    echo(&mut viewer, &vec![7; 10 << 20]);
    drop(viewer);
    assert_eq!(client.end().0, Some(0));
    for (path, args, words) in [
        ("ticket/nonsense", &[][..], "Ask the portal for a new one"),
        ("443;TICKET", &[][..], "--vm"),
        ("443;TICKET", &["--vm", "another.vmx"][..], "Ask the portal for a new one"),
    ] {
        let path = path.replace("TICKET", &rig.gate.ticket(&rig.host));
        let client = rig.client(&format!("wss://{}/{path}", rig.gate.tls), args, &[]);
        let reason = viewer::refusal(&mut client.viewer());
        assert!(reason.contains(words), "{path}: {reason}");
        assert_eq!(client.end().0, Some(1));
    }
}
