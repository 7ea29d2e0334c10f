//! The program that runs, and whether another one lies where it came from.

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// The file this process was started from.
pub(super) struct Program {
    pub(super) path: PathBuf,
    /// Device, inode and time of change: a package replaces the file, a copy rewrites it.
    stamp: Option<(u64, u64, i64)>,
}

impl Program {
    /// To be asked at the start, while the name still means the file.
    pub(super) fn of_this_process() -> Self {
        let path = env::current_exe().unwrap_or_else(|_| "/usr/bin/mksgate".into());
        let stamp = stamp(&path);
        Self { path, stamp }
    }

    /// Whether an upgrade would start another program than the one that runs.
    pub(super) fn is_replaced(&self) -> bool {
        stamp(&self.path).is_some_and(|now| Some(now) != self.stamp)
    }
}

fn stamp(path: &PathBuf) -> Option<(u64, u64, i64)> {
    let meta = fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino(), meta.mtime()))
}
