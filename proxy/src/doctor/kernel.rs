//! The kernel: its version, io_uring by trial, BTF for XDP.

use std::fs;

use super::Finding;
use crate::config::Config;
use crate::flow::{Driver, Engines, FlowConfig};

const CHECK: &str = "kernel";
/// Multishot receives and DEFER_TASKRUN.
const WANTED: (u32, u32) = (6, 1);

pub(super) fn examine(config: Option<&Config>) -> Vec<Finding> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let driver = config.map_or(Driver::Auto, |config| config.flow.driver);
    vec![version(release.trim()), uring(driver, trial())]
}

/// Starts an engine with one thread and stops it: what the service will do.
fn trial() -> Result<(), String> {
    let config = FlowConfig { driver: Driver::IoUring, threads: 1, ..FlowConfig::default() };
    Engines::start(&config).map(Engines::stop).map_err(|error| error.to_string())
}

fn version(release: &str) -> Finding {
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= WANTED => {
            Finding::ok(CHECK, format!("Linux {release}"))
        }
        _ => Finding::warn(
            CHECK,
            format!("Linux {release}: older than {}.{}", WANTED.0, WANTED.1),
            "flows run on epoll there: more CPU per byte; a newer kernel has what io_uring needs",
        ),
    }
}

fn uring(driver: Driver, trial: Result<(), String>) -> Finding {
    const CHECK: &str = "io_uring";
    match (driver, trial) {
        (Driver::Epoll, _) => Finding::ok(CHECK, "not wanted: flow.driver is \"epoll\""),
        (_, Ok(())) => Finding::ok(CHECK, "a ring with all that the flow engine uses was set up"),
        (Driver::IoUring, Err(why)) => {
            Finding::fail(CHECK, why, "do what it says, or set flow.driver to \"auto\"")
        }
        (Driver::Auto, Err(why)) => {
            Finding::warn(CHECK, why, "do what it says; until then flows run on epoll")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn old_kernels_are_named() {
        for (release, verdict) in [
            ("6.1.0-41-amd64", Verdict::Ok),
            ("6.18.44", Verdict::Ok),
            ("10.0", Verdict::Ok),
            ("5.15.0-91-generic", Verdict::Warn),
            ("6.0.9", Verdict::Warn),
            ("", Verdict::Warn),
        ] {
            assert_eq!(version(release).verdict, verdict, "{release}");
        }
    }

    #[test]
    fn a_refused_ring_is_as_bad_as_the_configuration_makes_it() {
        let refused =
            || Err("io_uring is not available: the sysctl kernel.io_uring_disabled is 2".to_owned());
        assert_eq!(uring(Driver::Auto, refused()).verdict, Verdict::Warn);
        assert_eq!(uring(Driver::IoUring, refused()).verdict, Verdict::Fail);
        assert_eq!(uring(Driver::Epoll, refused()).verdict, Verdict::Ok);
        assert_eq!(uring(Driver::IoUring, Ok(())).verdict, Verdict::Ok);
    }

    #[test]
    fn the_trial_says_why_or_works() {
        if let Err(why) = trial() {
            assert!(why.contains("io_uring"), "{why}");
        }
    }
}
