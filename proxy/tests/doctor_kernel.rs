//! `mksgate doctor` on kernels that are too old, refuse io_uring, or grant too little for pipes, and on the same repaired.

mod doctor_rig;
mod support;

use doctor_rig::{is_root, line, report, verdicts, with_files, without_calls};
use support::{Setup, mksgate};

const RELEASE: &str = "/proc/sys/kernel/osrelease";
const PIPE_BYTES: &str = "/proc/sys/fs/pipe-max-size";
const PIPE_PAGES: &str = "/proc/sys/fs/pipe-user-pages-soft";
/// io_uring_setup(2), io_uring_enter(2), io_uring_register(2).
const URING: [i64; 3] = [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];

#[test]
fn an_old_kernel_is_named_with_what_it_lacks() {
    if !is_root() {
        return;
    }
    let setup = Setup::new();
    let (config, dir) = (setup.write(), setup.dir.path());
    for old in ["5.15.0-91-generic", "6.0.19"] {
        let checks = report(with_files(dir, &[(RELEASE, old)]), &config, &[]);
        let said = line(&checks, "kernel", old);
        assert_eq!(said["verdict"], "warn", "{said}");
        assert!(said["found"].as_str().unwrap().contains("older than 6.1"), "{said}");
        assert!(said["remedy"].as_str().unwrap().contains("newer kernel"), "{said}");
    }
    let checks = report(with_files(dir, &[(RELEASE, "6.1.0-41-amd64")]), &config, &[]);
    assert_eq!(line(&checks, "kernel", "6.1.0-41-amd64")["verdict"], "ok");
}

#[test]
fn a_refused_ring_is_a_warning_or_a_failure_by_what_the_configuration_wants() {
    for (driver, verdict) in [("auto", "warn"), ("io_uring", "fail"), ("epoll", "ok")] {
        let setup = Setup::new().with(&format!("[flow]\ndriver = \"{driver}\""));
        let config = setup.write();
        for errno in [libc::EPERM, libc::ENOSYS] {
            let checks = without_calls(&URING, errno, || report(mksgate(), &config, &[]));
            let said = line(&checks, "io_uring", "");
            assert_eq!(said["verdict"], verdict, "{driver}: {said}");
            if verdict != "ok" {
                let found = said["found"].as_str().unwrap();
                assert!(found.contains("seccomp filter") && found.contains("SystemCallFilter="), "{said}");
            }
        }
        // The same host without the filter; a machine whose kernel has no io_uring for anybody shows nothing here.
        let checks = report(mksgate(), &config, &[]);
        let said = line(&checks, "io_uring", "");
        let nobody = said["found"].as_str().unwrap().contains("not available");
        assert!(said["verdict"] == "ok" || nobody, "{driver}: {said}");
        assert!(!nobody || std::env::var_os("MKSGATE_FULL_TESTS").is_none(), "{said}");
    }
}

#[test]
fn pipes_that_the_kernel_does_not_grant_are_counted() {
    if !is_root() {
        return;
    }
    let setup = Setup::new().with("[flow]\nthreads = 1\nmax_pipes = 64\npipe_bytes = 262144");
    let (config, dir) = (setup.write(), setup.dir.path());
    let pipes = |bytes: &str, pages: &str| {
        let command = with_files(dir, &[(PIPE_BYTES, bytes), (PIPE_PAGES, pages)]);
        line(&report(command, &config, &[]), "pipes", "").clone()
    };
    let short = pipes("65536", "0");
    assert_eq!(short["verdict"], "warn", "{short}");
    assert_eq!(short["remedy"], "sysctl fs.pipe-max-size=262144");
    // 64 pipes of 64 pages each.
    let few = pipes("1048576", "4095");
    assert_eq!(few["verdict"], "warn", "{few}");
    assert!(few["found"].as_str().unwrap().contains("= 4095 holds 63 of 64 pipes"), "{few}");
    assert!(few["remedy"].as_str().unwrap().starts_with("sysctl fs.pipe-user-pages-soft=0"), "{few}");
    for pages in ["4096", "0"] {
        assert_eq!(pipes("262144", pages)["verdict"], "ok", "{pages}");
    }
}

#[test]
fn a_report_without_a_configuration_still_tells_of_the_kernel() {
    let nowhere = std::path::Path::new("/nonexistent/mksgate.toml");
    let checks = without_calls(&URING, libc::EPERM, || report(mksgate(), nowhere, &[]));
    assert_eq!(verdicts(&checks, "configuration", "/nonexistent"), ["fail"]);
    assert_eq!(line(&checks, "io_uring", "")["verdict"], "warn");
}
