//! Limits by the real binary with clients on the other side of a wire: exact, the same with the gate and without it, and
//! given back after every kind of end.

#[path = "xdp_support/site.rs"]
mod site;
mod support;
mod xdp_support;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use mksgate::ticket::TargetKind;
use mksgate_bench::load::flood::Plan;
use mksgate_bench::sim::{Cut, Fault, Faults, Step};
use nix::sys::signal::Signal;
use site::{Refusal, Site, door4, door6, setup};
use xdp_support::wire::{client4, client6, until};

const GATE_ON: &str =
    "enabled = \"required\"\non_limit = \"reset\"\nsource_per_second = 0\nshared_per_second = 0";
const GATE_OFF: &str = "enabled = \"off\"";

/// A tenant that is known by where its users come from.
fn acme(max_sessions: u32, more: &str) -> String {
    format!(
        "[tenants.acme]\nmax_sessions = {max_sessions}\nsources = [\"10.77.1.0/24\", \"fd77:0:0:1::/64\"]\n\
         targets = [\"127.0.0.0/8\"]\n{more}\n"
    )
}

/// Never more than the limit, as many as the limit, and again after they have ended.
fn exact(limit: u32, xdp: &str) {
    let Some(site) = Site::start(setup(xdp, &acme(limit, ""))) else { return };
    let ticket = site.appliance.ticket(&site.host);
    let gate = xdp == GATE_ON;
    let rounds = if limit < 100 { &["at first", "after all have ended"][..] } else { &["at first"] };
    for round in rounds {
        let (open, tried) = (std::sync::Mutex::new(Vec::new()), AtomicU32::new(0));
        // A few more than may be, from several sources at once.
        let attempts = limit + 12;
        std::thread::scope(|scope| {
            for client in 1..=4 {
                let (wire, ticket, open, tried) = (&site.wire, &ticket, &open, &tried);
                scope.spawn(move || {
                    while tried.fetch_add(1, Ordering::Relaxed) < attempts {
                        match site::open(wire, client4(1, client).into(), door4(), ticket) {
                            Ok(console) => open.lock().unwrap().push(console),
                            Err(Refusal::Reset) => assert!(gate, "without the gate every client is told"),
                            Err(Refusal::Told(said)) => assert!(said.starts_with("5"), "{said}"),
                        }
                    }
                });
            }
        });
        let mut open = open.into_inner().unwrap();
        assert_eq!(open.len(), limit as usize, "{round}");
        sessions_become(&site, limit);
        for console in open.iter_mut().take(3) {
            console.write_all(b"alive").unwrap();
            let mut answer = [0; 5];
            console.read_exact(&mut answer).unwrap();
        }
        if gate {
            // Now that the kernel knows, nobody gets as far as TCP.
            let full = until("the gate knows", || match site.open(client4(1, 1), &ticket) {
                Err(Refusal::Reset) => Some(site.syns("acme", "tenant_full")),
                Err(Refusal::Told(_)) => None,
                Ok(_) => panic!("more than the limit"),
            });
            assert_eq!(site.open(client4(1, 2), &ticket).unwrap_err(), Refusal::Reset);
            assert_eq!(site.syns("acme", "tenant_full"), full + 1);
        }
        drop(open);
        sessions_become(&site, 0);
        if gate && limit > 0 {
            drop(site.open_soon("the gate knows that too", &ticket));
            sessions_become(&site, 0);
        }
    }
    if gate && limit == 0 {
        assert_eq!(site.syns("acme", "pass"), 0, "not one SYN reached the stack");
    }
}

fn sessions_become(site: &Site, number: u32) {
    let now = || site.appliance.metric("mksgate_sessions", &["tenant=\"acme\""]);
    until("the number of sessions", || (now() == f64::from(number)).then_some(()));
}

#[test]
fn a_limit_of_0_is_exact() {
    exact(0, GATE_ON);
    exact(0, GATE_OFF);
}

