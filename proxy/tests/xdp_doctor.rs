//! `mksgate doctor` on an XDP gate that lacks capabilities, a system call, its interface, or the interface to itself, and on the
//! same repaired.

mod doctor_rig;
#[path = "xdp_support/site.rs"]
mod site;
mod support;
mod xdp_support;

use std::path::Path;
use std::process::Command;

use aya::Ebpf;
use aya::programs::{Xdp, xdp::XdpMode};
use doctor_rig::{line, report, without_calls};
use mksgate::xdp::OBJECT;
use serde_json::Value;
use site::setup;
use support::{Appliance, Setup, mksgate};
use xdp_support::privileged;
use xdp_support::wire::{GATE, Wire, until};

const TENANTS: &str = "[tenants.acme]\nmax_sessions = 10\ntargets = [\"127.0.0.0/8\"]\n";

/// Doctor as root without these.
fn lacking(capabilities: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--inh-caps", capabilities, "--bounding-set", capabilities, "--"]);
    command.arg(env!("CARGO_BIN_EXE_mksgate"));
    command
}

fn gate_line(command: Command, config: &Path) -> Value {
    line(&report(command, config, &[]), "xdp", "").clone()
}

#[test]
fn what_keeps_the_program_out_of_the_kernel_is_said_and_gone_when_it_is() {
    if !privileged() {
        return;
    }
    let setup = Setup::new().with("[xdp]\nenabled = \"required\"");
    let config = setup.write();
    for (without, named) in [
        ("-bpf,-sys_admin", "CAP_BPF"),
        ("-perfmon,-sys_admin", "CAP_PERFMON"),
        ("-net_admin", "CAP_NET_ADMIN"),
        ("-bpf,-perfmon,-net_admin,-sys_admin", "CAP_BPF and CAP_PERFMON and CAP_NET_ADMIN"),
    ] {
        let said = gate_line(lacking(without), &config);
        assert_eq!(said["verdict"], "warn", "it cannot be told from there: {said}");
        assert_eq!(said["found"], format!("cannot be tried without {named}"));
        assert_eq!(said["remedy"], "run doctor as root");
    }
    let bpf = [libc::SYS_bpf];
    let said = without_calls(&bpf, libc::EPERM, || gate_line(mksgate(), &config));
    assert_eq!(said["verdict"], "fail", "the gate is required: {said}");
    let auto = Setup::new().with("[xdp]\nenabled = \"auto\"");
    let said = without_calls(&bpf, libc::EPERM, || gate_line(mksgate(), &auto.write()));
    assert_eq!(said["verdict"], "warn", "it goes without: {said}");
    let off = Setup::new().with("[xdp]\nenabled = \"off\"");
    let said = without_calls(&bpf, libc::EPERM, || gate_line(mksgate(), &off.write()));
    assert_eq!(said["verdict"], "ok", "nobody asked for it: {said}");

    let said = gate_line(mksgate(), &config);
    assert_eq!(said["verdict"], "ok", "{said}");
    assert!(said["found"].as_str().unwrap().contains("this kernel takes the program"), "{said}");
}

/// What doctor says of an interface of the running appliance.
fn interface(wire: &Wire, gate: &Appliance, name: &str) -> (String, String) {
    let config = gate.dir.path().join("mksgate.toml");
    let said =
        wire.inside.run(|| line(&report(mksgate(), &config, &[]), "xdp", &format!("{name}: ")).clone());
    let text = |field: &str| said[field].as_str().unwrap().to_owned();
    (text("verdict"), text("found"))
}

#[test]
fn an_interface_that_vanished_is_a_failure_until_it_is_back() {
    let Some(wire) = Wire::new() else { return };
    let gate = wire
        .inside
        .run(|| setup(&format!("enabled = \"required\"\ninterfaces = [\"{GATE}\"]"), TENANTS).start());
    assert_eq!(interface(&wire, &gate, GATE), ("ok".to_owned(), format!("{GATE}: native")));
    wire.inside.ip(&format!("link delete {GATE}")).unwrap();
    let found = until("the loss is told", || {
        let (verdict, found) = interface(&wire, &gate, GATE);
        (verdict == "fail").then_some(found)
    });
    assert!(found.starts_with(&format!("{GATE}: off: ")), "{found}");
    wire.plug();
    until("the interface is back", || (interface(&wire, &gate, GATE).0 == "ok").then_some(()));
}

#[test]
fn an_interface_that_never_was_and_one_that_somebody_else_has_are_named() {
    let Some(wire) = Wire::new() else { return };
    let nowhere = wire.inside.run(|| setup("interfaces = [\"nowhere0\"]", TENANTS).start());
    let (verdict, found) = interface(&wire, &nowhere, "nowhere0");
    assert_eq!(verdict, "warn");
    assert!(found.contains("no such interface"), "{found}");
    drop(nowhere);
    // Where the gate is required, the service does not start, and says the same.
    let required = setup("enabled = \"required\"\ninterfaces = [\"nowhere0\"]", TENANTS);
    let path = required.write();
    let refused = wire.inside.run(|| mksgate().args(["serve", "--config"]).arg(&path).output().unwrap());
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("nowhere0"), "{said}");

    let mut other = Ebpf::load(OBJECT.unwrap()).unwrap();
    let program: &mut Xdp = other.program_mut("mksgate_empty").unwrap().try_into().unwrap();
    program.load().unwrap();
    let link = wire.inside.run(|| program.attach(GATE, XdpMode::default())).unwrap();
    let both = format!("interfaces = [\"{GATE}\", \"lo\"]");
    let gate = wire.inside.run(|| setup(&both, TENANTS).start());
    let (verdict, found) = interface(&wire, &gate, GATE);
    assert_eq!(verdict, "warn");
    for part in ["another XDP program", "mksgate_empty", "xdp off"] {
        assert!(found.contains(part), "{part}: {found}");
    }
    assert_eq!(interface(&wire, &gate, "lo").0, "ok");
    program.detach(link).unwrap();
    until("the interface is free", || (interface(&wire, &gate, GATE).0 == "ok").then_some(()));
}
