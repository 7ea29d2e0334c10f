//! The gate in a process of its own: the appliance has none of the privileges for it, and the gate is as good as its own.

#[path = "xdp_support/keeper.rs"]
mod keeper;
#[path = "xdp_support/site.rs"]
mod site;
mod support;
mod xdp_support;

use std::fs;
use std::net::TcpListener;
use std::time::Instant;

use aya::maps::{Array, Map, MapData, MapInfo};
use aya::programs::loaded_programs;
use keeper::{Place, program, start};
use mksgate::xdp::{Shed, XdpSection};
use mksgate_bench::load::flood::Plan;
use mksgate_common::bucket::Rate;
use mksgate_common::map::Tenant;
use nix::sys::signal::Signal;
use site::{Refusal, Site, door4};
use xdp_support::wire::{GATE, HOST4, PATIENCE, Wire, client4, until};
use xdp_support::{policy, tenant};

const XDP: &str =
    "enabled = \"required\"\non_limit = \"reset\"\nsource_per_second = 0\nshared_per_second = 0";

fn acme(max_sessions: u32) -> String {
    format!(
        "[tenants.acme]\nmax_sessions = {max_sessions}\nsources = [\"10.77.1.0/24\"]\ntargets = [\"127.0.0.0/8\"]\n"
    )
}

#[test]
fn a_full_tenant_gets_a_reset_or_silence_and_the_appliance_has_no_privilege_for_it() {
    for on_limit in ["reset", "drop"] {
        let place = Place::new();
        let xdp = XDP.replace("reset", on_limit);
        let Some((_keeper, mut site)) = start(&place, &xdp, &acme(1), &[]) else { return };
        let status = fs::read_to_string(format!("/proc/{}/status", site.appliance.pid())).unwrap();
        let caps = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap().trim();
        let caps = u64::from_str_radix(caps, 16).unwrap();
        assert_eq!(
            caps & (1 << 39 | 1 << 38 | 1 << 21),
            0,
            "no CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN: {caps:x}"
        );
        let ticket = site.appliance.ticket(&site.host);
        let console = site.open(client4(1, 1), &ticket).unwrap();
        if on_limit == "reset" {
            site.is_full("the gate knows", &ticket);
            assert!(site.syns("acme", "tenant_full") > 0);
            assert!(site.appliance.metric("mksgate_xdp_resets_total", &["acme"]) > 0.0);
        } else {
            until("the gate knows", || {
                let plan = Plan {
                    source: client4(1, 1).into(),
                    sources: 1,
                    destination: door4(),
                    per_second: 0,
                    count: 10,
                };
                site.wire.flood(plan).finish().unwrap();
                (site.syns("acme", "tenant_full") > 0).then_some(())
            });
            assert_eq!(site.appliance.metric("mksgate_xdp_resets_total", &["acme"]), 0.0);
        }
        // Samples of it come from the keeper to the appliance's log and audit trail.
        let told = site.appliance.wait_log(|line| line["fields"]["reason"] == "tenant_full");
        assert_eq!(told["fields"]["tenant"], "acme");
        until("an audit record", || {
            site.appliance.audit().iter().any(|r| r["event"] == "shed").then_some(())
        });
        until("the source is known by its ticket", || (site.known() == 1).then_some(()));
        let loud = site.appliance.command(&["xdp", "top-sources"]);
        assert!(loud.status.success());
        drop(console);
        drop(site.open_soon("there is room again", &ticket));
    }
}

/// The table of tenants of the program with this id, as the kernel has it.
fn table(id: u64) -> Array<MapData, Tenant> {
    let info = loaded_programs().flatten().find(|program| u64::from(program.id()) == id).unwrap();
    let maps = info.map_ids().unwrap().unwrap();
    let is_it = |id: &u32| MapInfo::from_id(*id).unwrap().name_as_str() == Some("TENANTS");
    let map = MapData::from_id(maps.into_iter().find(is_it).unwrap()).unwrap();
    Array::try_from(Map::Array(map)).unwrap()
}

/// The timers on the way are of a second: so many changes would take them a quarter of an hour.
const CHANGES: u32 = 1000;

