//! Clients of another make at TCP 902: nmap's service probe and its password guesser.

mod support;

use std::process::Command;

use mksgate_bench::sim::{Esxi, EsxiConfig, Screen, Ticket, Vm};
use support::{Appliance, HOST_TICKET, Setup, VM, client};

/// Whether nmap is there; without it the test cannot run, which `cargo xtask test` does not allow.
fn nmap_is_there() -> bool {
    if Command::new("nmap").arg("--version").output().is_ok() {
        return true;
    }
    let full = std::env::var_os("MKSGATE_FULL_TESTS").is_some_and(|value| value == "1");
    assert!(!full, "nmap is missing; Debian package nmap");
    eprintln!("skipped: nmap is missing; Debian package nmap");
    false
}

/// Runs nmap against the authd door.
fn nmap(gate: &Appliance, args: &[&str]) -> String {
    let output = Command::new("nmap")
        .args(["-n", "-Pn", "-sT", "-p", &gate.authd.port().to_string(), "--host-timeout", "90s"])
        .args(args)
        .arg(gate.authd.ip().to_string())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn nmaps_service_probe_sees_vmwares_daemon() {
    if !nmap_is_there() {
        return;
    }
    let gate = Setup::new().start();
    let seen = nmap(&gate, &["-sV"]);
    assert!(seen.contains("VMware Authentication Daemon 1.10"), "{seen}");
}

#[test]
fn a_password_guesser_gets_refusals_and_others_their_consoles() {
    if !nmap_is_there() {
        return;
    }
    let gate = Setup::new().start();
    let words = |name: &str, words: &str| {
        let path = gate.dir.path().join(name);
        std::fs::write(&path, words).unwrap();
        path.display().to_string()
    };
    let users = words("users", "root\nadministrator\nvpxuser\n");
    let passwords = words("passwords", "\nroot\nvmware\nadministrator\nmanager\n");
    let args = format!("userdb={users},passdb={passwords},brute.threads=2,brute.delay=0");
    let seen = nmap(&gate, &["-sV", "--script", "vmauthd-brute", "--script-args", &args]);
    assert!(seen.contains("No valid accounts found"), "{seen}");
    assert!(seen.contains("Performed "), "it guessed nothing: {seen}");
    let refused = gate.metric("mksgate_refusals_total", &["door=\"authd\""]);
    assert!(refused >= 3.0, "{refused} refusals counted");
    assert_eq!(gate.metric("mksgate_sessions", &[]), 0.0);

    let host = Esxi::start(
        EsxiConfig::default().vm(Vm::plain(VM, Screen::echo())).ticket(Ticket::new(HOST_TICKET, VM)),
    )
    .unwrap();
    client::open(client::authd(gate.authd), &gate.ticket(&host), VM).unwrap();
}
