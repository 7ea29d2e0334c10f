//! The gate on real interfaces: where it attaches, what it says where it cannot, and how it leaves.

mod xdp_support;

use std::net::SocketAddr;
use std::time::Instant;

use aya::Ebpf;
use aya::programs::{Xdp, xdp::XdpMode};
use mksgate::xdp::{Enabled, GateError, InterfaceProblem, Mode, OBJECT, OnLimit, XdpSection};
use mksgate_bench::load::flood::Plan;
use mksgate_common::{bucket::Rate, verdict::Verdict};
use xdp_support::wire::{GATE, HOST4, PATIENCE, Wire, client4, modes, until};
use xdp_support::{policy, tenant};

/// An interface whose driver has no native XDP.
const PLAIN: &str = "lo";

fn service() -> SocketAddr {
    SocketAddr::from((HOST4, 443))
}

/// `[xdp]` for these interfaces.
fn on(interfaces: &[&str]) -> XdpSection {
    XdpSection { interfaces: interfaces.iter().map(|i| (*i).to_owned()).collect(), ..XdpSection::default() }
}

fn is(mode: &str) -> Vec<(String, String)> {
    vec![(GATE.to_owned(), mode.to_owned())]
}

#[test]
fn native_where_the_driver_has_it_and_gone_with_the_gate() {
    let Some(wire) = Wire::new() else { return };
    // No interface is named: the one that carries the address is found.
    let (gate, _events) = wire.start(&on(&[]), policy(vec![service()], vec![])).unwrap();
    assert_eq!(modes(&gate), is("native"));
    assert_eq!(wire.program_on(GATE), Some(("native", gate.status().program)));
    let _listener = wire.listen(service());
    wire.connect(client4(1, 1).into(), service()).unwrap();
    let counters = gate.counters().unwrap();
    assert_eq!(counters.packets(Verdict::Pass), 1);
    assert!(counters.packets(Verdict::Established) >= 1, "the ACK");
    drop(gate);
    assert_eq!(wire.program_on(GATE), None, "detached");
    wire.connect(client4(1, 1).into(), service()).unwrap();
}

#[test]
fn generic_as_configured() {
    let Some(wire) = Wire::new() else { return };
    let section = XdpSection { mode: Some(Mode::Generic), ..on(&[GATE]) };
    let (gate, _events) = wire.start(&section, policy(vec![service()], vec![])).unwrap();
    assert_eq!(modes(&gate), is("generic"));
    assert_eq!(wire.program_on(GATE), Some(("generic", gate.status().program)));
    let _listener = wire.listen(service());
    wire.connect(client4(1, 1).into(), service()).unwrap();
    assert_eq!(gate.counters().unwrap().packets(Verdict::Pass), 1);
    drop(gate);
    assert_eq!(wire.program_on(GATE), None);
}

#[test]
fn a_driver_without_native_mode_gets_the_generic_one_or_is_named() {
    let Some(wire) = Wire::new() else { return };
    let (gate, _events) = wire.start(&on(&[PLAIN]), policy(vec![service()], vec![])).unwrap();
    let interface = gate.status().interfaces.remove(0);
    assert_eq!(interface.mode, "generic");
    assert!(interface.problem.is_some(), "says why it is not native");
    drop(gate);

    let native = XdpSection { mode: Some(Mode::Native), ..on(&[PLAIN]) };
    let error = wire.start(&native, policy(vec![service()], vec![])).err().unwrap();
    let text = error.to_string();
    assert!(text.contains(PLAIN) && text.contains("no native XDP"), "{text}");
    assert!(text.contains("\"generic\""), "names the remedy: {text}");
    assert_eq!(wire.program_on(PLAIN), None);
}

