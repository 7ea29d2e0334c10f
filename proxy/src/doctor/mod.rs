//! `mksgate doctor`: one file per check. What a check sees (`probe`, or the examine function itself) stands apart from what
//! it makes of it (`judge`), so that every judgement is tested without the trouble it is about.

mod audit;
mod backends;
mod certificate;
mod clock;
mod config;
mod doors;
mod journal;
mod kernel;
mod keys;
mod limits;
mod network;
mod public;
mod reach;
mod service;
pub mod user;
mod xdp;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Works, or will, but not as well as it could, or cannot be seen from here.
    Warn,
    /// Consoles will be refused.
    Fail,
}

impl Verdict {
    /// The word in front of a line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which check.
    pub check: &'static str,
    /// How bad it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do; nothing where all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, found: found.into(), remedy: None }
    }

    fn warn(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Warn, found: found.into(), remedy: Some(remedy.into()) }
    }

    fn fail(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Fail, found: found.into(), remedy: Some(remedy.into()) }
    }
}

impl Finding {
    /// Somebody who may not read the service's files does not know whether the service can.
    fn seen_by_a_stranger(self) -> Self {
        match self.verdict {
            Verdict::Fail => Self::warn(
                self.check,
                self.found,
                "run `mksgate doctor` as root: this user may not see what the service sees",
            ),
            _ => self,
        }
    }
}

/// What is to be examined.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// Hypervisors and vCenters to try besides those the configuration names one by one: `host` or `host:port`.
    pub hosts: Vec<String>,
    /// The address that clients use, `host:port`.
    pub public: Option<String>,
}

/// Who listens on the address: the programs with their numbers; `None` where nobody does, or this user may not see who.
pub fn holder(address: SocketAddr) -> Option<String> {
    doors::holder(address)
}

/// Everything; the order is that of an installation.
pub fn examine(options: &Options) -> Vec<Finding> {
    let mut findings = Vec::new();
    let account = user::service();
    let config = user::impersonate(account.as_ref(), || config::examine(&options.config, &mut findings));
    findings.extend(kernel::examine(config.as_ref()));
    findings.extend(limits::examine(config.as_ref()));
    findings.extend(network::examine(config.as_ref()));
    findings.push(clock::examine(SystemTime::now()));
    if let Some(config) = &config {
        user::impersonate(account.as_ref(), || {
            let mut files = vec![keys::examine(&config.tickets.keys)];
            files.extend(certificate::examine(config, SystemTime::now()));
            files.extend(audit::examine(config));
            files.push(journal::examine(config));
            let sees = user::sees_as(account.as_ref());
            findings.extend(
                files.into_iter().map(|finding| if sees { finding } else { finding.seen_by_a_stranger() }),
            );
        });
    }
    let running = service::examine(&mut findings);
    if let Some(config) = &config {
        findings.extend(xdp::examine(config));
    }
    if let Some(config) = &config {
        findings.extend(doors::examine(config, running));
    }
    if let Some(config) = &config {
        findings.extend(backends::examine(&config.admin.socket));
    }
    findings.extend(reach::examine(config.as_ref(), &options.hosts));
    if let (Some(public), Some(config)) = (&options.public, &config) {
        findings.push(public::examine(public, config));
    }
    findings
}

/// The worst of them.
pub fn worst(findings: &[Finding]) -> Verdict {
    findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_line_decides_the_exit_code() {
        let (ok, warn, fail) =
            (Finding::ok("a", "b"), Finding::warn("a", "b", "c"), Finding::fail("a", "b", "c"));
        assert_eq!(worst(&[]) as u8, 0);
        assert_eq!(worst(&[ok.clone(), warn.clone()]) as u8, 1);
        assert_eq!(worst(&[warn, fail.clone(), ok.clone()]) as u8, 2);
        assert_eq!(fail.seen_by_a_stranger().verdict, Verdict::Warn);
        assert_eq!(ok.clone().seen_by_a_stranger(), ok);
    }
}
