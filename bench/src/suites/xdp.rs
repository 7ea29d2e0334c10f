//! Nanoseconds per packet of the XDP program, by BPF_PROG_TEST_RUN: no network, no driver, the program alone.
//!
//! Most cases run one packet many times over, as the kernel times it. A reset rewrites its packet, and a case of many
//! sources wants another packet each time; those run packet by packet, and what the empty program takes that way is
//! taken off.

mod publish;

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result, bail};
use mksgate::xdp::{OBJECT, OnLimit, Policy, Program, TenantPolicy, XdpSection, missing_capabilities};
use mksgate_common::bucket::Rate;
use mksgate_common::testing::Shape;
use serde_json::json;

use crate::load::goals::{Goal, median};
use crate::run::{Context, Outcome, Skip, Spread, Table};

const SUITE: &str = "xdp";
const PASS: u32 = 2;
const DROP: u32 = 1;
const TX: u32 = 3;
const HOST4: [u8; 4] = [192, 0, 2, 1];
const HOST6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 9];
const CLIENT6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1];
/// Runs of one packet between two looks at the clock.
const REPEAT: u32 = 20_000;
/// Packets of a case that runs them one by one.
const SINGLE: usize = 4000;
/// A rate that always gives, and is kept account of all the same.
const AMPLE: Rate = Rate { interval: 1, tolerance: 1 << 60 };
/// A rate that gives once. (A source's own rate is never zero, and one that is shed has a bucket.)
const ONCE: Rate = Rate { interval: 1 << 60, tolerance: 0 };

/// What is measured.
struct Case {
    name: String,
    program: Program,
    /// One: run many times over. Many: each once, in turn.
    packets: Vec<Vec<u8>>,
    action: u32,
    /// Nanoseconds that it may take, and the case that it is measured from, if there is a promise.
    goal: Option<f64>,
    rounds: Vec<f64>,
}

/// Runs every case in turn, several times.
pub fn run(context: &Context, out: &mut Outcome) -> Result<()> {
    if OBJECT.is_none() {
        bail!(Skip::because("this build has no XDP program (cargo xtask ebpf)"));
    }
    let missing = missing_capabilities();
    if !missing.is_empty() {
        bail!(Skip::because(format!("lacks {}", missing.join(" and "))));
    }
    let mut cases = cases(context)?;
    let mut empty = Program::load(&policy(1), &[], 1024)?;
    let (mut empty_many, mut empty_single) = (Vec::new(), Vec::new());
    for _ in 0..context.rounds(41, 11) {
        context.stop.check()?;
        context.watch(|| -> Result<()> {
            let packet = established();
            empty_many.push(many(|repeat| Ok(empty.test_run_empty(&packet, repeat)?))?);
            let all: Vec<_> = (0..SINGLE).map(|_| packet.clone()).collect();
            let base = single(&all, |packet| Ok(empty.test_run_empty(packet, 1)?))?;
            empty_single.push(base);
            for case in &mut cases {
                case.round(base)?;
            }
            Ok(())
        })?;
    }
    report(&cases, &Spread::of(empty_many), &Spread::of(empty_single), out);
    publish::run(context, out)
}

impl Case {
    fn new(name: impl Into<String>, program: Program, packet: Vec<u8>, action: u32) -> Self {
        Self {
            name: name.into(),
            program,
            packets: vec![packet],
            action,
            goal: Some(100.0),
            rounds: Vec::new(),
        }
    }

    /// One round; `base` is what one run of the empty program takes.
    fn round(&mut self, base: f64) -> Result<()> {
        let (program, name, action) = (&self.program, &self.name, self.action);
        let check = |got: u32| {
            if got == action { Ok(()) } else { bail!("{name}: action {got}, wanted {action}") }
        };
        let took = if let [packet] = &self.packets[..] {
            many(|repeat| {
                let outcome = program.test_run(packet, repeat)?;
                check(outcome.action)?;
                Ok(outcome)
            })?
        } else {
            let took = single(&self.packets, |packet| {
                let outcome = program.test_run(packet, 1)?;
                check(outcome.action)?;
                Ok(outcome)
            })?;
            took - base
        };
        self.rounds.push(took);
        Ok(())
    }
}

