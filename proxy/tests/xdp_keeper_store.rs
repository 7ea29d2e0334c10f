//! The keeper under a service manager that keeps its descriptors: its end costs nothing, and nothing heaps up.

#[path = "xdp_support/keeper.rs"]
mod keeper;
#[path = "xdp_support/manager.rs"]
mod manager;
#[path = "xdp_support/site.rs"]
mod site;
mod support;
mod xdp_support;

use keeper::{Keeper, Place, program, start_by};
use manager::Manager;
use nix::sys::signal::Signal;
use site::{Refusal, Site};
use xdp_support::wire::{GATE, client4, until};

const XDP: &str = "enabled = \"required\"\non_limit = \"reset\"\nsource_per_second = 10000\nsource_burst = 10000\n\
                   shared_per_second = 0";
const ACME: &str =
    "[tenants.acme]\nmax_sessions = 1\nsources = [\"10.77.1.0/24\"]\ntargets = [\"127.0.0.0/8\"]\n";

fn start(place: &Place, manager: &Manager, xdp: &str) -> Option<(Keeper, Site)> {
    start_by(place, xdp, ACME, |inside| manager.start(place, inside, &[]))
}

fn is_off(line: &serde_json::Value) -> bool {
    line["fields"]["message"].as_str().is_some_and(|m| m.starts_with("XDP gate off"))
}

/// The appliance is in charge of the gate at its next keeper.
fn leads(site: &mut Site, keeper: &Keeper) {
    keeper.says("a proxy is in charge");
    site.appliance.wait_log(|line| line["fields"]["message"] == "in charge of the XDP gate again");
}

/// SYNs of the one client that its bucket let through.
fn of_the_client(site: &Site) -> u64 {
    let printed = site.appliance.command(&["xdp", "top-sources", "--json"]);
    let loud: serde_json::Value = serde_json::from_slice(&printed.stdout).unwrap();
    let sources = loud["sources"].as_array().or(loud.as_array()).unwrap_or_else(|| panic!("{loud}"));
    let client = sources.iter().find(|source| source["source"] == "10.77.1.1");
    client.unwrap_or_else(|| panic!("{loud}"))["passed"].as_u64().unwrap()
}

#[test]
fn a_killed_keeper_costs_neither_the_gate_nor_its_counters_sources_or_limit() {
    let (place, manager) = (Place::new(), Manager::new());
    let Some((mut keeper, mut site)) = start(&place, &manager, XDP) else { return };
    let ticket = site.appliance.ticket(&site.host);
    let mut console = site.open(client4(1, 1), &ticket).unwrap();
    site.is_full("the gate knows", &ticket);
    until("the source is known by its ticket", || (site.known() == 1).then_some(()));
    let (ours, link) = (program(&site, GATE), manager.all("link."));
    assert!(ours.is_some() && link.len() == 1, "{link:?}");
    let names = manager.names().len();
    for round in 1..=3 {
        let (shed, passed) = (site.syns("acme", "tenant_full"), site.syns("acme", "pass"));
        let loud = of_the_client(&site);
        keeper.kill();
        // Nobody has it, and it sheds.
        assert_eq!(program(&site, GATE), ours);
        for _ in 0..5 {
            assert_eq!(site.open(client4(1, 1), &ticket).unwrap_err(), Refusal::Reset);
        }
        keeper = manager.start(&place, &site.wire.inside, &[]);
        assert!(keeper.has_said("goes on with the XDP gate"));
        leads(&mut site, &keeper);
        assert_eq!(program(&site, GATE), ours, "the same program");
        assert_eq!(manager.all("link."), link, "on the same link");
        assert!(site.syns("acme", "tenant_full") >= shed + 5, "what nobody looked at was counted");
        assert!(site.syns("acme", "pass") >= passed);
        assert!(of_the_client(&site) >= loud, "sources' buckets are as they were");
        assert_eq!(site.known(), 1, "the source is known throughout");
        assert_eq!(manager.names().len(), names, "round {round}: {:?}", manager.names());
        site::echoes(&mut console);
    }
    assert!(!site.appliance.seen().iter().any(is_off), "it never was");
    let attached = site.appliance.metric("mksgate_xdp_attached", &[&format!("interface=\"{GATE}\"")]);
    assert_eq!(attached, 1.0);
    // The next word counts, in the kernel's table that is three keepers old.
    drop(console);
    let _console = site.open_soon("there is room again", &ticket);
    site.is_full("and then none", &ticket);
}

