//! The XDP gate at its keeper, under systemd.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use mksgate_bench::netns::Namespace;
use mksgate_bench::sim::Esxi;

use super::nspawn::{Machine, succeed};
use super::{CONFIG, complaints, echoes, journal, open, property, property_of};

/// The machine's interface that it is put on.
const GATE: &str = "gate0";
const KEEPER: &str = "mksgate-xdp.service";

/// As the drop-in says: a crash of the keeper, its restart, an upgrade and a package leave it in place with all that it has
/// counted, a stop takes it away, and the process at the network has no privilege for it.
pub fn keeps_it(machine: &Machine, host: &Esxi) {
    if mksgate::xdp::OBJECT.is_none() {
        let why = "this build has no XDP program; `cargo xtask ebpf` builds it";
        assert!(std::env::var_os("MKSGATE_FULL_TESTS").is_none(), "{why}");
        return eprintln!("skipped: {why}");
    }
    let world = Namespace::new().unwrap();
    machine.wire(GATE, &world, "world0");
    world.v4("world0", Ipv4Addr::new(10, 99, 0, 2)).unwrap();
    for command in [format!("addr add 10.99.0.1/16 dev {GATE}"), format!("link set {GATE} up")] {
        succeed(Command::new("ip").args(command.split(' ')));
    }
    let from_the_world = || world.run(|| open(machine, host, "10.99.0.1:443"));
    machine.ok("mkdir -p /etc/systemd/system/mksgate.service.d");
    let drop_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/drop-ins/xdp.conf");
    machine.write("/etc/systemd/system/mksgate.service.d/xdp.conf", &fs::read_to_string(drop_in).unwrap());
    let section = format!(
        "enabled = \"required\"\\nkeeper = \"/run/mksgate-xdp/keeper.sock\"\\ninterfaces = [\"{GATE}\"]"
    );
    machine.ok(&format!("sed -i 's,^enabled = \"off\",{section},' {CONFIG}"));
    machine.ok("systemctl daemon-reload; systemctl restart mksgate");

    let report = machine.ok("mksgate doctor --json || true");
    assert!(report.contains(&format!("{GATE}: native")), "{report}");
    assert!(complaints(machine).iter().all(|line| line.contains("self-signed")), "{:?}", complaints(machine));
    let status = machine.ok("mksgate xdp status");
    assert!(status.contains(GATE) && status.contains("native"), "{status}");
    assert_eq!(capabilities(machine, "mksgate.service"), 1 << 12, "CAP_NET_ADMIN alone");
    assert_eq!(capabilities(machine, KEEPER), 1 << 12 | 1 << 38 | 1 << 39);
    let mut console = from_the_world();
    let seen = passed(machine);
    assert!(seen > 0, "it came by the gate");

    // systemd keeps what the keeper had, and the next one goes on with it: nobody is without.
    let (ours, off) = (program(machine), journal(machine).matches("XDP gate off").count());
    for (end, how) in [("kill -s KILL", "killed"), ("restart", "restarted")] {
        let (seen, keeper) = (passed(machine), property_of(machine, KEEPER, "MainPID"));
        machine.ok(&format!("systemctl {end} {KEEPER}"));
        assert_eq!(on_the_interface(), Some(ours), "{how}: with a keeper or without");
        another_keeper(machine, &keeper);
        is_on(machine);
        assert_eq!((on_the_interface(), program(machine)), (Some(ours), ours), "{how}");
        drop(from_the_world());
        assert!(passed(machine) > seen, "{how}: its counters go on");
        echoes(&mut console, how.as_bytes());
    }
    let said = machine.ok(&format!("journalctl --sync; journalctl -u {KEEPER} --no-pager"));
    assert_eq!(said.matches("goes on with the XDP gate of the keeper before").count(), 2, "{said}");
    assert_eq!(journal(machine).matches("XDP gate off").count(), off, "{}", journal(machine));

    let (program, seen, pid) = (program(machine), passed(machine), property(machine, "MainPID"));
    machine.ok("mksgate upgrade");
    assert_ne!(property(machine, "MainPID"), pid);
    machine.ok("systemctl reload mksgate");
    assert_eq!(self::program(machine), program, "the gate stays where it is");
    echoes(&mut console, b"over an upgrade");
    drop(from_the_world());
    assert!(passed(machine) > seen, "its counters go on");

    let (seen, keeper) = (passed(machine), property_of(machine, KEEPER, "MainPID"));
    machine.ok("dpkg -i /root/mksgate-dev.deb");
    assert_ne!(property_of(machine, KEEPER, "MainPID"), keeper, "the keeper is the new package's");
    is_on(machine);
    assert!(passed(machine) >= seen, "its counters go on");
    echoes(&mut console, b"over a package");

    // Stopped, it is gone, and nothing is kept for anybody.
    machine.ok(&format!("systemctl stop {KEEPER}"));
    assert_eq!(on_the_interface(), None);
    echoes(&mut console, b"without the gate");
    machine.ok(&format!("systemctl start {KEEPER}"));
    is_on(machine);
    drop(console);

    machine.ok(&format!("cp /root/good.toml {CONFIG}; rm -r /etc/systemd/system/mksgate.service.d"));
    machine.ok("systemctl daemon-reload; systemctl stop mksgate-xdp; systemctl restart mksgate");
    assert!(complaints(machine).iter().all(|line| line.contains("self-signed")), "{:?}", complaints(machine));
}

/// Waits until the keeper is another process than that.
fn another_keeper(machine: &Machine, old: &str) {
    machine.ok(&format!(
        "while :; do pid=$(systemctl show -P MainPID {KEEPER}); [ $pid = {old} ] || [ $pid = 0 ] || break; done"
    ));
}

/// The program's id, by what `ip` says; this thread is in the machine's network.
fn on_the_interface() -> Option<u64> {
    let shown = Command::new("ip").args(["-details", "link", "show", "dev", GATE]).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    let mut words = shown.split_whitespace().skip_while(|word| !word.starts_with("prog/xdp")).skip(2);
    words.next().map(|id| id.parse().unwrap())
}

/// Waits until the gate is attached.
fn is_on(machine: &Machine) {
    machine.ok(&format!("until mksgate xdp status | grep -q '{GATE} *native'; do :; done"));
}

fn xdp(machine: &Machine) -> serde_json::Value {
    serde_json::from_str(&machine.ok("mksgate xdp status --json")).unwrap()
}

fn program(machine: &Machine) -> u64 {
    xdp(machine)["gate"]["program"].as_u64().unwrap()
}

/// SYNs that the gate has let through.
fn passed(machine: &Machine) -> u64 {
    let status = xdp(machine);
    status["tenants"].as_array().unwrap().iter().map(|tenant| tenant["passed"].as_u64().unwrap()).sum()
}

/// Effective capabilities of a unit's process, as a mask.
fn capabilities(machine: &Machine, unit: &str) -> u64 {
    let pid = property_of(machine, unit, "MainPID");
    let mask = machine.ok(&format!("sed -n 's/^CapEff:[[:space:]]*//p' /proc/{pid}/status"));
    u64::from_str_radix(&mask, 16).unwrap()
}
