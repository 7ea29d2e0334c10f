//! The package on a host of its own: installed, serving, reloaded, killed, stuck, upgraded, gone.

#[path = "nspawn/gate.rs"]
mod gate;
#[path = "nspawn/knocking.rs"]
mod knocking;
#[expect(dead_code, reason = "an example's own entry")]
#[path = "../examples/manuals.rs"]
mod manuals;
mod nspawn;
mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use mksgate_bench::sim::{Esxi, EsxiConfig, Screen, Ticket, Vm};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use nspawn::{Machine, succeed};
use support::{HOST_TICKET, VM, claims, client};

const TLS: &str = "127.0.0.1:443";
const AUTHD: &str = "127.0.0.1:902";
const CONFIG: &str = "/etc/mksgate/mksgate.toml";
/// A tenant, no XDP gate (a build without its program would be warned of), and room for clients that come all the time.
const MORE: &str = "\n[limits]\nsource_rate = 100000\nsource_burst = 100000\n\n[xdp]\nenabled = \"off\"\n\n[tenants.acme]\nmax_sessions = 10\ntargets = [\"127.0.0.0/8\"]\n";
/// Lines of doctor that depend on the machine the test runs on.
const OF_THE_HOST: [&str; 4] = ["clock", "pipes", "open files", "network"];