fn many(run: impl FnOnce(u32) -> Result<mksgate::xdp::Outcome>) -> Result<f64> {
    Ok(run(REPEAT)?.took.as_nanos() as f64)
}

/// The median over packets that run once each.
fn single(packets: &[Vec<u8>], mut run: impl FnMut(&[u8]) -> Result<mksgate::xdp::Outcome>) -> Result<f64> {
    let took: Result<Vec<f64>> = packets.iter().map(|p| Ok(run(p)?.took.as_nanos() as f64)).collect();
    Ok(median(took?))
}

fn cases(context: &Context) -> Result<Vec<Case>> {
    let load = |policy: &Policy| Program::load(policy, &[], 131_072).context("loading the program");
    let mut all = Vec::new();
    let mut established_pass = Case::new("established, pass", load(&policy(1))?, established(), PASS);
    established_pass.goal = None;
    all.push(established_pass);
    let other = Shape::syn(&client(0), &HOST4, 22).build();
    all.push(Case::new("SYN to another port, pass", load(&policy(1))?, other, PASS));
    for tenants in context.pick(&[1, 100, 10_000][..], &[1, 10_000]) {
        all.push(Case::new(format!("SYN, pass, {tenants} tenants"), load(&policy(*tenants))?, syn(0), PASS));
    }
    for sources in context.pick(&[1_000, 65_536][..], &[65_536]) {
        let program = load(&policy(1))?;
        fill(&program, *sources)?;
        all.push(Case::new(format!("SYN, pass, {sources} sources, one of them"), program, syn(7), PASS));
    }
    for sources in context.pick(&[1, 1_000, 65_536][..], &[1, 65_536]) {
        let program = load(&policy(1))?;
        fill(&program, *sources)?;
        let step = 65_537 % *sources;
        let packets = (0..SINGLE as u32).map(|i| syn(i.wrapping_mul(step.max(1) * 31) % sources)).collect();
        let name = format!("SYN, pass, {sources} sources in turn");
        all.push(Case { packets, goal: None, ..Case::new(name, program, Vec::new(), PASS) });
    }
    let mut known = policy(1);
    known.tenants[0].sources.clear();
    let mut program = load(&known)?;
    program.make_known(Ipv4Addr::from(client(0)).into(), 1, u64::MAX)?;
    all.push(Case::new("SYN of a source known by a ticket, pass", program, syn(0), PASS));
    all.push(Case::new("IPv6 SYN, pass", load(&policy(1))?, syn6(), PASS));
    all.extend(shedding(load)?);
    Ok(all)
}

/// A case for each rule.
fn shedding(load: impl Fn(&Policy) -> Result<Program>) -> Result<Vec<Case>> {
    let mut all = Vec::new();
    let mut by = |name: &str, change: &dyn Fn(&mut Policy)| -> Result<()> {
        let mut policy = policy(1);
        change(&mut policy);
        let program = load(&policy)?;
        // What a source or a bucket may have once, it has had.
        program.test_run(&syn(0), 1)?;
        all.push(Case::new(format!("SYN, shed, {name}"), program, syn(0), DROP));
        Ok(())
    };
    by("source rate", &|p| p.limits.source = ONCE)?;
    by("tenant full", &|p| p.tenants[0].max_sessions = Some(0))?;
    by("tenant rate", &|p| p.tenants[0].rate = ONCE)?;
    by("global rate", &|p| p.limits.global = ONCE)?;
    for (name, packet) in [("IPv4", syn(0)), ("IPv6", syn6())] {
        let mut policy = policy(1);
        policy.tenants[0].max_sessions = Some(0);
        policy.limits.on_limit = OnLimit::Reset;
        policy.limits.resets = AMPLE;
        let packets = vec![packet; SINGLE];
        let name = format!("SYN, reset, {name}");
        all.push(Case { packets, ..Case::new(name, load(&policy)?, Vec::new(), TX) });
    }
    Ok(all)
}

