//! The units, as systemd sees them, and the capabilities of the running process.

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use super::Finding;

const CHECK: &str = "service";
/// Bit of CAP_NET_ADMIN in the masks of `/proc/PID/status` (linux/capability.h).
const NET_ADMIN: u64 = 1 << 12;

/// Looks at the units; returns whether the service runs.
pub(super) fn examine(findings: &mut Vec<Finding>) -> bool {
    if !Path::new("/run/systemd/system").is_dir() {
        let running = main_pid().is_some();
        findings.push(Finding::ok(CHECK, "systemd does not run this host; units are not looked at"));
        return running;
    }
    let (service, socket) = (show("mksgate.service"), show("mksgate.socket"));
    let running =
        service.get("ActiveState").is_some_and(|state| matches!(state.as_str(), "active" | "reloading"));
    findings.push(judge_service(&service));
    findings.push(judge_socket(&socket));
    if let Some(pid) = main_pid() {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        findings.extend(judge_capabilities(&status));
    }
    running
}

/// The process of the service, if it runs.
pub(super) fn main_pid() -> Option<u32> {
    let service = show("mksgate.service");
    service.get("MainPID")?.parse().ok().filter(|pid| *pid != 0)
}

/// What mksgate.socket holds, if it is active.
pub(super) fn socket_addresses() -> Vec<SocketAddr> {
    let socket = show("mksgate.socket");
    match socket.get("ActiveState").map(String::as_str) {
        Some("active") => listen_lines(socket.get("Listen").map_or("", String::as_str)),
        _ => Vec::new(),
    }
}

/// `0.0.0.0:443 (Stream)`, a line each.
fn listen_lines(text: &str) -> Vec<SocketAddr> {
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// Properties of a unit; several values of one property stand in lines.
fn show(unit: &str) -> HashMap<String, String> {
    let names = "--property=LoadState,ActiveState,SubState,Result,UnitFileState,MainPID,Listen,NRestarts";
    let output = Command::new("systemctl").args(["show", names, unit]).output();
    parse(&output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default())
}

fn parse(text: &str) -> HashMap<String, String> {
    let mut properties: HashMap<String, String> = HashMap::new();
    for (name, value) in text.lines().filter_map(|line| line.split_once('=')) {
        let all = properties.entry(name.to_owned()).or_default();
        if !all.is_empty() {
            all.push('\n');
        }
        all.push_str(value);
    }
    properties
}

fn judge_service(unit: &HashMap<String, String>) -> Finding {
    let is = |name: &str| unit.get(name).map_or("", String::as_str);
    match (is("LoadState"), is("ActiveState")) {
        ("loaded", "active" | "reloading") if is("NRestarts").parse::<u32>().is_ok_and(|n| n > 0) => {
            Finding::warn(
                CHECK,
                format!("mksgate.service runs, and was restarted {} times", is("NRestarts")),
                "journalctl -u mksgate says why; systemctl reset-failed mksgate forgets the count",
            )
        }
        ("loaded", "active" | "reloading") => Finding::ok(CHECK, "mksgate.service runs"),
        ("loaded", "failed") => Finding::fail(
            CHECK,
            format!("mksgate.service failed ({})", is("Result")),
            "journalctl -u mksgate says why; then systemctl reset-failed mksgate.socket mksgate && systemctl start mksgate",
        ),
        ("loaded", state) => {
            Finding::warn(CHECK, format!("mksgate.service is {state}"), "systemctl enable --now mksgate")
        }
        _ => Finding::warn(
            CHECK,
            "mksgate.service is not installed",
            "install the package, or the units of systemd/",
        ),
    }
}

fn judge_socket(unit: &HashMap<String, String>) -> Finding {
    let is = |name: &str| unit.get(name).map_or("", String::as_str);
    match (is("LoadState"), is("ActiveState")) {
        ("loaded", "active") => Finding::ok(CHECK, "mksgate.socket holds the doors over a restart"),
        ("loaded", "failed") => Finding::fail(
            CHECK,
            format!("mksgate.socket failed ({})", is("Result")),
            "see who holds the ports (below), then systemctl reset-failed mksgate.socket && systemctl start mksgate.socket mksgate",
        ),
        ("loaded", state) => Finding::warn(
            CHECK,
            format!("mksgate.socket is {state}: a restart of the service refuses clients"),
            "systemctl enable --now mksgate.socket",
        ),
        _ => Finding::warn(
            CHECK,
            "mksgate.socket is not installed",
            "install the package, or the units of systemd/",
        ),
    }
}

fn judge_capabilities(status: &str) -> Option<Finding> {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let mask = u64::from_str_radix(mask.trim(), 16).ok()?;
    Some(if mask & NET_ADMIN == 0 {
        Finding::warn(
            "capabilities",
            "the service runs without CAP_NET_ADMIN: sockets carry no tenant mark",
            "let AmbientCapabilities= and CapabilityBoundingSet= of mksgate.service name it",
        )
    } else {
        Finding::ok("capabilities", "CAP_NET_ADMIN: sockets carry their tenant's mark (ss -e)")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    fn unit(load: &str, active: &str, more: &str) -> HashMap<String, String> {
        parse(&format!("LoadState={load}\nActiveState={active}\nResult=exit-code\n{more}"))
    }

    #[test]
    fn states_of_the_units_lead_to_commands() {
        let service = |load, active, more| judge_service(&unit(load, active, more)).verdict;
        assert_eq!(service("not-found", "inactive", ""), Verdict::Warn);
        assert_eq!(service("loaded", "inactive", ""), Verdict::Warn);
        assert_eq!(service("loaded", "failed", ""), Verdict::Fail);
        assert_eq!(service("loaded", "active", "NRestarts=3"), Verdict::Warn);
        assert_eq!(service("loaded", "active", "NRestarts=0"), Verdict::Ok);
        let socket = |load, active| judge_socket(&unit(load, active, "")).verdict;
        assert_eq!(socket("not-found", "inactive"), Verdict::Warn);
        assert_eq!(socket("loaded", "inactive"), Verdict::Warn);
        assert_eq!(socket("loaded", "failed"), Verdict::Fail);
        assert_eq!(socket("loaded", "active"), Verdict::Ok);
    }

    #[test]
    fn the_sockets_addresses_are_read() {
        let shown = parse("ActiveState=active\nListen=0.0.0.0:443 (Stream)\nListen=[::]:902 (Stream)\n");
        let addresses = listen_lines(&shown["Listen"]);
        assert_eq!(addresses, ["0.0.0.0:443".parse().unwrap(), "[::]:902".parse().unwrap()]);
    }

    #[test]
    fn the_missing_capability_is_named() {
        let status = |mask: &str| judge_capabilities(&format!("Name:\tmksgate\nCapEff:\t{mask}\n")).unwrap();
        assert!(status("0000000000000000").found.contains("CAP_NET_ADMIN"));
        assert_eq!(status("0000000000001000").verdict, Verdict::Ok);
    }
}