#[test]
fn the_package_makes_a_service_and_takes_it_away_again() {
    if let Some(why) = nspawn::missing() {
        assert!(std::env::var_os("MKSGATE_FULL_TESTS").is_none(), "{why}");
        eprintln!("skipped: {why}");
        return;
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let machine = Machine::boot(&[&package(dir.path())]);
    machine.enter_network();
    step("installed");
    installed(&machine);
    let host = host();
    for (name, part) in [
        ("serves", serves as fn(&Machine, &Esxi)),
        ("reloads", reloads),
        ("sockets lead to sessions", sockets_lead_to_sessions),
        ("outlives a kill", outlives_a_kill),
        ("remembers tickets", remembers_tickets),
        ("outlives a stuck thread", outlives_a_stuck_thread),
        ("credentials", credentials),
        ("bad input", bad_input),
        ("full disk", full_disk),
        ("read-only disk", read_only_disk),
        ("without journal and capability", without_journal_and_capability),
        ("keeps the gate", gate::keeps_it),
        ("upgrades", upgrades),
    ] {
        step(name);
        part(&machine, &host);
    }
    step("purged");
    purged(&machine);
}

/// Says how far it is, for whoever has to find out where it failed or what takes long.
fn step(name: &str) {
    let up = fs::read_to_string("/proc/uptime").unwrap_or_default();
    eprintln!("{} {name}", up.split(' ').next().unwrap_or_default());
}

/// The .deb, as `cargo xtask dist` makes it, of the binary that was built for this test.
fn package(dir: &Path) -> PathBuf {
    let (root, release, deb) =
        (Path::new(env!("CARGO_MANIFEST_DIR")), dir.join("release"), dir.join("mksgate-dev.deb"));
    fs::create_dir_all(&release).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_mksgate"), release.join("mksgate")).unwrap();
    manuals::write(&release.join("manuals")).unwrap();
    let mut make = Command::new(std::env::var("CARGO").unwrap_or("cargo".into()));
    make.args(["deb", "--locked", "-p", "mksgate", "--no-build", "--fast", "--output"]).arg(&deb);
    succeed(make.current_dir(root).env("CARGO_TARGET_DIR", dir));
    deb
}

fn host() -> Esxi {
    Esxi::start(EsxiConfig::default().vm(Vm::plain(VM, Screen::echo())).ticket(Ticket::new(HOST_TICKET, VM)))
        .unwrap()
}

/// A ticket, sealed the way an operator does it.
fn ticket(machine: &Machine, host: &Esxi) -> String {
    let claims = serde_json::to_string(&claims(host.addr(), &host.thumbprint_sha256())).unwrap();
    machine.write("/tmp/claims.json", &claims);
    machine.ok("chmod 644 /tmp/claims.json; runuser -u mksgate -- mksgate ticket seal --claims /tmp/claims.json 2>/dev/null")
}

fn open(machine: &Machine, host: &Esxi, door: &str) -> TcpStream {
    let address: SocketAddr = door.parse().unwrap();
    let tls = if door == AUTHD { client::authd(address) } else { client::mks(address) };
    let mut console = client::open(tls, &ticket(machine, host), VM).unwrap();
    echoes(&mut console, b"hello console");
    console
}

fn echoes(console: &mut TcpStream, text: &[u8]) {
    console.write_all(text).unwrap();
    let mut answer = vec![0; text.len()];
    console.read_exact(&mut answer).unwrap();
    assert_eq!(answer, text);
}

/// What the service said, all of it.
fn journal(machine: &Machine) -> String {
    machine.ok("journalctl --sync; journalctl -u mksgate --no-pager")
}

fn property(machine: &Machine, name: &str) -> String {
    property_of(machine, "mksgate.service", name)
}

fn property_of(machine: &Machine, unit: &str, name: &str) -> String {
    machine.ok(&format!("systemctl show -P {name} {unit}"))
}

/// Findings of doctor that are not ok, without those that the host is to blame for.
fn complaints(machine: &Machine) -> Vec<String> {
    let report = machine.run("mksgate doctor --json");
    let report: serde_json::Value = serde_json::from_slice(&report.stdout).unwrap();
    let text = |check: &serde_json::Value, field: &str| check[field].as_str().unwrap_or_default().to_owned();
    let checks = report["checks"].as_array().unwrap().iter();
    checks
        .filter(|check| {
            text(check, "verdict") != "ok" && !OF_THE_HOST.contains(&text(check, "check").as_str())
        })
        .map(|check| format!("{} {}: {}", text(check, "verdict"), text(check, "check"), text(check, "found")))
        .collect()
}

/// The example configuration starts as it is; doctor knows what is left to do, before the installation too.
fn installed(machine: &Machine) {
    machine.ok("dpkg --unpack /root/mksgate-dev.deb");
    let before = complaints(machine);
    assert!(before.iter().any(|line| line.starts_with("fail configuration")), "{before:?}");
    machine.ok("dpkg --configure mksgate");
    assert_eq!(property(machine, "ActiveState"), "active");
    assert_eq!(property(machine, "StatusText"), "serving");
    let after = complaints(machine);
    let expected =
        |line: &String| ["no tenant", "self-signed", "warn xdp:"].iter().any(|part| line.contains(part));
    assert!(after.iter().all(expected), "{after:?}");
    machine.ok(&format!("cat >> {CONFIG} <<'END'{MORE}END\nsystemctl reload mksgate"));
    let clean = complaints(machine);
    assert!(clean.iter().all(|line| line.contains("self-signed")), "{clean:?}");
    let stranger = machine.run("setpriv --reuid 65534 --regid 65534 --clear-groups mksgate doctor");
    assert_ne!(stranger.status.code(), Some(2), "{}", String::from_utf8_lossy(&stranger.stdout));
    machine.ok("gzip -t /usr/share/man/man1/mksgate.1.gz || test -s /usr/share/man/man1/mksgate.1");
}

fn serves(machine: &Machine, host: &Esxi) {
    for door in [AUTHD, TLS] {
        drop(open(machine, host, door));
    }
    // What an operator reads: whole sentences with their facts, and priorities to filter by.
    let closed = journal(machine);
    let closed = closed.lines().find(|line| line.contains("console closed")).expect("a line about it");
    for fact in ["tenant=\"acme\"", "reason=\"client_closed\"", "up=13", "down=13"] {
        assert!(closed.contains(fact), "{fact}: {closed}");
    }
    assert!(!machine.ok("journalctl -u mksgate -p warning --no-pager -q").contains("console"));
    let audit = machine.ok("cat /var/log/mksgate/audit.jsonl");
    assert!(audit.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{audit}");
    assert!(audit.contains("\"acme\""), "{audit}");
}

/// A good file comes into force, a bad one changes nothing and is named; the open console notices neither.
fn reloads(machine: &Machine, host: &Esxi) {
    let mut console = open(machine, host, AUTHD);
    let pid = property(machine, "MainPID");
    machine.ok(&format!(
        "cp {CONFIG} /root/good.toml; sed -i 's/max_sessions = 10/max_sessions = 11/' {CONFIG}"
    ));
    machine.ok("systemctl reload mksgate");
    assert!(machine.ok("mksgate tenants --json").contains("11"));
    machine.ok(&format!("sed -i 's/max_sessions = 11/max_sesions = 12/' {CONFIG}"));
    assert!(!machine.run("systemctl reload mksgate").status.success());
    let refused = machine.run("mksgate reload");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("max_sesions"), "{said}");
    assert!(machine.ok("mksgate tenants --json").contains("11"), "the old one stays in force");
    machine.ok(&format!("cp /root/good.toml {CONFIG}; systemctl reload mksgate"));
    assert_eq!(property(machine, "ActiveState"), "active");
    assert_eq!(property(machine, "MainPID"), pid);
    echoes(&mut console, b"still here");
}

/// Each line of `ss` leads to a session and back, by its addresses and by the tenant's mark.
fn sockets_lead_to_sessions(machine: &Machine, host: &Esxi) {
    let _console = open(machine, host, AUTHD);
    let sessions: serde_json::Value =
        serde_json::from_str(&machine.ok("mksgate sessions list --json")).unwrap();
    let session = &sessions["sessions"][0];
    // Children of this thread are in the machine's network, too.
    let ss = Command::new("ss").args(["-Htenp", "state", "established"]).output().unwrap();
    let lines = String::from_utf8_lossy(&ss.stdout).into_owned();
    let ours: Vec<&str> = lines.lines().filter(|line| line.contains("mksgate")).collect();
    let mark = format!("fwmark:{:#x}", session["mark"].as_u64().unwrap());
    for leg in ["client", "backend"] {
        let end = |end: &str| session[leg][end].as_str().unwrap();
        let line = ours.iter().find(|line| line.contains(end("local")) && line.contains(end("peer")));
        let line = line.unwrap_or_else(|| panic!("{session} in\n{lines}"));
        assert!(line.contains(&mark), "{mark} in {line}");
    }
}

/// While the process is gone, systemd holds the doors: whoever comes, at any moment, waits for the next one and is served.
fn outlives_a_kill(machine: &Machine, host: &Esxi) {
    let (pid, restarts) = (property(machine, "MainPID"), property(machine, "NRestarts"));
    let mut old = open(machine, host, TLS);
    let doors = [(AUTHD, knocking::authd as knocking::Door), (TLS, knocking::mks)];
    let doors = doors.map(|(door, passed)| (door.parse().unwrap(), passed, ticket(machine, host)));
    let kill = || {
        machine.ok(&format!("kill -9 {pid}; while kill -0 {pid} 2>/dev/null; do :; done"));
    };
    knocking::around(kill, &doors);
    assert!(matches!(old.read(&mut [0]), Ok(0) | Err(_)), "consoles of the dead process end");
    assert_ne!(property(machine, "MainPID"), pid);
    assert_ne!(property(machine, "NRestarts"), restarts);
}

/// However the service ends, a used ticket stays used and a revoked one revoked.
fn remembers_tickets(machine: &Machine, host: &Esxi) {
    let [used, revoked] = [(); 2].map(|()| ticket(machine, host));
    let to = |ticket: &str| client::open(client::authd(AUTHD.parse().unwrap()), ticket, VM);
    drop(to(&used).unwrap());
    drop(to(&revoked).unwrap());
    let name = |ticket: &str| {
        let opened = machine.ok(&format!("runuser -u mksgate -- mksgate ticket open '{ticket}' 2>/dev/null"));
        let jti = opened.split('"').find(|word| word.starts_with("jti-"));
        jti.unwrap_or_else(|| panic!("{opened}")).to_owned()
    };
    machine.ok(&format!("mksgate ticket revoke {}", name(&revoked)));
    let file = "/run/mksgate/tickets.journal";
    assert_eq!(machine.ok(&format!("stat -c '%U %G %a' {file}")).trim(), "mksgate mksgate 600");
    let pid = || property(machine, "MainPID");
    let killed = |pid: String| format!("kill -9 {pid}; while kill -0 {pid} 2>/dev/null; do :; done");
    let ends: [&dyn Fn() -> String; 3] = [&|| "systemctl restart mksgate".into(), &|| killed(pid()), &|| {
        "systemctl stop mksgate && systemctl start mksgate".into()
    }];
    for end in ends {
        let end = end();
        machine.ok(&end);
        assert!(to(&revoked).unwrap_err().starts_with("530"), "{end}");
        drop(to(&used).unwrap());
        assert!(machine.ok(&format!("cat {file}")).contains(&name(&used)), "{end}");
    }
    // So many starts in a minute are no fault.
    machine.ok("systemctl reset-failed mksgate");
}

/// A flow thread that stands still, while all others go on, costs the process its life: the watchdog starves.
fn outlives_a_stuck_thread(machine: &Machine, host: &Esxi) {
    machine.ok("mkdir -p /etc/systemd/system/mksgate.service.d");
    machine.write("/etc/systemd/system/mksgate.service.d/test.conf", "[Service]\nWatchdogSec=2s\n");
    machine.ok("systemctl daemon-reload; systemctl restart mksgate");
    let pid = property(machine, "MainPID");
    let process = machine.outside(&pid);
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap().flatten();
    let is_flow =
        |task: &PathBuf| fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "flow-0");
    let flow = tasks.map(|task| task.path()).find(is_flow).expect("a thread named flow-0");
    let flow = Pid::from_raw(flow.file_name().unwrap().to_str().unwrap().parse().unwrap());
    ptrace::seize(flow, ptrace::Options::empty()).unwrap();
    ptrace::interrupt(flow).unwrap();
    assert!(matches!(waitpid(flow, Some(WaitPidFlag::__WALL)).unwrap(), WaitStatus::PtraceEvent(..)));
    // Its end is awaited here and never asked for.
    let end = waitpid(flow, Some(WaitPidFlag::__WALL)).unwrap();
    assert!(matches!(end, WaitStatus::Signaled(..) | WaitStatus::Exited(..)), "{end:?}");
    drop(open(machine, host, AUTHD));
    assert_ne!(property(machine, "MainPID"), pid);
    let journal = journal(machine);
    assert!(journal.contains("a flow thread makes no progress"), "{journal}");
    assert!(journal.contains("Watchdog timeout"), "{journal}");
    machine.ok(
        "rm -r /etc/systemd/system/mksgate.service.d; systemctl daemon-reload; systemctl restart mksgate",
    );
}

