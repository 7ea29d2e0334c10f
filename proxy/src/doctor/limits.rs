//! Open files and pipes: how many consoles fit.

use std::fs;
use std::str::FromStr;

use nix::sys::resource::{Resource, getrlimit};

use super::{Finding, service};
use crate::config::Config;

/// Listeners, rings, logs, the admin socket and its clients, name resolution.
const OTHER_FILES: u64 = 256;
const PAGE: u64 = 4096;

/// What the host grants.
struct Granted {
    /// Open files of the process.
    files: u64,
    /// Whose limit that is.
    of: String,
    /// fs.pipe-max-size, bytes.
    pipe_bytes: u64,
    /// fs.pipe-user-pages-soft; 0: no limit.
    pipe_pages: u64,
}

/// What the configuration promises.
struct Promised {
    connections: u64,
    tenants: u64,
    pipes: u64,
    pipe_bytes: u64,
}

pub(super) fn examine(config: Option<&Config>) -> Vec<Finding> {
    let Some(config) = config else { return Vec::new() };
    let threads = match config.flow.threads {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        n => n,
    };
    let promised = Promised {
        connections: config.limits.max_connections as u64,
        tenants: config.tenants.values().map(|tenant| u64::from(tenant.max_sessions)).sum(),
        pipes: (config.flow.max_pipes * threads) as u64,
        pipe_bytes: config.flow.pipe_bytes as u64,
    };
    judge(&promised, &probe())
}

fn probe() -> Granted {
    let (files, of) = service::main_pid()
        .and_then(|pid| {
            let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
            Some((open_files(&limits)?, format!("the service (pid {pid})")))
        })
        .unwrap_or_else(|| {
            (getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft), "this shell".into())
        });
    Granted {
        files,
        of,
        pipe_bytes: sysctl("fs/pipe-max-size"),
        pipe_pages: sysctl("fs/pipe-user-pages-soft"),
    }
}

fn sysctl<T: FromStr + Default>(name: &str) -> T {
    let text = fs::read_to_string(format!("/proc/sys/{name}")).unwrap_or_default();
    text.trim().parse().unwrap_or_default()
}

/// The soft limit in `/proc/PID/limits`.
fn open_files(limits: &str) -> Option<u64> {
    let line = limits.lines().find(|line| line.starts_with("Max open files"))?;
    let soft = line["Max open files".len()..].split_whitespace().next()?;
    if soft == "unlimited" { Some(u64::MAX) } else { soft.parse().ok() }
}

fn judge(promised: &Promised, granted: &Granted) -> Vec<Finding> {
    vec![files(promised, granted), pipes(promised, granted)]
}

fn files(promised: &Promised, granted: &Granted) -> Finding {
    const CHECK: &str = "open files";
    let fits = granted.files.saturating_sub(OTHER_FILES + 2 * promised.pipes) / 2;
    let said = format!("{} for {}: {fits} consoles with every pipe in use", granted.files, granted.of);
    let remedy = "raise LimitNOFILE= in a drop-in of mksgate.service (systemctl edit mksgate), and fs.nr_open if it stands below";
    if fits == 0 {
        Finding::fail(CHECK, said, remedy)
    } else if fits < promised.tenants {
        Finding::warn(CHECK, format!("{said}; the tenants may have {}", promised.tenants), remedy)
    } else if fits < promised.connections {
        Finding::ok(
            CHECK,
            format!("{said}; that, not limits.max_connections = {}, is the most", promised.connections),
        )
    } else {
        Finding::ok(CHECK, said)
    }
}

fn pipes(promised: &Promised, granted: &Granted) -> Finding {
    const CHECK: &str = "pipes";
    if granted.pipe_bytes < promised.pipe_bytes {
        return Finding::warn(
            CHECK,
            format!("flow.pipe_bytes is {}, fs.pipe-max-size {}", promised.pipe_bytes, granted.pipe_bytes),
            format!("sysctl fs.pipe-max-size={}", promised.pipe_bytes),
        );
    }
    let pages = promised.pipes * promised.pipe_bytes / PAGE;
    if granted.pipe_pages != 0 && granted.pipe_pages < pages {
        let fit = granted.pipe_pages * PAGE / promised.pipe_bytes;
        return Finding::warn(
            CHECK,
            format!(
                "fs.pipe-user-pages-soft = {} holds {fit} of {} pipes; the rest of the consoles in bulk is copied",
                granted.pipe_pages, promised.pipes
            ),
            "sysctl fs.pipe-user-pages-soft=0 (reasons: /usr/share/doc/mksgate/sysctl.conf)",
        );
    }
    Finding::ok(CHECK, format!("{} of {} KiB", promised.pipes, promised.pipe_bytes >> 10))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    const PROMISED: Promised =
        Promised { connections: 10_000, tenants: 500, pipes: 100, pipe_bytes: 262_144 };

    fn granted(files: u64, pipe_bytes: u64, pipe_pages: u64) -> Granted {
        Granted { files, of: "the service".into(), pipe_bytes, pipe_pages }
    }

    #[test]
    fn files_are_counted_for_consoles_and_pipes() {
        let verdict = |n| files(&PROMISED, &granted(n, 0, 0)).verdict;
        assert_eq!(verdict(400), Verdict::Fail);
        assert_eq!(verdict(1024), Verdict::Warn);
        assert_eq!(verdict(262_144), Verdict::Ok);
        assert_eq!(verdict(u64::MAX), Verdict::Ok);
        let between = files(&PROMISED, &granted(4096, 0, 0));
        assert!(between.verdict == Verdict::Ok && between.found.contains("is the most"), "{between:?}");
    }

    #[test]
    fn pipes_want_size_and_pages() {
        let verdict = |bytes, pages| pipes(&PROMISED, &granted(0, bytes, pages)).verdict;
        assert_eq!(verdict(65_536, 0), Verdict::Warn);
        assert_eq!(verdict(1_048_576, 1000), Verdict::Warn);
        assert_eq!(verdict(1_048_576, 6400), Verdict::Ok);
        assert_eq!(verdict(1_048_576, 0), Verdict::Ok);
    }

    #[test]
    fn the_kernels_table_is_read() {
        let table = "Limit                     Soft Limit           Hard Limit           Units     \n\
                     Max processes             94                   94                   processes \n\
                     Max open files            1024                 524288               files     \n";
        assert_eq!(open_files(table), Some(1024));
        assert_eq!(open_files(&table.replace("1024  ", "unlimited")), Some(u64::MAX));
        assert!(open_files(&fs::read_to_string("/proc/self/limits").unwrap()).is_some());
    }
}
