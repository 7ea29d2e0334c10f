//! Consoles by way of a vCenter: a real vSphere server behind (govmomi's simulator), a real vSphere client in front (pyvmomi).

mod support;
mod vcenter_rig;

use std::net::SocketAddr;
use std::process::Command;
use std::time::Instant;

use mksgate::ticket::{Claims, TargetKind};
use mksgate_bench::sim::{Esxi, EsxiConfig, Fault, Faults, Screen, Step, Ticket, Vm};
use support::client::{self, echoes};
use support::{Appliance, Setup, VM};
use vcenter_rig::fake::envelope;
use vcenter_rig::http::{Response, ask};
use vcenter_rig::vcsim::{Vcsim, host};

fn gate_for(vcenter: &Vcsim, power: &str) -> Appliance {
    let setup = Setup::new();
    let account = vcenter.account(setup.dir.path());
    let tenant = format!(
        "[tenants.acme]\nmax_sessions = 100\nconsole_power = \"{power}\"\ntargets = [\"127.0.0.0/8\"]\n"
    );
    setup.with(&account).tenants(&tenant).start()
}

/// A ticket for a VM at a vCenter, opened with the service account.
fn ticket(gate: &Appliance, vcenter: &Vcsim, vm: &str, change: impl FnOnce(&mut Claims)) -> String {
    let mut claims = support::claims(vcenter.address, "");
    claims.vm = vm.into();
    claims.target.kind = TargetKind::Vcenter;
    claims.target.ticket = None;
    claims.target.thumbprints.clear();
    change(&mut claims);
    gate.keys.seal(&claims).unwrap()
}

#[test]
fn a_warm_session_costs_one_call_per_console() {
    let host = host(1);
    let Some(vcenter) = Vcsim::start(&host, &[]) else { return };
    let gate = gate_for(&vcenter, "none");
    let vm = &vcenter.vms[0];
    let sealed = ticket(&gate, &vcenter, vm, |_| {});
    let first = echoes(client::open(client::authd(gate.authd), &sealed, vm).unwrap());
    assert_eq!(vcenter.methods(), ["RetrieveServiceContent", "Login", "AcquireTicket"]);
    // The same ticket again, which is a reconnect: the host's own works once, so another one is fetched.
    let second = echoes(client::open(client::mks(gate.tls), &sealed, vm).unwrap());
    assert_eq!(vcenter.calls(), [("AcquireTicket".to_owned(), vm.clone())]);
    assert_eq!(gate.metric("mksgate_vcenter_calls_total", &["vcenter=\"lab\""]), 4.0);
    assert_eq!(gate.metric("mksgate_vcenter_sessions", &[]), 1.0);
    drop((first, second));
    gate.stop();
    assert_eq!(vcenter.methods(), ["Logout"]);
}

#[test]
fn a_vm_that_is_off_stays_off_unless_the_tenant_says_otherwise() {
    let host = host(1);
    let Some(vcenter) = Vcsim::start(&host, &["-off"]) else { return };
    let vm = &vcenter.vms[0];
    for (power, code) in [("none", "511"), ("operations", "511")] {
        let mut gate = gate_for(&vcenter, power);
        let sealed = ticket(&gate, &vcenter, vm, |_| {});
        let refused = client::open(client::authd(gate.authd), &sealed, vm).unwrap_err();
        assert!(refused.starts_with(code), "{refused}");
        gate.wait_refused("vcenter_powered_off");
        assert!(!vcenter.methods().contains(&"PowerOnVM_Task".to_owned()));
    }
    let gate = gate_for(&vcenter, "implicit");
    let sealed = ticket(&gate, &vcenter, vm, |_| {});
    echoes(client::open(client::authd(gate.authd), &sealed, vm).unwrap());
    assert!(vcenter.methods().contains(&"PowerOnVM_Task".to_owned()));
}

/// A client of `/sdk` by hand.
struct Sdk {
    gate: SocketAddr,
    cookie: String,
}

impl Sdk {
    fn open(gate: &Appliance, sealed: &str) -> Self {
        let mut sdk = Self { gate: gate.tls, cookie: String::new() };
        let (this, ticket) = ("SessionManager", format!("<cloneTicket>{sealed}</cloneTicket>"));
        let opened = sdk.ask("CloneSession", "SessionManager", this, &ticket);
        assert_eq!(opened.status, 200, "{opened:?}");
        sdk.cookie = opened.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
        sdk
    }

    fn ask(&self, method: &str, kind: &str, id: &str, parameters: &str) -> Response {
        let head = format!(
            "POST /sdk HTTP/1.1\r\nContent-Type: text/xml\r\nSOAPAction: \"urn:vim25/6.5\"\r\nCookie: {}\r\n",
            self.cookie
        );
        let body = envelope(&format!(
            "<{method} xmlns=\"urn:vim25\"><_this type=\"{kind}\">{id}</_this>{parameters}</{method}>"
        ));
        ask(self.gate, &head, &body)
    }