/// The key as a credential: root alone may read the file.
fn credentials(machine: &Machine, host: &Esxi) {
    let drop_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/drop-ins/credentials.conf");
    machine.ok("mkdir -p /etc/systemd/system/mksgate.service.d; chown root:root /etc/mksgate/key.pem; chmod 600 /etc/mksgate/key.pem");
    machine.write(
        "/etc/systemd/system/mksgate.service.d/credentials.conf",
        &fs::read_to_string(drop_in).unwrap(),
    );
    let place = "/run/credentials/mksgate.service";
    machine.ok(&format!(
        "sed -i 's,\"cert.pem\",\"{place}/cert.pem\",; s,\"key.pem\",\"{place}/key.pem\",' {CONFIG}"
    ));
    machine.ok("systemctl daemon-reload; systemctl restart mksgate");
    drop(open(machine, host, AUTHD));
    machine.ok(&format!("cp /root/good.toml {CONFIG}; rm -r /etc/systemd/system/mksgate.service.d"));
}

/// What goes wrong on hosts is said, by the service and by doctor, and repaired by what doctor says.
fn bad_input(machine: &Machine, host: &Esxi) {
    // The key is still root's alone.
    machine.ok("systemctl daemon-reload");
    assert!(!machine.run("systemctl restart mksgate").status.success());
    assert_eq!(property(machine, "ExecMainStatus"), "78");
    assert_eq!(property(machine, "ActiveState"), "failed", "it is not tried again");
    let said = complaints(machine);
    assert!(
        said.iter().any(|line| line.starts_with("fail certificate") && line.contains("key.pem")),
        "{said:?}"
    );
    assert_eq!(machine.run("mksgate doctor").status.code(), Some(2));
    assert!(said.iter().any(|line| line.starts_with("fail service")), "{said:?}");
    machine.ok(
        "systemctl stop mksgate.socket; chgrp mksgate /etc/mksgate/key.pem; chmod 640 /etc/mksgate/key.pem",
    );
    // Somebody else has the port.
    let thief = std::net::TcpListener::bind("0.0.0.0:443").unwrap();
    assert!(!machine.run("systemctl start mksgate.socket").status.success());
    let said = complaints(machine);
    assert!(said.iter().any(|line| line.starts_with("fail service: mksgate.socket")), "{said:?}");
    assert!(said.iter().any(|line| line.contains("doors: 0.0.0.0:443")), "{said:?}");
    drop(thief);
    machine.ok("systemctl reset-failed mksgate.socket mksgate; systemctl start mksgate.socket mksgate");
    drop(open(machine, host, AUTHD));
    // A door of the socket unit that the configuration does not know would leave its clients hanging.
    machine.ok(&format!("sed -i 's/^authd = .*/authd = []/' {CONFIG}; systemctl restart mksgate; true"));
    let journal = journal(machine);
    assert!(journal.contains("which [listen] does not name"), "{journal}");
    machine.ok(&format!("cp /root/good.toml {CONFIG}; systemctl reset-failed mksgate.socket mksgate"));
    machine.ok("systemctl start mksgate.socket mksgate");
    drop(open(machine, host, TLS));
    assert!(complaints(machine).iter().all(|line| line.contains("self-signed")), "{:?}", complaints(machine));
}

