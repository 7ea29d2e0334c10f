//! `mksgate doctor` on hosts that are broken on purpose, one check at a time, and repaired as it says: its line changes, and its
//! exit code is that of its worst line. Kernel and pipes: `doctor_kernel`; the XDP gate: `xdp_doctor`; units, capabilities and
//! what only a booted host has: `package`; the clock: `clock`.

mod doctor_rig;
mod support;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use doctor_rig::{asks, report, shell, verdicts};
use mksgate_bench::sim::{Esxi, EsxiConfig, Screen, Ticket, Vm};
use support::{HOST_TICKET, Setup, VM, client, mksgate};

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn configuration_keys_certificate_and_audit_fail_and_are_repaired() {
    let setup = Setup::new().with("[audit]\nfile = \"trail/audit.jsonl\"");
    let (config, dir) = (setup.write(), setup.dir.path().to_owned());
    assert_eq!(asks(&config, &[], "audit", "trail"), ["fail"], "no such directory");
    fs::create_dir(dir.join("trail")).unwrap();
    assert_eq!(asks(&config, &[], "audit", "trail"), ["ok"]);

    let journal = dir.join("tickets.journal");
    fs::write(&journal, "something else\n").unwrap();
    assert_eq!(asks(&config, &[], "ticket journal", "cannot be used"), ["warn"]);
    fs::remove_file(&journal).unwrap();
    assert_eq!(asks(&config, &[], "ticket journal", "MiB free"), ["ok"], "it is made when it is needed");

    let good = fs::read_to_string(&config).unwrap();
    let off = good.replace("keys = \"keys\"", "keys = \"keys\"\njournal = \"off\"");
    fs::write(&config, off).unwrap();
    assert_eq!(asks(&config, &[], "ticket journal", "off"), ["warn"]);
    fs::write(&config, good.replace("max_sessions", "max_sesions")).unwrap();
    assert_eq!(asks(&config, &[], "configuration", "max_sesions"), ["fail"]);
    fs::write(&config, &good[..good.find("[tenants.acme]").unwrap()]).unwrap();
    assert_eq!(asks(&config, &[], "configuration", "no tenant"), ["warn"]);
    fs::write(&config, &good).unwrap();
    assert_eq!(asks(&config, &[], "configuration", "1 tenants"), ["ok"]);

    let jwk: PathBuf = fs::read_dir(dir.join("keys")).unwrap().next().unwrap().unwrap().path();
    mode(&jwk, 0o644);
    assert_eq!(asks(&config, &[], "ticket keys", ""), ["fail"], "others may read it");
    mode(&jwk, 0o600);
    assert_eq!(asks(&config, &[], "ticket keys", ""), ["ok"]);

    let key = fs::read(dir.join("key.pem")).unwrap();
    support::write_certificate(&dir);
    let other = fs::read(dir.join("key.pem")).unwrap();
    fs::write(dir.join("key.pem"), key).unwrap();
    assert_eq!(asks(&config, &[], "certificate", ""), ["fail"], "another certificate's key");
    fs::write(dir.join("key.pem"), other).unwrap();
    assert_eq!(asks(&config, &[], "certificate", "fits its key"), ["ok"]);
}

#[test]
fn a_door_that_somebody_else_holds_is_named_with_its_holder() {
    let thief = TcpListener::bind("127.0.0.1:0").unwrap();
    let door = thief.local_addr().unwrap().to_string();
    let config = Setup::new().with(&format!("[listen]\ntls = [\"{door}\"]\nauthd = []"));
    let path = config.write();
    let holder = format!("(pid {})", std::process::id());
    assert_eq!(asks(&path, &[], "doors", &holder), ["fail"]);
    let refused = mksgate().args(["serve", "--config"]).arg(&path).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains(&door) && said.contains(&holder), "{said}");
    drop(thief);
    assert!(asks(&path, &[], "doors", &holder).is_empty(), "it is free");
    let gate = Setup::new().start();
    let running = gate.dir.path().join("mksgate.toml");
    let text = fs::read_to_string(&running).unwrap();
    let text = text.replacen("127.0.0.1:0", &gate.tls.to_string(), 1).replacen(
        "127.0.0.1:0",
        &gate.authd.to_string(),
        1,
    );
    let asked = gate.dir.path().join("asked.toml");
    fs::write(&asked, text).unwrap();
    assert_eq!(asks(&asked, &[], "doors", "mksgate listens"), ["ok", "ok"]);
}

#[test]
fn hosts_and_the_public_address_are_tried() {
    let (mut gate, config) = {
        let gate = Setup::new().start();
        let config = gate.dir.path().join("mksgate.toml");
        (gate, config)
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    assert!(asks(&config, &["--host", &host], "reach", &host).iter().all(|verdict| verdict != "fail"));
    drop(listener);
    assert_eq!(asks(&config, &["--host", &host], "reach", &host), ["fail"]);
    assert_eq!(asks(&config, &["--public", &host], "public address", &host), ["fail"], "nobody there");
    let public = gate.tls.to_string();
    assert_eq!(asks(&config, &["--public", &public], "public address", &public), ["ok"]);
    let other = Setup::new().start();
    let foreign = other.tls.to_string();
    assert_eq!(
        asks(&config, &["--public", &foreign], "public address", &foreign),
        ["fail"],
        "not this cell's"
    );

    // A host that does not answer is remembered until it does.
    let machines =
        EsxiConfig::default().vm(Vm::plain(VM, Screen::echo())).ticket(Ticket::new(HOST_TICKET, VM));
    let esxi = Esxi::start(machines).unwrap();
    let closed: u16 = host.rsplit_once(':').unwrap().1.parse().unwrap();
    let nowhere = gate.ticket_with(&esxi, |claims| claims.target.port = Some(closed));
    client::open(client::authd(gate.authd), &nowhere, VM).unwrap_err();
    gate.wait_refused("backend_unreachable");
    assert_eq!(asks(&config, &[], "backends", &host), ["warn"]);
    let there = gate.ticket(&esxi);
    drop(client::open(client::authd(gate.authd), &there, VM).unwrap());
    assert!(asks(&config, &[], "backends", &esxi.addr().to_string()).is_empty(), "it answered");
}

#[test]
fn limits_of_files_and_queues_are_compared_with_what_was_promised() {
    let setup = Setup::new();
    let config = setup.write();
    let few = report(shell("ulimit -n 256; exec \"$0\" \"$@\""), &config, &[]);
    assert_eq!(verdicts(&few, "open files", "256 for"), ["fail"]);
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap().1;
    let all = report(shell("ulimit -n $(ulimit -H -n); exec \"$0\" \"$@\""), &config, &[]);
    if limit > 8192 {
        assert!(!verdicts(&all, "open files", "").contains(&"fail".to_owned()), "{all:?}");
    }

    // In a network of its own, whose settings nobody else has.
    if !nix::unistd::geteuid().is_root() {
        println!("left out: a network of its own needs root");
        return;
    }
    let set = |somaxconn: u32| {
        let script = format!(
            "exec unshare -n -- sh -c 'echo {somaxconn} > /proc/sys/net/core/somaxconn; exec \"$0\" \"$@\"' \"$0\" \"$@\""
        );
        verdicts(&report(shell(&script), &config, &[]), "network", "net.core.somaxconn")
    };
    assert_eq!(set(16), ["warn"]);
    assert!(set(65_535).is_empty(), "it is enough");
}
