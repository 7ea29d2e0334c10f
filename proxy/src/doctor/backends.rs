//! What the running service saw of hosts and vCenters.

use std::path::Path;

use super::Finding;
use crate::admin::client::Client;
use crate::admin::{BackendList, BackendView};

const CHECK: &str = "backends";
/// Most failing ones that are named one by one.
const MOST: usize = 10;

/// Asks the service, where one answers at its admin socket.
pub(super) fn examine(socket: &Path) -> Vec<Finding> {
    match Client::new(socket).get::<BackendList>("/v1/backends") {
        Ok(list) => judge(&list),
        // Whether it runs, and who may ask it, are other checks' to say.
        Err(_) => Vec::new(),
    }
}

fn judge(list: &BackendList) -> Vec<Finding> {
    let failing =
        |of: &[BackendView]| of.iter().filter(|backend| backend.failing).cloned().collect::<Vec<_>>();
    let (hosts, vcenters) = (failing(&list.hosts), failing(&list.vcenters));
    let mut findings = Vec::new();
    let found = |kind: &str, backend: &BackendView| {
        let why = backend.last_error.as_deref().unwrap_or("no reason known");
        format!(
            "{kind} {}: {} of {} failed, the last time: {why}",
            backend.address,
            backend.failed,
            backend.failed + backend.answered
        )
    };
    for vcenter in vcenters.iter().take(MOST) {
        let remedy = "its tenants get no console; try it from here: mksgate doctor --host HOST:443, and compare its certificate with `thumbprints`";
        findings.push(Finding::warn(CHECK, found("vCenter", vcenter), remedy));
    }
    for host in hosts.iter().take(MOST) {
        let remedy =
            "try it from here: mksgate doctor --host HOST:PORT; look at the host's services and its firewall";
        findings.push(Finding::warn(CHECK, found("host", host), remedy));
    }
    let more = hosts.len().saturating_sub(MOST) + vcenters.len().saturating_sub(MOST);
    if more > 0 {
        findings.push(Finding::warn(
            CHECK,
            format!("{more} more fail"),
            "mksgate sessions backends lists them all",
        ));
    }
    if findings.is_empty() {
        let (hosts, vcenters) = (list.hosts.len(), list.vcenters.len());
        findings.push(Finding::ok(
            CHECK,
            format!("{hosts} hosts and {vcenters} vCenters answered when last asked"),
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    fn backend(address: &str, failing: bool) -> BackendView {
        let last_error = failing.then(|| "no answer".to_owned());
        BackendView {
            address: address.into(),
            failing,
            failed: failing.into(),
            last_error,
            ..Default::default()
        }
    }

    #[test]
    fn those_that_fail_are_named_with_what_to_do() {
        let mut list =
            BackendList { hosts: vec![backend("esx:902", false)], vcenters: vec![backend("vc:443", false)] };
        assert_eq!(judge(&list)[0].verdict, Verdict::Ok);
        list.vcenters[0] = backend("vc:443", true);
        list.hosts = (0..12).map(|n| backend(&format!("esx-{n}:902"), true)).collect();
        let findings = judge(&list);
        assert_eq!(findings.len(), 12);
        assert!(findings.iter().all(|finding| finding.verdict == Verdict::Warn && finding.remedy.is_some()));
        assert!(findings[0].found.contains("vCenter vc:443") && findings[11].found.contains("2 more"));
    }
}