    fn wait_power(&self, vm: &str, state: &str) {
        let began = Instant::now();
        let filter = format!(
            "<specSet><propSet><type>VirtualMachine</type><pathSet>runtime.powerState</pathSet></propSet><objectSet><obj type=\"VirtualMachine\">{vm}</obj></objectSet></specSet><options/>"
        );
        let read =
            || self.ask("RetrievePropertiesEx", "PropertyCollector", "propertyCollector", &filter).body;
        while !read().contains(&format!(">{state}<")) {
            assert!(began.elapsed() < support::PATIENCE, "{vm} never became {state}: {}", read());
        }
    }
}

#[test]
fn power_is_the_tenants_to_allow_and_a_suspended_machine_is_resumed_where_that_is_implicit() {
    let host = host(1);
    let Some(vcenter) = Vcsim::start(&host, &[]) else { return };
    let vm = vcenter.vms[0].as_str();
    for power in ["none", "operations", "implicit"] {
        let gate = gate_for(&vcenter, power);
        let sealed = ticket(&gate, &vcenter, vm, |_| {});
        let sdk = Sdk::open(&gate, &sealed);
        let off = sdk.ask("SuspendVM_Task", "VirtualMachine", vm, "");
        let asked = vcenter.methods();
        if power == "none" {
            assert!(off.status == 500 && off.body.contains("NoPermission"), "{off:?}");
            assert!(!asked.contains(&"SuspendVM_Task".to_owned()), "{asked:?}");
            continue;
        }
        assert_eq!(off.status, 200, "{off:?}");
        sdk.wait_power(vm, "suspended");
        let console = client::open(client::authd(gate.authd), &sealed, vm);
        if power == "implicit" {
            echoes(console.unwrap());
            assert!(vcenter.methods().contains(&"PowerOnVM_Task".to_owned()));
        } else {
            assert!(console.unwrap_err().starts_with("511"));
            assert_eq!(sdk.ask("PowerOnVM_Task", "VirtualMachine", vm, "").status, 200);
            sdk.wait_power(vm, "poweredOn");
        }
    }
}

#[test]
fn a_server_without_acquire_ticket_is_asked_the_old_way() {
    let host = host(1);
    let Some(vcenter) = Vcsim::start(&host, &["-old"]) else { return };
    let gate = gate_for(&vcenter, "none");
    let vm = &vcenter.vms[0];
    echoes(client::open(client::authd(gate.authd), &ticket(&gate, &vcenter, vm, |_| {}), vm).unwrap());
    assert_eq!(vcenter.methods()[2..], ["AcquireTicket", "AcquireMksTicket"]);
}

#[test]
fn a_vm_that_moved_is_looked_for_once_more() {
    // The host does not know the first ticket, as if the VM had left it; nor, the second time, the third and the fourth.
    let host = host(2);
    let Some(vcenter) = Vcsim::start(&host, &[]) else { return };
    let gate = gate_for(&vcenter, "none");
    let vm = &vcenter.vms[0];
    echoes(client::open(client::authd(gate.authd), &ticket(&gate, &vcenter, vm, |_| {}), vm).unwrap());
    let asked = |methods: Vec<String>| methods.iter().filter(|method| *method == "AcquireTicket").count();
    assert_eq!(asked(vcenter.methods()), 2);
}

#[test]
fn a_host_outside_the_tenants_targets_is_not_connected_to() {
    let host = host(1);
    let Some(vcenter) = Vcsim::start(&host, &[]) else { return };
    let setup = Setup::new();
    let account = vcenter.account(setup.dir.path());
    let only =
        format!("[tenants.acme]\nmax_sessions = 9\ntargets = [\"127.0.0.1:{}\"]\n", vcenter.address.port());
    let mut gate = setup.with(&account).tenants(&only).start();
    let vm = &vcenter.vms[0];
    let refused =
        client::open(client::authd(gate.authd), &ticket(&gate, &vcenter, vm, |_| {}), vm).unwrap_err();
    assert!(refused.starts_with("550"), "{refused}");
    gate.wait_refused("outside_targets");
    assert_eq!(host.accepted(), 0);
    vcenter.calls();
    // And a vCenter outside is not asked.
    let elsewhere = SocketAddr::from(([127, 0, 0, 1], host.addr().port()));
    let sealed = ticket(&gate, &vcenter, vm, |claims| {
        claims.target.port = Some(elsewhere.port());
        claims.target.ticket = Some("cst-VCT-x".into());
        claims.target.thumbprints = vec![vcenter.thumbprint()];
    });
    let refused = client::open(client::authd(gate.authd), &sealed, vm).unwrap_err();
    assert!(refused.starts_with("550"), "{refused}");
    assert_eq!((host.accepted(), vcenter.calls().len()), (0, 0));
}