/// Limits that hold for everything and are never reached; the last tenant is the one whose SYNs come.
fn policy(tenants: u32) -> Policy {
    let section = XdpSection::default();
    // The defaults are valid: the tests of the configuration see to it.
    let mut limits = section.validate().expect("the defaults").limits;
    (limits.source, limits.shared, limits.global) = (AMPLE, AMPLE, AMPLE);
    let tenant = |number: u32| TenantPolicy {
        number,
        name: format!("tenant-{number}"),
        max_sessions: Some(1000),
        rate: AMPLE,
        sources: match number == tenants {
            true => {
                ["198.18.0.0/15", "2001:db8:0:1::/64"].iter().map(|s| s.parse().expect("a range")).collect()
            }
            false => vec![format!("10.{}.{}.0/24", number >> 8, number & 255).parse().expect("a range")],
        },
        addresses: Vec::new(),
    };
    let listen = vec![SocketAddr::from((HOST4, 443)), SocketAddr::from((HOST6, 443))];
    Policy { limits, listen, tenants: (1..=tenants).map(tenant).collect(), balancers: Vec::new() }
}

/// The source of that number, in 198.18.0.0/15.
fn client(number: u32) -> [u8; 4] {
    (u32::from_be_bytes([198, 18, 0, 0]) + number).to_be_bytes()
}

fn syn(number: u32) -> Vec<u8> {
    Shape::syn(&client(number), &HOST4, 443).build()
}

fn syn6() -> Vec<u8> {
    Shape::syn(&CLIENT6, &HOST6, 443).build()
}

fn established() -> Vec<u8> {
    Shape { flags: 0x10, tcp_options: 12, payload: 100, ..Shape::syn(&client(0), &HOST4, 443) }.build()
}

/// So many sources in the table.
fn fill(program: &Program, sources: u32) -> Result<()> {
    for number in 0..sources {
        program.test_run(&syn(number), 1)?;
    }
    Ok(())
}

fn report(cases: &[Case], empty: &Spread, base: &Spread, out: &mut Outcome) {
    let mut table = Table::new("XDP program, ns per packet", ["", "median", "lowest", "highest"]);
    let row = |name: &str, s: &Spread| {
        [name.to_owned(), format!("{:.0}", s.median), format!("{:.0}", s.low), format!("{:.0}", s.high)]
    };
    table.row(row("empty program", empty));
    table.row(row("empty program, one run each (taken off where packets take turns)", base));
    out.raw("empty", json!({ "many": empty, "single": base }));
    for case in cases {
        let spread = Spread::of(case.rounds.iter().copied());
        table.row(row(&case.name, &spread));
        out.raw("cases", json!({ "name": case.name, "ns": case.rounds }));
        if let Some(goal) = case.goal {
            out.goals.push(Goal::at_most(SUITE, format!("{}: ns", case.name), spread, goal));
        }
    }
    out.table(table);
    let of = |name: &str| cases.iter().find(|c| c.name == name).map(|c| median(c.rounds.iter().copied()));
    if let Some(pass) = of("established, pass") {
        let over = pass - empty.median;
        out.goals.push(Goal::at_most(SUITE, "established, pass: ns over the empty program", over, 5.0));
    }
    for (name, few, full) in [
        ("64 k sources over 1", "SYN, pass, 1 tenants", "SYN, pass, 65536 sources, one of them"),
        ("10 k tenants over 1", "SYN, pass, 1 tenants", "SYN, pass, 10000 tenants"),
    ] {
        if let (Some(few), Some(full)) = (of(few), of(full)) {
            out.goals.push(Goal::at_most(SUITE, format!("flat: {name}, ratio"), full / few, 1.1));
        }
    }
}