#[test]
fn a_tenants_sessions_reach_the_kernel_through_the_keeper_by_the_change_itself_and_by_no_timer() {
    let Some(wire) = Wire::new() else { return };
    let place = Place::new();
    let _keeper = place.start(&wire.inside, &[]);
    let file = keeper::kept(&place, &format!("interfaces = [\"{GATE}\"]"), "");
    file.write();
    let section = XdpSection {
        keeper: Some(place.socket()),
        interfaces: vec![GATE.to_owned()],
        ..XdpSection::default()
    };
    let acme = tenant(1, "acme", Some(CHANGES), Rate::UNLIMITED, &[], &[]);
    let policy = policy(vec![(HOST4, 443).into()], vec![acme]);
    let shed: Shed = mksgate::xdp::start(section.validate().unwrap(), policy, false, |_| {}).unwrap();
    let table = table(shed.status().gate.unwrap().program.into());
    let hangs = Instant::now() + PATIENCE;
    let mut took = Vec::new();
    for sessions in 1..=CHANGES {
        let told = Instant::now();
        shed.set_active(1, sessions);
        while table.get(&1, 0).unwrap().active != sessions {
            assert!(Instant::now() < hangs, "{sessions} is not published");
            std::thread::yield_now();
        }
        took.push(told.elapsed());
    }
    took.sort();
    eprintln!("median {:?}, 99th percentile {:?}", took[took.len() / 2], took[took.len() * 99 / 100]);
}

/// Replaces one text of the configuration and reloads.
fn reload(site: &Site, old: &str, new: &str) -> Result<String, String> {
    site.change(old, new);
    let output = site.appliance.command(&["reload"]);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

#[test]
fn a_reload_changes_limits_and_interfaces_at_the_keeper_or_nothing() {
    let place = Place::new();
    let Some((_keeper, site)) = start(&place, XDP, &acme(1), &[]) else { return };
    let ours = program(&site, GATE);
    let ticket = site.appliance.ticket(&site.host);
    let _first = site.open(client4(1, 1), &ticket).unwrap();
    site.is_full("one of one", &ticket);
    reload(&site, "max_sessions = 1", "max_sessions = 2").unwrap();
    let _second = site.open_soon("two of two", &ticket);
    site.is_full("that is all", &ticket);

    site.wire.inside.ip("link add other0 type veth peer name other1").unwrap();
    let said = reload(&site, "on_limit", "interfaces = [\"gate0\", \"other0\"]\non_limit").unwrap();
    assert!(said.contains("changed: xdp.interfaces"), "{said}");
    assert_eq!((program(&site, GATE), program(&site, "other0")), (ours, ours));
    let refused = reload(&site, "\"other0\"", "\"nowhere0\"").unwrap_err();
    assert!(refused.contains("nowhere0") && refused.contains("no such interface"), "{refused}");
    assert_eq!((program(&site, GATE), program(&site, "other0")), (ours, ours), "as before");
    reload(&site, ", \"nowhere0\"", "").unwrap();
    assert_eq!((program(&site, GATE), program(&site, "other0")), (ours, None));
    site.is_full("still two of two", &ticket);
}

#[test]
fn an_upgrade_keeps_program_counters_sources_and_limit_without_any_privilege() {
    let place = Place::new();
    let Some((keeper, site)) = start(&place, XDP, &acme(1), &[]) else { return };
    let ticket = site.appliance.ticket(&site.host);
    let mut console = site.open(client4(1, 1), &ticket).unwrap();
    let shed = site.is_full("the gate knows", &ticket);
    let (passed, ours) = (site.syns("acme", "pass"), program(&site, GATE));
    until("the source is known by its ticket", || (site.known() == 1).then_some(()));
    keeper.says("a proxy is in charge");

    let upgraded = site.appliance.command(&["upgrade"]);
    assert!(upgraded.status.success(), "{}", String::from_utf8_lossy(&upgraded.stderr));
    let heir = site.in_charge();
    assert_ne!(heir.0.as_raw() as u32, site.appliance.pid());
    keeper.says("a proxy is in charge");
    site::echoes(&mut console);
    assert_eq!(program(&site, GATE), ours, "nobody has touched the link");
    assert_eq!(site.known(), 1, "the source is known throughout");
    assert!(site.syns("acme", "pass") >= passed, "counters go on");
    assert!(site.is_full("full as before", &ticket) > shed);
    drop(console);
    drop(site.open_soon("the new process's word counts", &ticket));
    is_full_after_one_more(&site, &ticket);
}

fn is_full_after_one_more(site: &Site, ticket: &str) {
    let _console = site.open_soon("there is room", ticket);
    site.is_full("and then none", ticket);
}

#[test]
fn an_upgrade_that_fails_leaves_the_gate_with_the_old_process() {
    let place = Place::new();
    let Some((_keeper, site)) = start(&place, XDP, &acme(1), &[]) else { return };
    let ticket = site.appliance.ticket(&site.host);
    let console = site.open(client4(1, 1), &ticket).unwrap();
    site.is_full("the gate knows", &ticket);
    let ours = program(&site, GATE);
    // It leads the gate, and then cannot have its port for metrics.
    let taken = site.wire.inside.run(|| TcpListener::bind("127.0.0.1:0")).unwrap();
    let more = format!("socket = \"admin.sock\"\nmetrics = \"{}\"", taken.local_addr().unwrap());
    let path = site.appliance.dir.path().join("mksgate.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("socket = \"admin.sock\"", &more)).unwrap();
    assert!(!site.appliance.command(&["upgrade"]).status.success());
    fs::write(&path, text).unwrap();
    assert_eq!(program(&site, GATE), ours);
    site.is_full("full as before", &ticket);
    drop(console);
    drop(site.open_soon("the old process's word counts", &ticket));
}