#[test]
fn the_password_goes_to_the_pinned_certificate_alone() {
    let host = host(1);
    let Some(vcenter) = Vcsim::start(&host, &[]) else { return };
    let setup = Setup::new();
    let account = vcenter.account(setup.dir.path()).replace(&vcenter.thumbprint(), &"AB".repeat(32));
    let mut gate = setup.with(&account).start();
    let vm = &vcenter.vms[0];
    // Whatever the ticket pins.
    let sealed = ticket(&gate, &vcenter, vm, |claims| claims.target.thumbprints = vec![vcenter.thumbprint()]);
    let refused = client::open(client::authd(gate.authd), &sealed, vm).unwrap_err();
    assert!(refused.starts_with("514"), "{refused}");
    gate.wait_refused("vcenter_wrong_certificate");
    assert_eq!(vcenter.methods(), Vec::<String>::new());
}

/// Two hosts on neighbouring ports, the second for the second pass.
fn two_pass_hosts(first: Faults) -> (Esxi, Esxi) {
    for _ in 0..50 {
        let one = EsxiConfig::default()
            .vm(Vm::plain(VM, Screen::echo()))
            .ticket(Ticket::new(support::HOST_TICKET, VM).faults(first.clone()));
        let one = Esxi::start(one).unwrap();
        let Some(port) = one.addr().port().checked_add(1) else { continue };
        let two = EsxiConfig {
            listen: SocketAddr::new(one.addr().ip(), port),
            ..EsxiConfig::default()
                .vm(Vm::plain(VM, Screen::echo()))
                .ticket(Ticket::new("second-ticket", VM).one_time())
        };
        if let Ok(two) = Esxi::start(two) {
            return (one, two);
        }
    }
    panic!("no two neighbouring ports are free");
}

#[test]
fn a_two_pass_host_is_asked_twice() {
    for step in [Step::Pass, Step::Connect] {
        let fault = Fault::line("630 second-ticket");
        let (one, two) = two_pass_hosts(Faults::none().at(step, fault));
        let gate = Setup::new().start();
        let mut claims = support::claims(one.addr(), &one.thumbprint_sha256());
        claims.target.kind = TargetKind::EsxTwoPass;
        claims.target.thumbprints.push(two.thumbprint_sha256());
        let sealed = gate.keys.seal(&claims).unwrap();
        let result = client::open(client::authd(gate.authd), &sealed, VM);
        echoes(result.unwrap_or_else(|refused| panic!("{step:?}: {refused}")));
    }
}

#[test]
fn pyvmomi_takes_the_appliance_for_a_vcenter() {
    let host = host(1);
    let Some(python) = python() else { return };
    let Some(vcenter) = Vcsim::start(&host, &[]) else { return };
    let gate = gate_for(&vcenter, "operations");
    let (vm, other) = (&vcenter.vms[0], &vcenter.vms[1]);
    let sealed = ticket(&gate, &vcenter, vm, |_| {});
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vcsim/client.py");
    let port = gate.tls.port().to_string();
    let run = Command::new(python).args([script, "127.0.0.1", &port, &sealed, vm, other]).output().unwrap();
    assert!(run.status.success(), "{}\n{:?}", String::from_utf8_lossy(&run.stderr), vcenter.calls());
    // Nobody waits for it at the other end.
    vcenter.wait_calls("Logout", 1);
    let calls = vcenter.calls();
    assert!(calls.iter().all(|(_, object)| object != other), "{calls:?}");
    for never in ["Destroy_Task", "AcquireCloneTicket", "ReconfigVM_Task"] {
        assert!(calls.iter().all(|(method, _)| method != never), "{calls:?}");
    }
    assert_eq!(calls.iter().filter(|(method, _)| method == "Logout").count(), 1);
    // What it acquired names the appliance, and opens the console here, once.
    let acquired: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
    let text = |name: &str| acquired[name].as_str().unwrap().to_owned();
    assert_eq!(
        (text("host").as_str(), acquired["port"].as_u64()),
        ("127.0.0.1", Some(gate.authd.port().into()))
    );
    let tls = client::authd(gate.authd);
    let leaf = mksgate::tls::Thumbprint::sha1(&tls.leaf()).to_string();
    assert_eq!(text("thumbprint"), leaf);
    let open = echoes(client::open(tls, &text("ticket"), &text("cfgFile")).unwrap());
    let again = client::open(client::authd(gate.authd), &text("ticket"), &text("cfgFile")).unwrap_err();
    assert!(again.starts_with("530"), "{again}");
    drop(open);
}

fn python() -> Option<String> {
    let python = std::env::var("MKSGATE_PYTHON").unwrap_or_else(|_| "python3".into());
    let works = Command::new(&python).args(["-c", "import pyVmomi"]).output();
    if works.is_ok_and(|done| done.status.success()) {
        return Some(python);
    }
    let full = std::env::var_os("MKSGATE_FULL_TESTS").is_some_and(|value| value == "1");
    assert!(!full, "missing: MKSGATE_PYTHON, a Python with pyvmomi (PyPI); `cargo xtask setup` installs it");
    eprintln!("skipped, missing: MKSGATE_PYTHON, a Python with pyvmomi (PyPI)");
    None
}
