//! Two tenants at one address, one of them under attack: the other one's consoles stay and new ones open.

#[path = "xdp_support/site.rs"]
mod site;
mod support;
mod xdp_support;

use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use mksgate_bench::load::flood::{Flood, Plan};
use site::{Refusal, Site, door4, setup};

use xdp_support::wire::{Wire, client4, until};

const XDP: &str = "enabled = \"required\"\non_limit = \"reset\"\nsource_per_second = 0\nshared_per_second = 20\nshared_burst = 20\n\
    tenant_headroom = 1";
const LIMIT: u64 = 3;

/// acme, the attacked one, comes from 10.77.2.0/24, bolt from 10.77.1.0/24.
fn tenants() -> String {
    let tenant = |name: &str, more: &str| format!("[tenants.{name}]\ntargets = [\"127.0.0.0/8\"]\n{more}\n");
    tenant(
        "acme",
        &format!(
            "max_sessions = {LIMIT}\nsources = [\"10.77.2.0/24\"]\nsessions_per_second = 20\nburst = 20"
        ),
    ) + &tenant("bolt", "max_sessions = 100\nsources = [\"10.77.1.0/24\"]")
}

/// What the attacker's connections came to.
#[derive(Default)]
struct Attack {
    stop: AtomicBool,
    open: AtomicU64,
    most: AtomicU64,
    shed: AtomicU64,
    told: AtomicU64,
}

impl Attack {
    /// Connects as fast as it can with good tickets and keeps what it gets; after many refusals it lets go of that, so that
    /// there is something to get again.
    fn run(&self, wire: &Wire, from: IpAddr, ticket: &str) {
        let (mut held, mut refusals) = (Vec::new(), 0);
        while !self.stop.load(Ordering::Relaxed) {
            match site::open(wire, from, door4(), ticket) {
                Ok(console) => {
                    held.push(console);
                    self.most.fetch_max(self.open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    continue;
                }
                Err(Refusal::Reset) => drop(self.shed.fetch_add(1, Ordering::Relaxed)),
                Err(Refusal::Told(_)) => drop(self.told.fetch_add(1, Ordering::Relaxed)),
            }
            refusals += 1;
            if refusals % 50 == 0 {
                // Taken off the count first: the slot is free some time after the close.
                self.open.fetch_sub(held.len() as u64, Ordering::SeqCst);
                held.clear();
            }
        }
        self.open.fetch_sub(held.len() as u64, Ordering::SeqCst);
    }
}

fn echoes(console: &mut TcpStream) {
    console.write_all(b"key").unwrap();
    let mut back = [0; 3];
    console.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"key");
}

fn flood(wire: &Wire, source: IpAddr, sources: u32) -> Flood {
    wire.flood(Plan { source, sources, destination: door4(), per_second: 5_000, count: 0 })
}

#[test]
fn one_tenants_flood_takes_nothing_from_another() {
    let Some(site) = Site::start(setup(XDP, &tenants())) else { return };
    let acme = site.appliance.ticket(&site.host);
    let bolt = site.appliance.ticket_with(&site.host, |claims| claims.tenant = "bolt".into());
    let open = || site.open(client4(1, 1), &bolt).unwrap();
    let mut consoles: Vec<TcpStream> = (0..10).map(|_| open()).collect();
    let attack = Attack::default();
    thread::scope(|scope| {
        // Ended before the scope waits for the attackers, whatever fails.
        let end = Ends(&attack.stop);
        for client in 2..=3 {
            let (attack, wire, acme) = (&attack, &site.wire, &acme);
            scope.spawn(move || attack.run(wire, client4(2, client).into(), acme));
        }
        until("acme has all it may have", || (attack.most.load(Ordering::SeqCst) == LIMIT).then_some(()));
        // Spoofed from everywhere, and from an address that answers with resets of its own.
        let floods = [
            flood(&site.wire, "10.77.100.1".parse().unwrap(), 10_000),
            flood(&site.wire, client4(2, 1).into(), 1),
        ];
        // Acme's by its limit while the attacker holds all it may have, by its rate while it does not: which of them when is
        // the attacker's doing, who is refused more slowly the more is shed.
        let shed_of_acme = || site.syns("acme", "tenant_rate") + site.syns("acme", "tenant_full");
        until("both floods are shed", || {
            (site.syns("", "tenant_rate") > 1000 && shed_of_acme() > 1000).then_some(())
        });
        for _ in 0..20 {
            consoles.push(open());
            consoles.iter_mut().for_each(echoes);
            assert!(site.appliance.metric("mksgate_sessions", &["tenant=\"acme\""]) <= LIMIT as f64);
        }
        until("the attacker's connections are shed too", || {
            (attack.shed.load(Ordering::Relaxed) > 0).then_some(())
        });
        drop((floods, end));
    });
    let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
    let (most, shed, told) = (count(&attack.most), count(&attack.shed), count(&attack.told));
    println!("acme at most {most} of {LIMIT}; shed {shed}, told {told}");
    assert_eq!(most, LIMIT, "acme had {most} consoles");
    consoles.iter_mut().for_each(echoes);
    assert_eq!(consoles.len(), 30);
    let lost =
        site.appliance.audit().into_iter().filter(|r| r["event"] == "close" && r["tenant"] == "bolt").count();
    assert_eq!(lost, 0, "bolt lost consoles");
    let shed_of_bolt: u64 = ["source_rate", "tenant_full", "tenant_rate", "global_rate"]
        .iter()
        .map(|v| site.syns("bolt", v))
        .sum();
    assert_eq!(shed_of_bolt, 0, "nothing of bolt was shed");
    // The attack over, acme is served again.
    until("acme opens a console", || site.open(client4(2, 4), &acme).ok());
}

/// Tells everybody to stop when it is dropped, by a failed assertion too.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
