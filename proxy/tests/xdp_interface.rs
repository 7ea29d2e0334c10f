//! Interfaces of the configuration that are not there, with the real binary: at start, and beside one that is. On reload:
//! `xdp_reload`.

#[path = "xdp_support/site.rs"]
mod site;
mod support;
mod xdp_support;

use std::process::Stdio;

use site::{Site, host, setup};
use support::{Setup, mksgate};
use xdp_support::wire::{GATE, Wire, until};

const ACME: &str = "[tenants.acme]\nmax_sessions = 10\ntargets = [\"127.0.0.0/8\"]\n";

/// What, where, and the remedy.
fn says_it_all(text: &str) -> bool {
    ["nowhere0", "no such interface", "`ip link` lists", "[xdp] interfaces"]
        .iter()
        .all(|words| text.contains(words))
}

fn named(interfaces: &str, more: &str) -> Setup {
    setup(&format!("interfaces = [{interfaces}]\n{more}"), ACME)
}

#[test]
fn required_and_not_there_is_no_start() {
    let Some(wire) = Wire::new() else { return };
    let setup = named("\"nowhere0\"", "enabled = \"required\"");
    let config = setup.write();
    let ended = wire
        .inside
        .run(|| mksgate().args(["serve", "--config"]).arg(&config).stdin(Stdio::null()).output().unwrap());
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success(), "{said}");
    assert!(says_it_all(&said), "{said}");
}

#[test]
fn not_required_and_not_there_is_off_and_said_everywhere() {
    let Some(wire) = Wire::new() else { return };
    let (mut appliance, host) = wire.inside.run(|| (named("\"nowhere0\"", "").start(), host()));
    let off = appliance
        .seen()
        .iter()
        .find(|line| line["fields"]["message"].as_str().is_some_and(|m| m.contains("XDP gate off")));
    let off = off.cloned().unwrap_or_else(|| {
        appliance
            .wait_log(|line| line["fields"]["message"].as_str().is_some_and(|m| m.contains("XDP gate off")))
    });
    assert_eq!(off["level"], "WARN");
    assert!(says_it_all(off["fields"]["why"].as_str().unwrap()), "{off}");
    let site = Site { appliance, host, wire };
    assert!(says_it_all(site.status()["off"].as_str().unwrap()), "{}", site.status());
    assert_eq!(site.appliance.metric("mksgate_xdp_attached", &["mode=\"off\""]), 0.0);
    site.echoes();
}

#[test]
fn beside_one_that_is_there_it_is_named_and_taken_when_it_comes() {
    let Some(site) = Site::start(named(&format!("\"{GATE}\", \"later0\""), "")) else { return };
    let each = |site: &Site| {
        let status = site.status();
        let all = status["gate"]["interfaces"].as_array().unwrap().clone();
        all.into_iter().map(|i| (i["name"].as_str().unwrap().to_owned(), i)).collect::<Vec<_>>()
    };
    let interfaces = each(&site);
    assert_eq!((interfaces[0].0.as_str(), &interfaces[0].1["mode"]), (GATE, &"native".into()));
    assert_eq!((interfaces[1].0.as_str(), &interfaces[1].1["mode"]), ("later0", &"off".into()));
    assert!(interfaces[1].1["problem"].as_str().unwrap().contains("no such interface"), "{interfaces:?}");
    site.echoes();
    assert!(site.syns("", "pass") > 0, "the gate sees them");
    site.wire.inside.ip("link add later0 type veth peer name later1").unwrap();
    until("the gate on the one that came", || (each(&site)[1].1["mode"] != "off").then_some(()));
}
