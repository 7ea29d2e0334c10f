//! The configuration file.

use std::path::Path;

use super::Finding;
use crate::config::Config;

const CHECK: &str = "configuration";

pub(super) fn examine(path: &Path, findings: &mut Vec<Finding>) -> Option<Config> {
    match Config::load(path) {
        Ok(config) => {
            findings.extend(judge(&config));
            Some(config)
        }
        Err(error) => {
            let remedy = if path.exists() {
                "correct that line; `mksgate check` tries it again"
            } else {
                "install the package, or name the file with --config; checks that need it are left out"
            };
            findings.push(Finding::fail(CHECK, error.to_string(), remedy));
            None
        }
    }
}

fn judge(config: &Config) -> Vec<Finding> {
    let path = config.path.display();
    if config.tenants.is_empty() {
        let remedy = "add a [tenants.NAME] with max_sessions and targets";
        return vec![Finding::warn(CHECK, format!("{path}: no tenant, so every ticket is refused"), remedy)];
    }
    let mut findings = vec![Finding::ok(CHECK, format!("{path}: {} tenants", config.tenants.len()))];
    let sum: u64 = config.tenants.values().map(|tenant| u64::from(tenant.max_sessions)).sum();
    if sum > config.limits.max_connections as u64 {
        findings.push(Finding::warn(
            CHECK,
            format!(
                "{path}: the tenants may have {sum} sessions, limits.max_connections lets in {}",
                config.limits.max_connections
            ),
            "raise limits.max_connections, or mean it: tenants then share what there is",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{Verdict, worst};

    const TENANT: &str = "[tenants.acme]\nmax_sessions = 10\ntargets = [\"10.0.0.0/8\"]\n";

    fn verdict(dir: &tempfile::TempDir, text: &str) -> Verdict {
        let path = dir.path().join("mksgate.toml");
        std::fs::write(&path, text).unwrap();
        let mut findings = Vec::new();
        examine(&path, &mut findings);
        worst(&findings)
    }

    #[test]
    fn from_no_file_to_a_good_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut findings = Vec::new();
        assert!(examine(&dir.path().join("mksgate.toml"), &mut findings).is_none());
        assert!(findings[0].remedy.as_ref().unwrap().contains("install"), "{findings:?}");
        let bare = "[listen]\ntls = [\"127.0.0.1:443\"]\n[tls]\ncertificate = \"c\"\nkey = \"k\"\n[tickets]\nkeys = \"d\"\n";
        assert_eq!(verdict(&dir, &bare.replace("listen", "lisden")), Verdict::Fail);
        assert_eq!(verdict(&dir, bare), Verdict::Warn, "no tenant");
        assert_eq!(verdict(&dir, &format!("{bare}{TENANT}")), Verdict::Ok);
        let tight = format!("{bare}[limits]\nmax_connections = 5\n{TENANT}");
        assert_eq!(verdict(&dir, &tight), Verdict::Warn, "more promised than there is");
    }
}