#[test]
fn a_limit_of_1_is_exact() {
    exact(1, GATE_ON);
    exact(1, GATE_OFF);
}

#[test]
fn a_limit_of_10_is_exact() {
    exact(10, GATE_ON);
    exact(10, GATE_OFF);
}

#[test]
fn a_limit_of_1000_is_exact_with_the_gate() {
    exact(1000, GATE_ON);
}

#[test]
fn a_limit_of_1000_is_exact_without_the_gate() {
    exact(1000, GATE_OFF);
}

/// Waits until the gate knows that acme is full; meanwhile the appliance refuses.
fn full(site: &Site, ticket: &str) {
    until("the gate knows that it is full", || {
        (site.open(client4(1, 2), ticket).unwrap_err() == Refusal::Reset).then_some(())
    });
}

/// One way for a console to end, and the reason that the log names.
type Ending = (&'static str, fn(&mut Site, TcpStream));

const ENDINGS: [Ending; 8] = [
    ("client_closed", |_, console| drop(console)),
    ("client_reset", |_, console| {
        socket2::SockRef::from(&console).set_linger(Some(Duration::ZERO)).unwrap();
    }),
    ("backend_closed", |site, mut console| {
        site.host.cut(Cut::Close);
        let _ = console.read_to_end(&mut Vec::new());
    }),
    ("backend_reset", |site, mut console| {
        site.host.cut(Cut::Reset);
        let _ = console.read_to_end(&mut Vec::new());
    }),
    ("operator", |site, mut console| {
        let done = site.appliance.command(&["sessions", "close", "--tenant", "acme"]);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let _ = console.read_to_end(&mut Vec::new());
    }),
    ("idle_timeout", |_, mut console| drop(console.read_to_end(&mut Vec::new()))),
    ("session_deadline", |_, mut console| {
        // Not idle, so that its deadline is what ends it.
        while console.write_all(b"x").is_ok() && matches!(console.read(&mut [0]), Ok(1)) {}
    }),
    ("ticket_revoked", |site, mut console| {
        let done = site.appliance.command(&["ticket", "revoke", "--tenant", "acme"]);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let _ = console.read_to_end(&mut Vec::new());
    }),
];

#[test]
fn a_slot_comes_back_after_every_kind_of_end() {
    let tenants = acme(1, "idle_seconds = 2\nsession_seconds = 4");
    let Some(mut site) = Site::start(setup(GATE_ON, &tenants)) else { return };
    for (reason, end) in ENDINGS {
        let ticket = site.appliance.ticket(&site.host);
        let console = site.open_soon("the slot is free", &ticket);
        full(&site, &ticket);
        end(&mut site, console);
        assert_eq!(site.appliance.wait_closed(), reason);
    }
    let ticket = site.appliance.ticket(&site.host);
    assert!(site.open(client4(1, 1), &ticket).is_err(), "everything of the tenant was revoked");
}

#[test]
fn what_ends_before_it_is_a_console_takes_no_slot() {
    let Some(mut site) = Site::start(setup(GATE_ON, &acme(1, ""))) else { return };
    let ticket = site.appliance.ticket(&site.host);
    let attempts: [(&str, &dyn Fn(&Site)); 5] = [
        ("client_closed", &|site| drop(site.wire.connect(client4(1, 1).into(), door4()).unwrap())),
        ("ticket_malformed", &|site| drop(site.open(client4(1, 1), "nonsense").unwrap_err())),
        ("backend_refused", &|site| {
            site.host.set_faults(Faults::none().at(Step::Pass, Fault::code(530)));
            site.open(client4(1, 1), &ticket).unwrap_err();
        }),
        ("backend_closed", &|site| {
            site.host.set_faults(Faults::none().at(Step::Banner, Fault::Close));
            site.open(client4(1, 1), &ticket).unwrap_err();
        }),
        ("backend_unreachable", &|site| {
            let nowhere = site.appliance.ticket_with(&site.host, |claims| {
                claims.target.port = Some(1);
                assert_eq!(claims.target.kind, TargetKind::EsxiMks);
            });
            site.open(client4(1, 1), &nowhere).unwrap_err();
        }),
    ];
    for (reason, attempt) in attempts {
        attempt(&site);
        site.appliance.wait_refused(reason);
        site.host.set_faults(Faults::none());
        let console = site.open_soon("the slot is free", &ticket);
        drop(console);
        assert_eq!(site.appliance.wait_closed(), "client_closed");
    }
}

#[test]
fn a_restart_keeps_nothing_stale() {
    let Some(mut site) = Site::start(setup(GATE_ON, &acme(1, ""))) else { return };
    let ticket = site.appliance.ticket(&site.host);
    let _lost = site.open(client4(1, 1), &ticket).unwrap();
    full(&site, &ticket);
    // Killed: nothing of it says good-bye.
    let wire = &site.wire;
    wire.inside.run(|| site.appliance.restart(&[Signal::SIGKILL], || ()));
    let console = site.open(client4(1, 1), &ticket).unwrap();
    full(&site, &ticket);
    drop(console);
    // In order: the gate leaves with the process.
    site.appliance.signal(Signal::SIGTERM);
    site.appliance.signal(Signal::SIGINT);
    assert!(site.appliance.wait_end().success());
    assert_eq!(site.wire.program_on(xdp_support::wire::GATE), None);
}

#[test]
fn a_reload_forgets_no_session_and_takes_the_new_limit() {
    let Some(mut site) = Site::start(setup(GATE_ON, &acme(2, ""))) else { return };
    let ticket = site.appliance.ticket(&site.host);
    let first = site.open(client4(1, 1), &ticket).unwrap();
    let reload = |site: &mut Site, max| {
        let path = site.appliance.dir.path().join("mksgate.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        let at = text.find("[tenants.acme]").unwrap();
        std::fs::write(&path, format!("{}{}", &text[..at], acme(max, ""))).unwrap();
        site.appliance.signal(Signal::SIGHUP);
        site.appliance
            .wait_log(|line| line["fields"]["message"].as_str().is_some_and(|m| m.contains("reload")));
    };
    reload(&mut site, 1);
    full(&site, &ticket);
    reload(&mut site, 2);
    let _second = site.open_soon("the limit is two again", &ticket);
    full(&site, &ticket);
    drop(first);
}

#[test]
fn a_shed_client_fails_at_once_under_reset_over_both_families() {
    let Some(site) = Site::start(setup(GATE_ON, &acme(0, ""))) else { return };
    let ticket = site.appliance.ticket(&site.host);
    assert_eq!(site.open(client4(1, 1), &ticket).unwrap_err(), Refusal::Reset);
    assert_eq!(site.open_at(client6(1), door6(), &ticket).unwrap_err(), Refusal::Reset);
    let resets = site.appliance.metric("mksgate_xdp_resets_total", &["tenant=\"acme\""]);
    assert_eq!(resets, 2.0, "and it was the gate that answered");
    // The other network's source is nobody's yet, and is told by the appliance.
    assert!(matches!(site.open(client4(2, 1), &ticket), Err(Refusal::Told(_))));
    assert!(matches!(site.open_at(client6(2), door6(), &ticket), Err(Refusal::Told(_))));
}

#[test]
fn a_shed_client_under_drop_gets_through_when_there_is_room() {
    let drop_them = GATE_ON.replace("reset", "drop");
    let Some(site) = Site::start(setup(&drop_them, &acme(1, ""))) else { return };
    let ticket = site.appliance.ticket(&site.host);
    for (from, to) in [(IpAddr::from(client4(1, 2)), door4()), (client6(1).into(), door6())] {
        let first = site.open_soon("a slot", &ticket);
        until("the gate knows", || (site.status()["gate"]["tenants"] == 1).then_some(()));
        let shed = site.syns("acme", "tenant_full");
        let waiting = knock(&site, from, to, shed);
        drop(first);
        // The kernel sends the SYN again after a second; then there is room.
        waiting.set_nonblocking(false).unwrap();
        let tcp = TcpStream::from(waiting);
        until("connected", || tcp.peer_addr().ok());
        drop(site::console(tcp, &ticket).unwrap());
        sessions_become(&site, 0);
    }
}

/// A connection that is under way and was shed once more than `before`.
fn knock(site: &Site, from: IpAddr, to: SocketAddr, before: u64) -> socket2::Socket {
    until("a SYN is shed", || {
        let socket = site.wire.dial(from).unwrap();
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&to.into());
        // Either the SYN is counted as shed, or the gate did not know yet and the connection stands.
        until("the SYN has arrived", || {
            let shed = site.syns("acme", "tenant_full") > before;
            (shed || socket.peer_addr().is_ok()).then_some(())
        });
        socket.peer_addr().is_err().then_some(socket)
    })
}

#[test]
fn a_ticket_makes_its_source_known() {
    let xdp = "enabled = \"required\"\non_limit = \"reset\"\nsource_per_second = 0\nshared_per_second = 1\nshared_burst = 2";
    let tenants = "[tenants.acme]\nmax_sessions = 100\ntargets = [\"127.0.0.0/8\"]\n";
    let Some(site) = Site::start(setup(xdp, tenants)) else { return };
    let ticket = site.appliance.ticket(&site.host);
    let mut held = vec![site.open(client4(1, 1), &ticket).unwrap()];
    until("the source is known", || (site.status()["gate"]["known_sources"] == 1).then_some(()));
    for _ in 0..20 {
        held.push(site.open(client4(1, 1), &ticket).unwrap());
    }
    assert_eq!(site.syns("acme", "pass"), 20);
    // Strangers share one a second among themselves.
    let mut shed = 0;
    until("ten strangers are shed", || {
        shed += u64::from(site.wire.connect(client4(1, 2).into(), door4()).is_err());
        (shed == 10).then_some(())
    });
    assert_eq!(site.syns("", "tenant_rate"), 10);
    drop(held);
}

#[test]
fn a_load_balancer_is_no_source_and_is_never_learned() {
    let xdp = "enabled = \"required\"\non_limit = \"reset\"\nsource_per_second = 1\nsource_burst = 1\nshared_per_second = 0";
    let tenants = "[tenants.acme]\nmax_sessions = 100\ntargets = [\"127.0.0.0/8\"]\n";
    let setup = setup(xdp, tenants).with("[proxy_protocol]\nfrom = [\"10.77.2.1\"]");
    let Some(site) = Site::start(setup) else { return };
    let ticket = site.appliance.ticket(&site.host);
    let held: Vec<TcpStream> = (0..10)
        .map(|client| {
            let mut tcp = site.wire.connect(client4(2, 1).into(), door4()).unwrap();
            let header = format!("PROXY TCP4 198.51.100.{client} 10.77.0.1 40000 902\r\n");
            tcp.write_all(header.as_bytes()).unwrap();
            site::console(tcp, &ticket).unwrap()
        })
        .collect();
    assert_eq!(site.syns("", "pass"), 10, "none by the source's rate, none of acme by learning");
    // Anybody else has one a second; the ticket makes that one known.
    let console = site.open(client4(1, 1), &ticket).unwrap();
    until("the source is known", || (site.status()["gate"]["known_sources"] == 1).then_some(()));
    let mut shed = 0;
    until("the source is held to its rate", || {
        shed += u64::from(site.wire.connect(client4(1, 1).into(), door4()).is_err());
        (shed == 5).then_some(())
    });
    assert_eq!(site.syns("acme", "source_rate"), 5);
    drop((held, console));
}

#[test]
fn without_the_capabilities_it_serves_without_the_gate_and_says_so() {
    let Some(wire) = xdp_support::wire::Wire::new() else { return };
    let without = |setup: support::Setup| {
        let mut command = std::process::Command::new("setpriv");
        command.args(["--bounding-set=-bpf,-net_admin,-sys_admin", "--inh-caps=-all"]);
        command.arg(env!("CARGO_BIN_EXE_mksgate"));
        (setup, command)
    };
    let (auto, command) = without(setup("enabled = \"auto\"", &acme(1, "")));
    let (mut appliance, host) = wire.inside.run(|| (auto.start_by(command), site::host()));
    let status: serde_json::Value =
        serde_json::from_slice(&appliance.command(&["xdp", "status", "--json"]).stdout).unwrap();
    let why = status["off"].as_str().unwrap();
    assert!(why.contains("CAP_BPF and CAP_NET_ADMIN"), "{why}");
    assert_eq!(appliance.metric("mksgate_xdp_attached", &["mode=\"off\""]), 0.0);
    let ticket = appliance.ticket(&host);
    let connect = || wire.connect(client4(1, 1).into(), door4()).unwrap();
    let _console = site::console(connect(), &ticket).unwrap();
    let refused = site::console(connect(), &ticket).unwrap_err();
    assert!(refused.starts_with('5'), "the limit holds all the same: {refused}");
    appliance.wait_refused("tenant_full");

    drop(appliance);
    let (required, mut command) = without(setup("enabled = \"required\"", &acme(1, "")));
    command.args(["serve", "--config"]).arg(required.write());
    let done = wire.inside.run(|| command.output()).unwrap();
    assert!(!done.status.success());
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(said.contains("CAP_BPF") && said.contains("AmbientCapabilities"), "{said}");
}

#[test]
fn what_is_shed_is_told_in_log_audit_metrics_and_lists() {
    let xdp = "enabled = \"required\"\nsource_per_second = 1\nsource_burst = 1\nevents_per_second = 2";
    let Some(mut site) = Site::start(setup(xdp, &acme(1, ""))) else { return };
    let plan =
        Plan { source: client4(1, 1).into(), sources: 1, destination: door4(), per_second: 0, count: 2000 };
    site.wire.flood(plan).finish().unwrap();
    let line = site.appliance.wait_log(|line| {
        line["fields"]["message"].as_str().is_some_and(|m| m.contains("XDP gate shed a connection"))
    });
    assert_eq!(line["fields"]["source"], "10.77.1.1");
    assert_eq!(
        (&line["fields"]["tenant"], &line["fields"]["reason"]),
        (&"acme".into(), &"source_rate".into())
    );
    let shed = until("the audit file has it", || {
        site.appliance.audit().into_iter().find(|record| record["event"] == "shed")
    });
    assert_eq!((&shed["tenant"], &shed["reason"]), (&"acme".into(), &"source_rate".into()));
    assert_eq!((&shed["source"], &shed["destination"]), (&"10.77.1.1".into(), &"10.77.0.1:902".into()));
    until("all that came are counted", || (site.syns("acme", "source_rate") > 1000).then_some(()));
    let records = site.appliance.audit().into_iter().filter(|record| record["event"] == "shed").count();
    assert!(records < 1000, "samples, not every one: {records}");

    let status = site.status();
    assert_eq!(status["gate"]["interfaces"][0]["mode"], "native");
    let of_acme = status["tenants"].as_array().unwrap().iter().find(|t| t["name"] == "acme").unwrap();
    assert!(of_acme["shed"].as_u64().unwrap() > 1000, "{of_acme}");
    let listed = site.appliance.command(&["xdp", "top-sources", "--count", "1"]);
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains("10.77.1.1"), "{listed}");
    let config = site.appliance.dir.path().join("mksgate.toml");
    let mut doctor = support::mksgate();
    doctor.args(["doctor", "--config"]).arg(config);
    let examined = site.wire.inside.run(|| doctor.output()).unwrap();
    let examined = String::from_utf8_lossy(&examined.stdout).into_owned();
    let line = examined.lines().find(|line| line.contains("gate0")).unwrap_or_else(|| panic!("{examined}"));
    assert!(line.contains("native"), "{line}");
}
