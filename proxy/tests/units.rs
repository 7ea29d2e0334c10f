//! The units and what comes with them, read by the programs that will read them.

#![allow(missing_docs, clippy::allow_attributes, reason = "a test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const MKSGATE: &str = env!("CARGO_BIN_EXE_mksgate");

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd")
}

/// Runs a program that a bare machine may lack; `None` after saying so.
fn output(program: &str, package: &str, args: &[&str]) -> Option<std::process::Output> {
    match Command::new(program).args(args).output() {
        Ok(output) => Some(output),
        Err(error) => {
            let why = format!("{program} ({package}): {error}");
            assert!(std::env::var_os("MKSGATE_FULL_TESTS").is_none(), "{why}");
            eprintln!("skipped: {why}");
            None
        }
    }
}

/// The units with the binary that was built here, in a directory of their own.
fn units(drop_ins: &[&str]) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    for unit in ["mksgate.service", "mksgate.socket", "mksgate-xdp.service"] {
        let text = fs::read_to_string(shipped().join(unit)).unwrap();
        // Man pages come with the package.
        let text: String = text
            .lines()
            .filter(|line| !line.starts_with("Documentation="))
            .map(|l| format!("{l}\n"))
            .collect();
        fs::write(dir.path().join(unit), text.replace("/usr/bin/mksgate", MKSGATE)).unwrap();
    }
    fs::create_dir(dir.path().join("mksgate.service.d")).unwrap();
    for drop_in in drop_ins {
        let from = shipped().join("drop-ins").join(drop_in);
        fs::copy(from, dir.path().join("mksgate.service.d").join(drop_in)).unwrap();
    }
    let service = dir.path().join("mksgate.service").to_str().unwrap().to_owned();
    (dir, service)
}

#[test]
fn systemd_understands_every_line() {
    for drop_ins in [vec![], vec!["credentials.conf", "xdp.conf"]] {
        let (dir, service) = units(&drop_ins);
        let [socket, keeper] = ["mksgate.socket", "mksgate-xdp.service"].map(|unit| dir.path().join(unit));
        let (socket, keeper) = (socket.to_str().unwrap(), keeper.to_str().unwrap());
        let Some(verify) = output("systemd-analyze", "systemd", &["verify", &service, socket, keeper]) else {
            return;
        };
        let said = String::from_utf8_lossy(&verify.stderr);
        let about_us: Vec<_> = said.lines().filter(|line| line.contains("mksgate")).collect();
        assert!(verify.status.success() && about_us.is_empty(), "{said}");
    }
}

/// `systemd-analyze security` counts ten for each point it shows.
fn exposure_is_at_most(service: &str, tenths: u32) -> Option<bool> {
    let threshold = format!("--threshold={tenths}");
    let analyze = output(
        "systemd-analyze",
        "systemd",
        &["security", "--offline=true", "--no-pager", &threshold, service],
    )?;
    assert!(!analyze.stdout.is_empty(), "{}", String::from_utf8_lossy(&analyze.stderr));
    Some(analyze.status.success())
}

#[test]
fn the_process_at_the_network_is_little_exposed() {
    let (_dir, service) = units(&[]);
    if let Some(little) = exposure_is_at_most(&service, 15) {
        assert!(little);
        assert_eq!(exposure_is_at_most(&service, 5), Some(false), "the threshold is looked at");
    }
    // The XDP gate costs it nothing; its keeper, which no packet reaches, is as docs/operations.md says.
    let (dir, with_xdp) = units(&["xdp.conf"]);
    if let Some(little) = exposure_is_at_most(&with_xdp, 15) {
        assert!(little);
    }
    let keeper = dir.path().join("mksgate-xdp.service");
    if let Some(little) = exposure_is_at_most(keeper.to_str().unwrap(), 12) {
        assert!(little);
    }
}

#[test]
fn the_example_configuration_is_accepted_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("mksgate.toml");
    fs::copy(shipped().join("mksgate.toml"), &config).unwrap();
    let run = |args: &[&str]| Command::new(MKSGATE).args(args).arg(dir.path()).output().unwrap();
    assert!(run(&["certificate"]).status.success());
    let keys =
        Command::new(MKSGATE).args(["ticket", "keygen"]).arg(dir.path().join("keys")).output().unwrap();
    assert!(keys.status.success());
    let check = Command::new(MKSGATE).args(["check", "--config"]).arg(&config).output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    // What is commented out there is a configuration, too.
    let text = fs::read_to_string(&config).unwrap();
    let more: String = text
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(set)
                if set.starts_with('[')
                    || set.split_once(" = ").is_some_and(|(key, _)| !key.contains(' ')) =>
            {
                format!("{set}\n")
            }
            _ => format!("{line}\n"),
        })
        .collect();
    assert!(more.contains("\n[tenants.acme]\nmax_sessions = 200\n"), "{more}");
    fs::write(&config, more).unwrap();
    let check = Command::new(MKSGATE).args(["check", "--config"]).arg(&config).output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
}

#[test]
fn the_socket_and_the_example_configuration_name_the_same_addresses() {
    let read = |file: &str| fs::read_to_string(shipped().join(file)).unwrap();
    let mut held: Vec<String> = read("mksgate.socket")
        .lines()
        .filter_map(|line| line.strip_prefix("ListenStream=").map(str::to_owned))
        .collect();
    let config: toml::Table = read("mksgate.toml").parse().unwrap();
    let doors = |name: &str| config["listen"][name].as_array().unwrap().clone();
    let mut named: Vec<String> = doors("tls")
        .iter()
        .chain(&doors("authd"))
        .map(|address| address.as_str().unwrap().to_owned())
        .collect();
    held.sort();
    named.sort();
    assert_eq!(held, named);
}

#[test]
fn sysusers_tmpfiles_and_kernel_settings_are_understood() {
    let file = |name: &str| shipped().join(name).to_str().unwrap().to_owned();
    if let Some(users) = output(
        "systemd-sysusers",
        "systemd",
        &["--dry-run", "--root=/nonexistent", &file("mksgate.sysusers")],
    ) {
        let said = String::from_utf8_lossy(&users.stderr);
        assert!(!said.contains("mksgate.sysusers:"), "{said}");
    }
    let root = tempfile::tempdir().unwrap();
    let at = format!("--root={}", root.path().display());
    if let Some(files) = output("systemd-tmpfiles", "systemd", &["--create", &at, &file("mksgate.tmpfiles")])
    {
        let said = String::from_utf8_lossy(&files.stderr);
        // The user is not in that root; a line that cannot be parsed is named with its number.
        assert!(!said.contains("mksgate.tmpfiles:") || said.contains("Failed to resolve user"), "{said}");
    }
    for line in fs::read_to_string(shipped().join("sysctl.conf")).unwrap().lines() {
        let Some((name, value)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) else { continue };
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        assert!(Path::new(&path).exists(), "{name}: no such setting");
        assert!(value.split_whitespace().all(|n| n.parse::<u64>().is_ok()), "{line}");
    }
}