#[test]
fn what_is_gone_leaves_the_store_and_what_is_new_comes_into_it() {
    let (place, manager) = (Place::new(), Manager::new());
    let xdp = format!("interfaces = [\"{GATE}\", \"other0\"]\n{}", XDP.replace("required", "auto"));
    let Some((keeper, mut site)) = start(&place, &manager, &xdp) else { return };
    assert_eq!(manager.all("link.").len(), 1);
    site.wire.inside.ip("link add other0 type veth peer name other1").unwrap();
    until("it is attached to", || (manager.all("link.").len() == 2).then_some(()));
    site.wire.inside.ip("link del other0").unwrap();
    until("it is gone", || (manager.all("link.").len() == 1).then_some(()));
    let (before, names) = (program(&site, GATE), manager.names().len());
    site.change("on_limit", "max_sources = 1024\non_limit");
    site.wire.inside.run(|| site.appliance.restart(&[Signal::SIGKILL], || ()));
    let now = program(&site, GATE);
    assert_ne!(now, before, "a program of the new size");
    assert_eq!(manager.names().len(), names, "{:?}", manager.names());
    assert_eq!(manager.all("program."), [format!("program.{}", now.unwrap())]);

    // The interface goes while there is no keeper, and another one of its name comes.
    let link = manager.all("link.");
    drop(keeper);
    site.wire.inside.ip(&format!("link del {GATE}")).unwrap();
    site.wire.plug();
    let keeper = manager.start(&place, &site.wire.inside, &[]);
    leads(&mut site, &keeper);
    assert_eq!(program(&site, GATE), now, "it is put there again");
    assert!(manager.all("link.").len() == 1 && manager.all("link.") != link, "{link:?}");
}

#[test]
fn without_a_proxy_it_goes_from_the_interface_and_from_the_store() {
    let (place, manager) = (Place::new(), Manager::new());
    let Some((keeper, site)) = start(&place, &manager, XDP) else { return };
    drop(keeper);
    let Site { appliance, wire, .. } = site;
    appliance.stop();
    assert!(wire.program_on(GATE).is_some());
    let keeper = manager.start(&place, &wire.inside, &["--linger", "0"]);
    keeper.says("XDP gate detached");
    assert!(wire.program_on(GATE).is_none());
    until("nothing is kept but the socket", || (manager.names() == ["socket"]).then_some(()));
}

#[test]
fn another_build_puts_its_own_program_under_the_same_link_and_what_fits_goes_on() {
    let (place, manager) = (Place::new(), Manager::new());
    let Some((keeper, mut site)) = start(&place, &manager, XDP) else { return };
    let ticket = site.appliance.ticket(&site.host);
    let _console = site.open(client4(1, 1), &ticket).unwrap();
    let shed = site.is_full("the gate knows", &ticket);
    until("the source is known by its ticket", || (site.known() == 1).then_some(()));
    let (before, link, names) = (program(&site, GATE), manager.all("link."), manager.names().len());

    drop(keeper);
    manager.rewrite_state(|state| state["build"] = "another".into());
    let keeper = manager.start(&place, &site.wire.inside, &[]);
    assert!(program(&site, GATE).is_some_and(|now| Some(now) != before), "this build's program");
    leads(&mut site, &keeper);
    assert_eq!((manager.all("link."), manager.names().len(), site.known()), (link.clone(), names, 1));
    assert!(site.is_full("full as before", &ticket) > shed, "counters go on");

    // Maps that are not what they were: nothing to count on, and the interface is never without.
    let before = program(&site, GATE);
    drop(keeper);
    manager.lose(".TENANT_WORDS");
    let keeper = manager.start(&place, &site.wire.inside, &[]);
    assert!(keeper.has_said("do not fit"));
    assert!(program(&site, GATE).is_some_and(|now| Some(now) != before));
    leads(&mut site, &keeper);
    assert_eq!((manager.all("link."), manager.names().len()), (link, names));
    site.is_full("the new tables know", &ticket);

    // Nothing that says what it was: taken off, and put there again by the proxy's word.
    drop(keeper);
    manager.rewrite_state(|state| state["future"] = 1.into());
    let keeper = manager.start(&place, &site.wire.inside, &[]);
    assert!(keeper.has_said("starts afresh"));
    leads(&mut site, &keeper);
    assert!(program(&site, GATE).is_some());
    assert_eq!(manager.names().len(), names, "{:?}", manager.names());
    site.is_full("told again", &ticket);
}
