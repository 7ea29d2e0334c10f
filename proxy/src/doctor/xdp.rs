//! The XDP gate: what the running appliance says of it, or whether this kernel would take the program.

use std::path::Path;

use super::Finding;
use crate::admin::client::Client;
use crate::config::Config;
use crate::xdp::{Enabled, GateError, OBJECT, Program, ShedStatus, look_at, missing_capabilities, policy};

const CHECK: &str = "xdp";
const KEEPER: &str = "copy drop-ins/xdp.conf to /etc/systemd/system/mksgate.service.d/, set xdp.keeper to \
                      \"/run/mksgate-xdp/keeper.sock\" and restart";

pub(super) fn examine(config: &Config) -> Vec<Finding> {
    let enabled = config.xdp.enabled;
    if enabled == Enabled::Off {
        return vec![Finding::ok(
            CHECK,
            "off, as configured: floods are shed later, by the limits in userspace",
        )];
    }
    if OBJECT.is_none() {
        return vec![off(
            enabled,
            GateError::NoObject.to_string(),
            "install a build that has it, or set xdp.enabled to \"off\"",
        )];
    }
    match Client::new(&config.admin.socket).get::<ShedStatus>("/v1/xdp") {
        Ok(status) => running(enabled, &status),
        Err(_) if config.xdp.keeper.is_some() => {
            config.xdp.keeper.iter().map(|at| kept(enabled, at)).collect()
        }
        Err(_) => vec![trial(enabled, missing_capabilities(), || {
            Program::load(&policy(config, &[]), &[], 256).map(drop)
        })],
    }
}

/// What the running appliance has.
fn running(enabled: Enabled, status: &ShedStatus) -> Vec<Finding> {
    let Some(gate) = &status.gate else {
        let why = status.off.clone().unwrap_or_default();
        let remedy =
            if why.contains("CAP_") { KEEPER } else { "do what it says; until then floods cost more CPU" };
        return vec![off(enabled, format!("off: {why}"), remedy)];
    };
    let each = gate.interfaces.iter().map(|interface| {
        let on = format!("{}: {}", interface.name, interface.mode);
        match (interface.mode.as_str(), &interface.problem) {
            ("off", problem) => off(
                enabled,
                format!("{on}: {}", problem.as_deref().unwrap_or("no reason given")),
                "do what it says",
            ),
            ("generic", Some(problem)) => Finding::ok(CHECK, format!("{on} (native was refused: {problem})")),
            _ => Finding::ok(CHECK, on),
        }
    });
    each.collect()
}

/// The keeper is there for the service that does not run.
fn kept(enabled: Enabled, socket: &Path) -> Finding {
    match look_at(socket) {
        Ok(_) => Finding::ok(CHECK, format!("the keeper at {} waits for the service", socket.display())),
        Err(error) => {
            off(enabled, error.to_string(), "systemctl start mksgate-xdp, or take [xdp] keeper away")
        }
    }
}

/// The program loaded and thrown away: what the service will do at its start.
fn trial(enabled: Enabled, missing: Vec<&str>, load: impl FnOnce() -> Result<(), GateError>) -> Finding {
    if !missing.is_empty() {
        let found = format!("cannot be tried without {}", missing.join(" and "));
        return Finding::warn(CHECK, found, "run doctor as root");
    }
    match load() {
        Ok(()) => Finding::ok(
            CHECK,
            format!(
                "this kernel takes the program; the service needs a keeper for it ({KEEPER}), or CAP_BPF, CAP_PERFMON \
                 and CAP_NET_ADMIN"
            ),
        ),
        Err(error) => off(enabled, error.to_string(), "do what it says, or set xdp.enabled to \"off\""),
    }
}

fn off(enabled: Enabled, found: String, remedy: &str) -> Finding {
    match enabled {
        Enabled::Required => Finding::fail(CHECK, found, remedy),
        Enabled::Auto | Enabled::Off => Finding::warn(CHECK, found, remedy),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;
    use crate::xdp::{GateStatus, InterfaceStatus, OnLimit};

    fn on(mode: &str, problem: Option<&str>) -> ShedStatus {
        let interface =
            InterfaceStatus { name: "eth0".into(), mode: mode.into(), problem: problem.map(Into::into) };
        let gate = GateStatus {
            interfaces: vec![interface],
            program: 1,
            on_limit: OnLimit::Drop,
            destinations: 1,
            tenants: 0,
            prefixes: 0,
            known_sources: 0,
            max_sources: 256,
        };
        ShedStatus { off: None, gate: Some(gate), packets: vec![], tenants: vec![] }
    }

    #[test]
    fn what_runs_is_told_by_interface() {
        assert_eq!(running(Enabled::Auto, &on("native", None))[0].verdict, Verdict::Ok);
        let generic = &running(Enabled::Required, &on("generic", Some("not supported")))[0];
        assert_eq!((generic.verdict, generic.found.contains("not supported")), (Verdict::Ok, true));
        assert_eq!(running(Enabled::Auto, &on("off", Some("vanished")))[0].verdict, Verdict::Warn);
        assert_eq!(running(Enabled::Required, &on("off", Some("vanished")))[0].verdict, Verdict::Fail);
    }

    #[test]
    fn a_lacking_capability_names_the_drop_in() {
        let off = Some("no permission for XDP: the process lacks CAP_BPF".to_owned());
        let status = ShedStatus { off, gate: None, packets: vec![], tenants: vec![] };
        assert!(
            running(Enabled::Auto, &status)[0]
                .remedy
                .as_deref()
                .unwrap_or_default()
                .contains("drop-ins/xdp.conf")
        );
    }

    #[test]
    fn the_trial_is_as_bad_as_the_configuration_makes_it() {
        assert_eq!(trial(Enabled::Auto, vec![], || Ok(())).verdict, Verdict::Ok);
        assert_eq!(trial(Enabled::Auto, vec![], || Err(GateError::NoObject)).verdict, Verdict::Warn);
        assert_eq!(trial(Enabled::Required, vec![], || Err(GateError::NoObject)).verdict, Verdict::Fail);
        assert_eq!(trial(Enabled::Required, vec!["CAP_BPF"], || Ok(())).verdict, Verdict::Warn);
    }
}