/// Consoles go on; what is lost of their account is counted.
fn full_disk(machine: &Machine, host: &Esxi) {
    machine.ok("systemctl stop mksgate; mount -t tmpfs -o size=4k,mode=0750 tmpfs /var/log/mksgate");
    machine.ok("chown mksgate: /var/log/mksgate; systemctl start mksgate");
    machine.run("head -c 4096 /dev/zero > /var/log/mksgate/fill");
    assert_eq!(lost(machine), 0.0);
    let mut console = open(machine, host, AUTHD);
    // The writer is a thread of its own: its count follows.
    while lost(machine) == 0.0 {
        echoes(&mut console, b"goes on");
    }
    drop(console);
    let journal = journal(machine);
    assert!(journal.contains("No space left on device"), "{journal}");
    machine.ok("systemctl stop mksgate; umount /var/log/mksgate; systemctl start mksgate");
}

/// The same where nothing can be written at all; doctor names it, and is content once it is repaired.
fn read_only_disk(machine: &Machine, host: &Esxi) {
    machine.ok("systemctl stop mksgate; mount -t tmpfs -o size=1m,mode=0750,uid=$(id -u mksgate),gid=$(id -g mksgate) tmpfs /var/log/mksgate");
    machine.ok("mount -o remount,ro /var/log/mksgate; systemctl start mksgate");
    let said = complaints(machine);
    assert!(said.iter().any(|line| line.starts_with("fail audit") && line.contains("read-only")), "{said:?}");
    assert_eq!(machine.run("mksgate doctor").status.code(), Some(2));
    let mut console = open(machine, host, AUTHD);
    while lost(machine) == 0.0 {
        echoes(&mut console, b"goes on");
    }
    drop(console);
    assert!(journal(machine).contains("Read-only file system"), "{}", journal(machine));
    machine.ok("systemctl stop mksgate; umount /var/log/mksgate; systemctl start mksgate");
    assert!(complaints(machine).iter().all(|line| line.contains("self-signed")), "{:?}", complaints(machine));
    // Only the certificate could be better; a host may add something of its own.
    assert_eq!(machine.run("mksgate doctor").status.code(), Some(1));
}