#[test]
fn the_gate_outlives_a_killed_appliance_for_its_time_and_no_longer() {
    let place = Place::new();
    let Some((keeper, mut site)) = start(&place, XDP, &acme(1), &["--linger", "8"]) else { return };
    let ticket = site.appliance.ticket(&site.host);
    let console = site.open(client4(1, 1), &ticket).unwrap();
    let shed = site.is_full("the gate knows", &ticket);
    let ours = program(&site, GATE);
    assert!(ours.is_some());
    site.wire.inside.run(|| site.appliance.restart(&[Signal::SIGKILL], || ()));
    drop(console);
    assert_eq!(program(&site, GATE), ours, "as if nothing had been");
    assert!(site.syns("acme", "tenant_full") >= shed, "counters go on");
    // What the dead process had published is not held against anybody.
    let console = site.open_soon("there is room", &ticket);
    site.is_full("one of one", &ticket);
    drop(console);

    site.appliance.signal(Signal::SIGKILL);
    site.appliance.wait_end();
    keeper.says("none has come after it: XDP gate detached");
    assert_eq!(program(&site, GATE), None);
    site.wire.inside.run(|| site.appliance.restart(&[], || ()));
    assert!(program(&site, GATE).is_some(), "it is back with the appliance");
    is_full_after_one_more(&site, &ticket);
}

#[test]
fn what_waits_for_a_restart_comes_with_it_and_the_counters_go_on() {
    let place = Place::new();
    let Some((_keeper, mut site)) = start(&place, XDP, &acme(1), &[]) else { return };
    let ticket = site.appliance.ticket(&site.host);
    let console = site.open(client4(1, 1), &ticket).unwrap();
    let shed = site.is_full("the gate knows", &ticket);
    until("the source is known by its ticket", || (site.known() == 1).then_some(()));
    let path = site.appliance.dir.path().join("mksgate.toml");
    let text = fs::read_to_string(&path).unwrap();
    let change =
        || fs::write(&path, text.replace("on_limit", "mode = \"generic\"\nmax_sources = 1024\non_limit"));
    site.wire.inside.run(|| site.appliance.restart(&[Signal::SIGKILL], || change().unwrap()));
    drop(console);
    let status = site.status();
    assert_eq!(status["gate"]["interfaces"][0]["mode"], "generic", "{status}");
    assert_eq!((&status["gate"]["max_sources"], site.known()), (&1024.into(), 1), "{status}");
    assert!(site.syns("acme", "tenant_full") >= shed);
    is_full_after_one_more(&site, &ticket);
}