#[test]
fn a_program_of_somebody_else_is_left_alone_and_named() {
    let Some(wire) = Wire::new() else { return };
    let mut other = Ebpf::load(OBJECT.unwrap()).unwrap();
    let program: &mut Xdp = other.program_mut("mksgate_empty").unwrap().try_into().unwrap();
    program.load().unwrap();
    let id = program.info().unwrap().id();
    let link = wire.inside.run(|| program.attach(GATE, XdpMode::default())).unwrap();

    let error = wire.start(&on(&[GATE]), policy(vec![service()], vec![])).err().unwrap();
    assert!(matches!(&error, GateError::Interface { problem: InterfaceProblem::Occupied(_), .. }), "{error}");
    let text = error.to_string();
    for part in [GATE, "another XDP program is attached", "mksgate_empty", &id.to_string(), "xdp off"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(wire.program_on(GATE), Some(("native", id)), "still there");

    // With a second interface the gate starts, says what is amiss, and takes the first one when it is free.
    let (gate, _events) = wire.start(&on(&[GATE, PLAIN]), policy(vec![service()], vec![])).unwrap();
    let status = gate.status();
    assert_eq!(status.interfaces[0].mode, "off");
    assert!(status.interfaces[0].problem.as_deref().unwrap().contains("mksgate_empty"));
    assert_eq!(status.interfaces[1].mode, "generic");
    program.detach(link).unwrap();
    until("the gate on the freed interface", || (modes(&gate)[0].1 == "native").then_some(()));
    drop(gate);

    // Required means all of them.
    let link = wire.inside.run(|| program.attach(GATE, XdpMode::default())).unwrap();
    let required = XdpSection { enabled: Some(Enabled::Required), ..on(&[GATE, PLAIN]) };
    let error = wire.start(&required, policy(vec![service()], vec![])).err().unwrap();
    assert!(error.to_string().contains("another XDP program"), "{error}");
    assert_eq!(wire.program_on(PLAIN), None, "nothing stays attached");
    program.detach(link).unwrap();
}

/// The thread's own timer is one of a second: so many changes would take it a quarter of an hour.
const CHANGES: u32 = 1000;

#[test]
fn a_tenants_sessions_reach_the_kernel_by_the_change_itself_and_by_no_timer() {
    let Some(wire) = Wire::new() else { return };
    let acme = tenant(1, "acme", Some(CHANGES), Rate::UNLIMITED, &[], &[]);
    let (gate, _events) = wire.start(&on(&[GATE]), policy(vec![service()], vec![acme])).unwrap();
    let hangs = Instant::now() + PATIENCE;
    for sessions in 1..=CHANGES {
        gate.set_active(1, sessions);
        while gate.published(1).unwrap() != sessions {
            assert!(Instant::now() < hangs, "{sessions} is not published");
            std::thread::yield_now();
        }
    }
}

#[test]
fn an_interface_may_be_missing_vanish_and_return() {
    let Some(wire) = Wire::new() else { return };
    let error = wire.start(&on(&["nowhere0"]), policy(vec![service()], vec![])).err().unwrap().to_string();
    assert!(error.contains("nowhere0") && error.contains("no such interface"), "{error}");

    let (gate, _events) = wire.start(&on(&[GATE]), policy(vec![service()], vec![])).unwrap();
    wire.inside.ip(&format!("link delete {GATE}")).unwrap();
    let problem = until("the loss is told", || {
        let interface = gate.status().interfaces.remove(0);
        (interface.mode == "off").then_some(interface.problem).flatten()
    });
    assert!(problem.contains("vanished") || problem.contains("no such interface"), "{problem}");
    wire.plug();
    until("the gate on the new interface", || (modes(&gate) == is("native")).then_some(()));
    let before = gate.counters().unwrap().packets(Verdict::Pass);
    let _listener = wire.listen(service());
    wire.connect(client4(1, 1).into(), service()).unwrap();
    assert_eq!(gate.counters().unwrap().packets(Verdict::Pass), before + 1);
}

#[test]
fn a_reload_changes_the_policy_under_the_same_link() {
    let Some(wire) = Wire::new() else { return };
    let acme = |max| tenant(1, "acme", Some(max), Rate::UNLIMITED, &["10.77.1.0/24"], &[]);
    let mut old = policy(vec![service()], vec![acme(5)]);
    old.limits.on_limit = OnLimit::Reset;
    let (gate, _events) = wire.start(&on(&[GATE]), old.clone()).unwrap();
    let program = gate.status().program;
    let _listener = wire.listen(service());
    let open = || wire.connect(client4(1, 1).into(), service());
    gate.set_active(1, 3);
    open().unwrap();

    let mut new = old.clone();
    new.tenants = vec![acme(3)];
    let config = on(&[GATE]).validate().unwrap();
    gate.update(config.clone(), new).unwrap();
    assert_eq!(gate.status().program, program, "the same program, other tables");
    let refused = until("three of three", || open().err());
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);

    // More tenants than there is room for: another program, the same counts, and no packet past either.
    let mut large = old.clone();
    large.tenants = vec![acme(3)];
    large.tenants.extend((2..=200).map(|n| tenant(n, &format!("t{n}"), None, Rate::UNLIMITED, &[], &[])));
    let before = gate.counters().unwrap();
    gate.update(config.clone(), large).unwrap();
    let grown = gate.status();
    assert_ne!(grown.program, program);
    assert_eq!(wire.program_on(GATE), Some(("native", grown.program)));
    assert_eq!(open().unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused, "the count went along");
    let after = gate.counters().unwrap();
    assert_eq!(after.packets(Verdict::TenantFull), before.packets(Verdict::TenantFull) + 1, "counters go on");

    let mut equal = old;
    equal.tenants.push(tenant(2, "bolt", None, Rate::UNLIMITED, &["10.77.1.0/24"], &[]));
    let error = gate.update(config, equal).unwrap_err().to_string();
    assert!(error.contains("acme") && error.contains("bolt"), "{error}");
    assert!(open().is_err(), "the old policy stays in force");
}