/// Without journald's socket and without its one capability the service serves: it counts the records that are lost, and
/// its sockets have no mark. Doctor names the capability.
fn without_journal_and_capability(machine: &Machine, host: &Esxi) {
    machine.ok(&format!(
        "sed -i 's/^journal = false/journal = true/' {CONFIG}; mkdir -p /etc/systemd/system/mksgate.service.d"
    ));
    let drop_in = "[Service]\nInaccessiblePaths=/run/systemd/journal/socket\nAmbientCapabilities=\nCapabilityBoundingSet=\n";
    machine.write("/etc/systemd/system/mksgate.service.d/test.conf", drop_in);
    machine.ok("systemctl daemon-reload; systemctl restart mksgate");
    let said = complaints(machine);
    assert!(
        said.iter().any(|line| line.starts_with("warn capabilities") && line.contains("CAP_NET_ADMIN")),
        "{said:?}"
    );
    let mut console = open(machine, host, TLS);
    while lost(machine) == 0.0 {
        echoes(&mut console, b"goes on");
    }
    drop(console);
    machine.ok(&format!("cp /root/good.toml {CONFIG}; rm -r /etc/systemd/system/mksgate.service.d; systemctl daemon-reload; systemctl restart mksgate"));
    assert!(complaints(machine).iter().all(|line| line.contains("self-signed")), "{:?}", complaints(machine));
    drop(open(machine, host, TLS));
}