/// A keeper that lets the gate go before it has the next one would shed nothing here, and forget who is full.
#[test]
fn an_upgrade_whose_gate_cannot_be_had_says_why_and_the_keeper_goes_on_with_the_old_one() {
    let place = Place::new();
    let xdp = format!("interfaces = [\"gate0\", \"plain0\"]\n{XDP}");
    let Some(wire) = Wire::new() else { return };
    wire.inside.ip("link add plain0 type bridge").unwrap();
    let _keeper = place.start(&wire.inside, &[]);
    let (appliance, host) = wire
        .inside
        .run(|| (keeper::kept(&place, &xdp, &acme(1)).start_by(keeper::unprivileged()), site::host()));
    let site = Site { appliance, host, wire };
    let ticket = site.appliance.ticket(&site.host);
    let mut console = site.open(client4(1, 1), &ticket).unwrap();
    let shed = site.is_full("the gate knows", &ticket);
    until("the source is known by its ticket", || (site.known() == 1).then_some(()));
    for (section, why) in [
        ("mode = \"native\"", "XDP on plain0: its driver has no native XDP"),
        ("mode = \"native\"\nmax_sources = 1024", "XDP on plain0: its driver has no native XDP"),
        ("max_sources = 1", "xdp.max_sources"),
    ] {
        site.refuses_upgrade(section, why);
        assert_eq!(program(&site, "plain0"), program(&site, GATE), "{section}");
        site::echoes(&mut console);
        assert!(site.is_full("full as before", &ticket) > shed, "{section}");
        assert_eq!(site.known(), 1, "{section}");
    }
    // Once it can be had, nothing is lost by it.
    site.wire.inside.ip("link del plain0").unwrap();
    site.change("interfaces = [\"gate0\", \"plain0\"]", "max_sources = 1024");
    let (passed, old) = (site.syns("acme", "pass"), program(&site, GATE));
    let upgraded = site.appliance.command(&["upgrade"]);
    assert!(upgraded.status.success(), "{}", String::from_utf8_lossy(&upgraded.stderr));
    let _heir = site.in_charge();
    let status = site.status();
    assert_eq!((&status["gate"]["max_sources"], site.known()), (&1024.into(), 1), "{status}");
    assert!(program(&site, GATE).is_some_and(|new| Some(new) != old), "another program");
    assert!(site.syns("acme", "pass") >= passed && site.is_full("full as before", &ticket) > shed);
    site::echoes(&mut console);
}

#[test]
fn a_killed_keeper_costs_the_gate_until_it_is_back_and_nothing_else() {
    let place = Place::new();
    let Some((keeper, mut site)) = start(&place, XDP, &acme(1), &[]) else { return };
    let ticket = site.appliance.ticket(&site.host);
    let mut console = site.open(client4(1, 1), &ticket).unwrap();
    site.is_full("the gate knows", &ticket);
    keeper.kill();
    let off = |line: &serde_json::Value| {
        line["fields"]["message"].as_str().is_some_and(|m| m.starts_with("XDP gate off"))
    };
    site.appliance.wait_log(off);
    assert_eq!(program(&site, GATE), None, "the kernel has detached it");
    let why = site.status()["off"].as_str().unwrap().to_owned();
    assert!(why.contains("keeper.sock") && why.contains("systemctl status mksgate-xdp"), "{why}");
    assert_eq!(site.appliance.metric("mksgate_xdp_attached", &["mode=\"off\""]), 0.0);
    let status = String::from_utf8(site.appliance.command(&["status"]).stdout).unwrap();
    assert!(status.contains("XDP gate off"), "{status}");
    site::echoes(&mut console);
    let Err(Refusal::Told(_)) = site.open(client4(1, 1), &ticket) else { panic!("userspace's limit") };

    let keeper = place.start(&site.wire.inside, &[]);
    site.appliance.wait_log(|line| {
        line["fields"]["message"].as_str().is_some_and(|m| m.starts_with("XDP gate on again"))
    });
    assert_eq!(site.appliance.seen().iter().filter(|line| off(line)).count(), 1, "it was said once");
    keeper.says("a proxy is in charge");
    assert!(program(&site, GATE).is_some());
    // Nothing has changed since: it was told again what it had been told before.
    assert!(site.is_full("the new keeper knows", &ticket) > 0);
    site::echoes(&mut console);
}

#[test]
fn without_a_keeper_it_serves_and_takes_to_it_when_it_comes_or_does_not_start_where_it_is_required() {
    let place = Place::new();
    let Some(wire) = Wire::new() else { return };
    let required = keeper::kept(&place, XDP, &acme(1));
    let mut command = keeper::unprivileged();
    command.args(["serve", "--config"]).arg(required.write());
    let refused = wire.inside.run(|| command.output()).unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("keeper.sock"), "{said}");

    let auto = keeper::kept(&place, &XDP.replace("required", "auto"), &acme(1));
    let (mut appliance, host) = wire.inside.run(|| (auto.start_by(keeper::unprivileged()), site::host()));
    let _keeper = place.start(&wire.inside, &[]);
    appliance.wait_log(|line| {
        line["fields"]["message"].as_str().is_some_and(|m| m.starts_with("XDP gate on again"))
    });
    let site = Site { appliance, host, wire };
    is_full_after_one_more(&site, &site.appliance.ticket(&site.host));
}
