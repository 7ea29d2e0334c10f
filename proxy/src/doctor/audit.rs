//! The audit file: its directory, and room on its disk.

use std::path::Path;

use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{AccessFlags, access};

use super::Finding;
use crate::config::Config;

const CHECK: &str = "audit";
/// A console writes two records of half a KiB: 1 GiB is a million consoles.
const LITTLE: u64 = 1 << 30;

/// The disk under the file.
pub(super) struct Disk {
    pub(super) writable: bool,
    pub(super) read_only: bool,
    pub(super) free: u64,
}

pub(super) fn examine(config: &Config) -> Vec<Finding> {
    let Some(file) = &config.audit.file else {
        return match config.audit.journal {
            true => vec![Finding::ok(CHECK, "goes to the journal")],
            false => vec![Finding::warn(CHECK, "goes nowhere", "set audit.file or audit.journal")],
        };
    };
    vec![judge(file, probe(file))]
}

pub(super) fn probe(file: &Path) -> Option<Disk> {
    let directory = file.parent()?;
    let disk = statvfs(directory).ok()?;
    let at = if file.exists() { file } else { directory };
    // access(2) judges by the real user; faccessat's AT_EACCESS is meant, since root may look through the service's eyes.
    let writable = match nix::unistd::geteuid() == nix::unistd::getuid() {
        true => access(at, AccessFlags::W_OK),
        false => nix::unistd::faccessat(
            nix::fcntl::AT_FDCWD,
            at,
            AccessFlags::W_OK,
            nix::fcntl::AtFlags::AT_EACCESS,
        ),
    };
    Some(Disk {
        writable: writable.is_ok(),
        read_only: disk.flags().contains(FsFlags::ST_RDONLY),
        free: disk.blocks_available() as u64 * disk.fragment_size() as u64,
    })
}

fn judge(file: &Path, disk: Option<Disk>) -> Finding {
    let path = file.display();
    match disk {
        None => Finding::fail(
            CHECK,
            format!("{path}: its directory is not there"),
            "systemctl start mksgate makes /var/log/mksgate; another place wants `install -d -o mksgate`, and ReadWritePaths= in a drop-in",
        ),
        Some(disk) if disk.read_only => Finding::fail(
            CHECK,
            format!("{path}: the file system is read-only"),
            "look at dmesg; consoles go on, their records are lost and counted",
        ),
        Some(disk) if !disk.writable => Finding::fail(
            CHECK,
            format!("{path}: the service may not write there"),
            "chown mksgate the file and its directory",
        ),
        Some(disk) if disk.free < LITTLE => Finding::warn(
            CHECK,
            format!("{path}: {} MiB left", disk.free >> 20),
            "make room; on a full disk consoles go on, their records are lost and counted",
        ),
        Some(disk) => Finding::ok(CHECK, format!("{path}: {} GiB free", disk.free >> 30)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn the_disk_is_judged() {
        let disk = |writable, read_only, free| {
            judge(Path::new("/var/log/a"), Some(Disk { writable, read_only, free })).verdict
        };
        assert_eq!(disk(true, true, 1 << 40), Verdict::Fail);
        assert_eq!(disk(false, false, 1 << 40), Verdict::Fail);
        assert_eq!(disk(true, false, 1 << 20), Verdict::Warn);
        assert_eq!(disk(true, false, 1 << 40), Verdict::Ok);
    }

    #[test]
    fn a_missing_directory_fails_until_it_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("log/audit.jsonl");
        assert_eq!(judge(&file, probe(&file)).verdict, Verdict::Fail);
        std::fs::create_dir(dir.path().join("log")).unwrap();
        assert_ne!(judge(&file, probe(&file)).verdict, Verdict::Fail);
    }
}
