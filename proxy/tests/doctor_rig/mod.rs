//! What the tests of `mksgate doctor` share: its report, and hosts that are broken for it alone.
#![allow(dead_code, missing_docs, clippy::allow_attributes, reason = "each test binary uses its part of it")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
use serde_json::Value;

use crate::support::mksgate;

/// The report of doctor, started by `command`.
pub fn report(mut command: Command, config: &Path, more: &[&str]) -> Vec<Value> {
    let output = command.args(["doctor", "--json", "--config"]).arg(config).args(more).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap().clone();
    let has = |verdict: &str| checks.iter().any(|check| check["verdict"] == verdict);
    let worst = if has("fail") {
        ("fail", 2)
    } else if has("warn") {
        ("warn", 1)
    } else {
        ("ok", 0)
    };
    assert_eq!((report["verdict"].as_str().unwrap(), output.status.code().unwrap()), worst, "{report}");
    for check in &checks {
        assert_eq!(
            check["verdict"] != "ok",
            check["remedy"].is_string(),
            "a remedy where one is needed: {check}"
        );
    }
    checks
}

/// The verdicts of one check, where `about` is part of what was found.
pub fn verdicts(checks: &[Value], check: &str, about: &str) -> Vec<String> {
    let of = checks.iter().filter(|line| line["check"] == check);
    let about = of.filter(|line| line["found"].as_str().unwrap().contains(about));
    about.map(|line| line["verdict"].as_str().unwrap().to_owned()).collect()
}

/// The verdicts of one check by doctor as it is.
pub fn asks(config: &Path, more: &[&str], check: &str, about: &str) -> Vec<String> {
    verdicts(&report(mksgate(), config, more), check, about)
}

/// `sh -c SCRIPT` in whose script `"$0"` is the binary.
pub fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_mksgate")]);
    command
}

/// The line of one check, where `about` is part of what was found.
pub fn line<'a>(checks: &'a [Value], check: &str, about: &str) -> &'a Value {
    let of = |line: &&Value| line["check"] == check && line["found"].as_str().unwrap().contains(about);
    checks.iter().find(of).unwrap_or_else(|| panic!("no line on {check} with {about}: {checks:?}"))
}

/// Doctor where these files are others: in a mount namespace of its own.
pub fn with_files(dir: &Path, files: &[(&str, &str)]) -> Command {
    let mut script = String::new();
    for (n, (file, text)) in files.iter().enumerate() {
        let other = dir.join(format!("other-{n}"));
        fs::write(&other, text).unwrap();
        script.push_str(&format!("mount --bind '{}' {file} && ", other.display()));
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "--", "sh", "-c", &format!("{script}exec \"$0\" \"$@\"")]);
    command.arg(env!("CARGO_BIN_EXE_mksgate"));
    command
}

/// Runs `work` on a thread whose processes get `errno` for these system calls.
pub fn without_calls<T: Send>(calls: &[i64], errno: i32, work: impl FnOnce() -> T + Send) -> T {
    let rules: BTreeMap<_, _> = calls.iter().map(|call| (*call, Vec::new())).collect();
    let refuse = SeccompAction::Errno(errno as u32);
    let here = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, here).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    thread::scope(|scope| {
        let thread = scope.spawn(move || {
            apply_filter(&program).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

/// Whether this process is root; says so where not.
pub fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("left out: a namespace of its own needs root");
    }
    root
}
