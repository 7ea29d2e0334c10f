//! The gate's interfaces change by a reload of the real binary: all or nothing, and where it stays no packet misses it.

#[path = "xdp_support/site.rs"]
mod site;
mod support;
mod xdp_support;

use std::fs;
use std::net::SocketAddr;

use aya::Ebpf;
use aya::programs::{Xdp, xdp::XdpMode};
use mksgate::xdp::OBJECT;
use mksgate_bench::load::flood::Plan;
use site::{Site, setup};
use xdp_support::wire::{GATE, HOST4, Wire, client4, until};

/// Another interface of the protected host. It is down: nothing but the tests' own packets is counted.
const OTHER: &str = "other0";

/// `max_sessions` marks which file is in force.
fn tenant(max_sessions: u32) -> String {
    format!("[tenants.acme]\nmax_sessions = {max_sessions}\ntargets = [\"127.0.0.0/8\"]\n")
}

fn named(interfaces: &[&str]) -> String {
    format!("interfaces = {interfaces:?}")
}

/// On [`GATE`] alone, with [`OTHER`] there too.
fn start() -> Option<Site> {
    let site = Site::start(setup(&named(&[GATE]), &tenant(10)))?;
    link(&site.wire, OTHER);
    Some(site)
}

fn link(wire: &Wire, name: &str) {
    wire.inside.ip(&format!("link add {name} type veth peer name {name}p")).unwrap();
}

/// Replaces these texts of the configuration and reloads; what the command printed.
fn reload(site: &Site, changes: &[(&str, &str)]) -> Result<String, String> {
    let path = site.appliance.dir.path().join("mksgate.toml");
    let mut text = fs::read_to_string(&path).unwrap();
    for (old, new) in changes {
        assert!(text.contains(old), "{old} in {text}");
        text = text.replace(old, new);
    }
    fs::write(&path, text).unwrap();
    let output = site.appliance.command(&["reload"]);
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap())
    } else {
        Err(String::from_utf8(output.stderr).unwrap())
    }
}

fn rename(site: &Site, old: &[&str], new: &[&str]) -> Result<String, String> {
    reload(site, &[(&named(old), &named(new))])
}

/// Interfaces and modes, as `mksgate xdp status` has them.
fn places(site: &Site) -> Vec<(String, String)> {
    let status = site.status();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let all = status["gate"]["interfaces"].as_array().unwrap();
    all.iter().map(|i| (text(&i["name"]), text(&i["mode"]))).collect()
}

fn are(all: &[(&str, &str)]) -> Vec<(String, String)> {
    all.iter().map(|(name, mode)| ((*name).to_owned(), (*mode).to_owned())).collect()
}

fn max_sessions(site: &Site) -> u64 {
    let printed = site.appliance.command(&["tenants", "--json"]);
    let tenants: serde_json::Value = serde_json::from_slice(&printed.stdout).unwrap();
    tenants["tenants"][0]["max_sessions"].as_u64().unwrap_or_else(|| panic!("{tenants}"))
}

/// The program of the appliance, native.
fn program(site: &Site) -> Option<(&'static str, u32)> {
    Some(("native", site.status()["gate"]["program"].as_u64().unwrap() as u32))
}

#[test]
fn one_is_added_swapped_and_removed() {
    let Some(site) = start() else { return };
    let ours = program(&site);
    assert_eq!((site.wire.program_on(GATE), site.wire.program_on(OTHER)), (ours, None));

    let said = rename(&site, &[GATE], &[OTHER, GATE]).unwrap();
    assert_eq!(said, "changed: xdp.interfaces\n");
    assert_eq!(places(&site), are(&[(OTHER, "native"), (GATE, "native")]), "in the file's order");
    assert_eq!((site.wire.program_on(GATE), site.wire.program_on(OTHER)), (ours, ours));

    link(&site.wire, "third0");
    rename(&site, &[OTHER, GATE], &["third0", GATE]).unwrap();
    assert_eq!(places(&site), are(&[("third0", "native"), (GATE, "native")]));
    assert_eq!((site.wire.program_on(OTHER), site.wire.program_on("third0")), (None, ours));

    rename(&site, &["third0", GATE], &[GATE]).unwrap();
    assert_eq!(places(&site), are(&[(GATE, "native")]));
    assert_eq!((site.wire.program_on("third0"), site.wire.program_on(GATE)), (None, ours));
    assert_eq!(site.appliance.metric("mksgate_xdp_attached", &[&format!("interface=\"{GATE}\"")]), 1.0);
    site.echoes();
    assert!(site.syns("", "pass") > 0, "the gate sees them");
}