/// Audit records that were lost since the process started.
fn lost(machine: &Machine) -> f64 {
    let mut socket = UnixStream::connect(machine.inside("/run/mksgate/admin.sock")).unwrap();
    socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    let samples = text.lines().filter(|line| line.starts_with("mksgate_audit_lost_total{"));
    samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// A new package takes over from the old one while a console is open, and the service is the new process from then on:
/// for the manager, which restarts it, and for the watchdog. A program that does not start changes nothing.
fn upgrades(machine: &Machine, host: &Esxi) {
    let pid = property(machine, "MainPID");
    let mut console = open(machine, host, AUTHD);
    machine.ok("dpkg -i /root/mksgate-dev.deb");
    let new = property(machine, "MainPID");
    assert_ne!(new, pid);
    echoes(&mut console, b"over an upgrade");
    assert_eq!(property(machine, "ActiveState"), "active");
    assert_eq!(property(machine, "StatusText"), "serving");
    // The old process had nothing to stay for.
    machine.ok(&format!("while kill -0 {pid} 2>/dev/null; do :; done"));
    drop(open(machine, host, TLS));

    machine.ok("cp -a /usr/bin/mksgate /root/mksgate.good; rm /usr/bin/mksgate; printf '#!/bin/sh\\nexit 1\\n' > /usr/bin/mksgate; chmod 755 /usr/bin/mksgate");
    let refused = machine.run("/root/mksgate.good reload --or-upgrade");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("the old process goes on"), "{said}");
    assert_eq!(property(machine, "MainPID"), new);
    echoes(&mut console, b"as before");
    machine.ok("rm /usr/bin/mksgate; cp -a /root/mksgate.good /usr/bin/mksgate; systemctl reload mksgate");
    let third = property(machine, "MainPID");
    assert_ne!(third, new, "a reload lets the installed program take over");
    echoes(&mut console, b"over a reload");
    machine.ok(&format!("kill -9 {third}; while kill -0 {third} 2>/dev/null; do :; done"));
    drop(open(machine, host, AUTHD));
    assert_ne!(
        property(machine, "MainPID"),
        third,
        "the manager noticed the end of a process it had not started"
    );
    machine.ok("rm /root/mksgate.good");
}

fn purged(machine: &Machine) {
    machine.ok("dpkg --remove mksgate");
    assert!(machine.inside(CONFIG).exists(), "a removal leaves the configuration");
    assert!(TcpStream::connect(AUTHD).is_err(), "nobody holds the doors");
    machine.ok("dpkg --purge mksgate");
    let left = machine.ok("find / -xdev \\( -path /proc -o -path /sys -o -path /tmp \\) -prune -o -name '*mksgate*' ! -name mksgate-dev.deb -print");
    assert_eq!(left, "");
    assert!(!machine.inside("/run/mksgate").exists(), "nor the tickets' journal");
    assert_eq!(machine.ok("getent passwd mksgate; getent group mksgate; true"), "");
    assert_eq!(
        machine.ok("systemctl list-unit-files 'mksgate*' --no-legend; systemctl --failed --no-legend"),
        ""
    );
}