#[test]
fn an_upgrade_lets_no_packet_by_unseen() {
    let Some(wire) = Wire::new() else { return };
    let start = || wire.start(&on(&[GATE]), policy(vec![service()], vec![])).unwrap();
    let (old, _events) = start();
    let _listener = wire.listen(service());
    let arrived = || {
        let shown = wire.inside.command("cat", &["/proc/thread-self/net/dev"]).unwrap();
        let line =
            shown.lines().find_map(|line| line.trim().strip_prefix(&format!("{GATE}:"))).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let seen = |gate: &mksgate::xdp::Gate| gate.counters().unwrap().packets.iter().sum::<u64>();
    // Neighbour discovery and the like may have come before the gate.
    let (seen_before, arrived_before) = (seen(&old), arrived());
    let flood = wire.flood(Plan {
        source: client4(1, 1).into(),
        sources: 1,
        destination: SocketAddr::from((HOST4, 9)),
        per_second: 20_000,
        count: 8_000,
    });
    until("the flood runs", || (seen(&old) > seen_before + 1000).then_some(()));
    let (young, _young_events) = start();
    until("the older one notices", || (modes(&old) == is("off")).then_some(()));
    assert!(old.status().interfaces[0].problem.as_deref().unwrap().contains("younger"));
    assert_eq!(modes(&young), is("native"));
    flood.finish().unwrap();
    let program = young.status().program;
    let seen_old = seen(&old);
    drop(old);
    assert_eq!(wire.program_on(GATE), Some(("native", program)), "the older one's end detaches nothing");
    wire.connect(client4(1, 1).into(), service()).unwrap();
    until("every packet was seen by one of the two", || {
        let seen = seen_old + seen(&young) - seen_before;
        let arrived = arrived() - arrived_before;
        assert!(seen <= arrived, "{seen} of {arrived}");
        (seen == arrived && seen > 8_000).then_some(())
    });
}

#[test]
fn a_gate_takes_its_links_back_from_a_younger_one_that_failed() {
    let Some(wire) = Wire::new() else { return };
    let acme = tenant(1, "acme", Some(1), Rate::UNLIMITED, &["10.77.1.0/24"], &[]);
    let mut policy = policy(vec![service()], vec![acme]);
    policy.limits.on_limit = OnLimit::Reset;
    let start = || wire.start(&on(&[GATE]), policy.clone()).unwrap();
    let (old, _events) = start();
    let program = old.status().program;
    let _listener = wire.listen(service());
    let before = old.counters().unwrap();
    let (young, _young_events) = start();
    until("the older one notices", || (modes(&old) == is("off")).then_some(()));
    assert_ne!(wire.program_on(GATE), Some(("native", program)));
    // What happens meanwhile is published in the program that nobody runs.
    old.set_active(1, 1);
    drop(young);
    old.take_back();
    assert_eq!(wire.program_on(GATE), Some(("native", program)));
    assert_eq!(modes(&old), is("native"));
    until("the tenant is full here too", || wire.connect(client4(1, 1).into(), service()).err());
    let after = old.counters().unwrap();
    assert!(after.packets(Verdict::TenantFull) > before.packets(Verdict::TenantFull), "its counters go on");
    // A younger one that is late.
    let (late, _late_events) = start();
    until("taken back again", || (wire.program_on(GATE) == Some(("native", program))).then_some(()));
    drop(late);
    assert_eq!(wire.program_on(GATE), Some(("native", program)));
    // And it is looked after: what vanishes is attached to when it returns.
    wire.inside.ip(&format!("link delete {GATE}")).unwrap();
    wire.plug();
    until("the gate on the new interface", || (modes(&old) == is("native")).then_some(()));
}