#[test]
fn no_packet_misses_the_gate_where_it_stays() {
    let Some(site) = start() else { return };
    let arrived = || {
        let shown = site.wire.inside.command("cat", &["/proc/thread-self/net/dev"]).unwrap();
        let line = shown.lines().find_map(|l| l.trim().strip_prefix(&format!("{GATE}:"))).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let seen = || {
        let status = site.status();
        status["packets"].as_array().unwrap().iter().map(|p| p["packets"].as_u64().unwrap()).sum::<u64>()
    };
    // Neighbour discovery and the like may have come before the gate.
    let (seen_before, arrived_before) = (seen(), arrived());
    let flood = site.wire.flood(Plan {
        source: client4(1, 1).into(),
        sources: 1,
        destination: SocketAddr::from((HOST4, 9)),
        per_second: 10_000,
        count: 30_000,
    });
    until("the flood runs", || (seen() > seen_before + 100).then_some(()));
    for _ in 0..10 {
        rename(&site, &[GATE], &[GATE, OTHER]).unwrap();
        rename(&site, &[GATE, OTHER], &[GATE, "nowhere0"]).unwrap_err();
        rename(&site, &[GATE, "nowhere0"], &[GATE]).unwrap();
    }
    // Otherwise the reloads came after it.
    assert!(seen() - seen_before < 30_000, "the flood is still running");
    flood.finish().unwrap();
    until("every packet was seen", || {
        let (seen, arrived) = (seen() - seen_before, arrived() - arrived_before);
        assert!(seen <= arrived, "{seen} of {arrived}");
        (seen == arrived && seen > 29_000).then_some(())
    });
}

#[test]
fn one_that_is_not_there_refuses_the_whole_reload() {
    let Some(mut site) = start() else { return };
    let ours = program(&site);
    let said = reload(
        &site,
        &[(&named(&[GATE]), &named(&[OTHER, "nowhere0"])), ("max_sessions = 10", "max_sessions = 1")],
    )
    .unwrap_err();
    for part in ["nowhere0", "no such interface", "`ip link` lists", "[xdp] interfaces"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let logged = site.appliance.wait_log(|line| {
        line["fields"]["message"].as_str().is_some_and(|m| m.contains("the old one stays in force"))
    });
    assert!(logged["fields"]["error"].as_str().unwrap().contains("nowhere0"), "{logged}");
    assert_eq!(places(&site), are(&[(GATE, "native")]));
    assert_eq!((site.wire.program_on(GATE), site.wire.program_on(OTHER)), (ours, None));
    assert_eq!(max_sessions(&site), 10, "nor is the rest of the file in force");

    rename(&site, &[OTHER, "nowhere0"], &[OTHER, GATE]).unwrap();
    assert_eq!((site.wire.program_on(GATE), site.wire.program_on(OTHER)), (ours, ours));
    assert_eq!(max_sessions(&site), 1);
}

#[test]
fn one_that_somebody_else_occupies_refuses_it_and_keeps_its_program() {
    let Some(site) = start() else { return };
    let ours = program(&site);
    let mut other = Ebpf::load(OBJECT.unwrap()).unwrap();
    let theirs: &mut Xdp = other.program_mut("mksgate_empty").unwrap().try_into().unwrap();
    theirs.load().unwrap();
    let id = theirs.info().unwrap().id();
    let link = site.wire.inside.run(|| theirs.attach(OTHER, XdpMode::default())).unwrap();

    let said = rename(&site, &[GATE], &[OTHER]).unwrap_err();
    for part in [OTHER, "another XDP program is attached", "mksgate_empty", &id.to_string(), "xdp off"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(places(&site), are(&[(GATE, "native")]));
    assert_eq!((site.wire.program_on(GATE), site.wire.program_on(OTHER)), (ours, Some(("native", id))));

    theirs.detach(link).unwrap();
    assert_eq!(reload(&site, &[]).unwrap(), "changed: xdp.interfaces\n", "the same file, once it is free");
    assert_eq!((site.wire.program_on(GATE), site.wire.program_on(OTHER)), (None, ours));
}

#[test]
fn one_that_was_missing_before_refuses_nothing() {
    let Some(wire) = Wire::new() else { return };
    let (appliance, host) =
        wire.inside.run(|| (setup(&named(&[GATE, "later0"]), &tenant(10)).start(), site::host()));
    let site = Site { appliance, host, wire };
    assert_eq!(reload(&site, &[("max_sessions = 10", "max_sessions = 11")]).unwrap(), "changed: tenants\n");
    assert_eq!(places(&site), are(&[(GATE, "native"), ("later0", "off")]));
    link(&site.wire, "later0");
    until("the gate on the one that came", || (places(&site)[1].1 == "native").then_some(()));
}

#[test]
fn one_that_a_tenants_new_address_leads_to_is_found_and_none_is_left_for_a_lost_address() {
    let Some(site) = Site::start(setup("", &tenant(10))) else { return };
    assert_eq!(places(&site), are(&[(GATE, "native")]), "found by the address");
    link(&site.wire, OTHER);
    site.wire.inside.ip(&format!("addr add 10.78.0.1/24 dev {OTHER}")).unwrap();
    reload(&site, &[("max_sessions = 10", "addresses = [\"10.78.0.1:902\"]\nmax_sessions = 10")]).unwrap();
    assert_eq!(places(&site), are(&[(GATE, "native"), (OTHER, "native")]));
    site.wire.inside.ip(&format!("addr del 10.78.0.1/24 dev {OTHER}")).unwrap();
    reload(&site, &[("max_sessions = 10", "max_sessions = 11")]).unwrap();
    assert_eq!(places(&site), are(&[(GATE, "native"), (OTHER, "native")]), "it may come back");
}

#[test]
fn the_mode_is_that_of_new_ones_and_what_waits_is_named() {
    let Some(site) = start() else { return };
    let more = format!("{}\nmode = \"generic\"\nmax_sources = 1024", named(&[GATE, OTHER]));
    let said = reload(&site, &[(&named(&[GATE]), &more)]).unwrap();
    assert_eq!(
        said,
        "changed: xdp.interfaces\nneeds a restart: xdp.mode\nneeds a restart: xdp.max_sources\n"
    );
    assert_eq!(places(&site), are(&[(GATE, "native"), (OTHER, "generic")]));
}

#[test]
fn a_gate_that_is_off_says_that_another_interface_waits_for_a_restart() {
    let Some(wire) = Wire::new() else { return };
    let (appliance, host) =
        wire.inside.run(|| (setup(&named(&["nowhere0"]), &tenant(10)).start(), site::host()));
    let mut site = Site { appliance, host, wire };
    let said = rename(&site, &["nowhere0"], &["nowhere1"]).unwrap();
    assert_eq!(said, "needs a restart: xdp.interfaces\n");
    let told = site.appliance.wait_log(|line| line["fields"]["interface"] == "nowhere1");
    assert_eq!(told["level"], "WARN");
    assert!(told["fields"]["problem"].as_str().unwrap().contains("no such interface"), "{told}");
    site.echoes();
}
