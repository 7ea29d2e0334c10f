//! The gate over an upgrade of the real binary: its counters go on, another program has the place, the limit holds throughout.

#[path = "xdp_support/site.rs"]
mod site;
mod support;
mod xdp_support;

use site::{Site, echoes, setup};
use xdp_support::wire::{client4, until};

const XDP: &str =
    "enabled = \"required\"\non_limit = \"reset\"\nsource_per_second = 0\nshared_per_second = 0";
const ACME: &str =
    "[tenants.acme]\nmax_sessions = 1\nsources = [\"10.77.1.0/24\"]\ntargets = [\"127.0.0.0/8\"]\n";

fn says(site: &Site, args: &[&str]) -> String {
    let output = site.appliance.command(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn counters_limit_and_consoles_go_on_over_an_upgrade_and_the_program_is_the_new_ones() {
    let Some(site) = Site::start(setup(XDP, ACME)) else { return };
    let ticket = site.appliance.ticket(&site.host);
    let mut console = site.open(client4(1, 1), &ticket).unwrap();
    let shed = site.is_full("the gate knows", &ticket);
    let (passed, program) = (site.syns("acme", "pass"), site.status()["gate"]["program"].clone());
    assert!(passed > 0 && program.is_u64(), "{}", site.status());
    until("the source is known by its ticket", || (site.known() == 1).then_some(()));

    says(&site, &["upgrade"]);
    let _heir = site.in_charge();
    echoes(&mut console);
    assert!(
        site.syns("acme", "tenant_full") >= shed && site.syns("acme", "pass") >= passed,
        "counters go on"
    );
    until("the new gate knows the source", || (site.known() == 1).then_some(()));
    let gate = site.status();
    assert_ne!(gate["gate"]["program"], program, "the link has the new process's program");
    assert!(gate["gate"]["interfaces"].as_array().unwrap().iter().all(|i| i["mode"] != "off"), "{gate}");
    assert!(site.is_full("the new gate knows", &ticket) > shed);
    drop(console);
    echoes(&mut site.open_soon("there is room again", &ticket));
}

#[test]
fn an_upgrade_whose_gate_cannot_be_had_says_why_and_the_old_one_goes_on() {
    let Some(site) = Site::start(setup(XDP, ACME)) else { return };
    let ticket = site.appliance.ticket(&site.host);
    let mut console = site.open(client4(1, 1), &ticket).unwrap();
    let shed = site.is_full("the gate knows", &ticket);
    until("the source is known by its ticket", || (site.known() == 1).then_some(()));
    site.wire.inside.ip("link add plain0 type bridge").unwrap();
    for (section, why) in [
        ("interfaces = [\"gate0\", \"nowhere0\"]", "XDP on nowhere0: there is no such interface"),
        (
            "interfaces = [\"gate0\", \"plain0\"]\nmode = \"native\"",
            "XDP on plain0: its driver has no native XDP",
        ),
        ("max_sources = 1", "xdp.max_sources"),
    ] {
        site.refuses_upgrade(section, why);
        echoes(&mut console);
        assert!(site.is_full("full as before", &ticket) > shed);
    }
    drop(console);
    echoes(&mut site.open_soon("there is room again", &ticket));
}
