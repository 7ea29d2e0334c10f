//! The ticket journal: its file, the directory, and room.

use std::path::Path;

use super::Finding;
use super::audit::{Disk, probe};
use crate::config::Config;
use crate::ticket::journal;

const CHECK: &str = "ticket journal";
/// The journal of 100,000 used tickets, twice, as it is while it is written anew.
const LITTLE: u64 = 64 << 20;

pub(super) fn examine(config: &Config) -> Finding {
    match &config.tickets.journal {
        Some(file) => judge(file, probe(file), journal::examine(file)),
        None => Finding::warn(
            CHECK,
            "is off: a restart or a crash forgets which tickets were used and revoked",
            "take tickets.journal = \"off\" out of the configuration",
        ),
    }
}

fn judge(file: &Path, disk: Option<Disk>, usable: Result<(), String>) -> Finding {
    let path = file.display();
    let goes_on = "consoles go on, and after a crash they cannot reconnect";
    match (disk, usable) {
        (None, _) => Finding::warn(
            CHECK,
            format!("{path}: its directory is not there"),
            "systemctl start mksgate makes /run/mksgate; another place wants `install -d -o mksgate -m 700`, and ReadWritePaths= in a drop-in",
        ),
        (Some(disk), _) if disk.read_only => {
            Finding::warn(CHECK, format!("{path}: the file system is read-only; {goes_on}"), "look at dmesg")
        }
        (Some(disk), _) if !disk.writable => Finding::warn(
            CHECK,
            format!("{path}: the service may not write there; {goes_on}"),
            "chown mksgate the file and its directory",
        ),
        (Some(_), Err(why)) => Finding::warn(CHECK, format!("{path} cannot be used; {goes_on}"), why),
        (Some(disk), Ok(())) if disk.free < LITTLE => Finding::warn(
            CHECK,
            format!("{path}: {} MiB left; {goes_on} once it is full", disk.free >> 20),
            "make room, or name a file on another disk in tickets.journal",
        ),
        (Some(disk), Ok(())) => Finding::ok(CHECK, format!("{path}: {} MiB free", disk.free >> 20)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn disk_and_file_are_judged() {
        let judged = |writable, read_only, free, usable: Result<(), &str>| {
            let disk = Some(Disk { writable, read_only, free });
            judge(Path::new("/run/mksgate/tickets.journal"), disk, usable.map_err(Into::into)).verdict
        };
        assert_eq!(judged(true, true, 1 << 40, Ok(())), Verdict::Warn);
        assert_eq!(judged(false, false, 1 << 40, Ok(())), Verdict::Warn);
        assert_eq!(judged(true, false, 1 << 20, Ok(())), Verdict::Warn);
        assert_eq!(judged(true, false, 1 << 40, Err("it is a symbolic link; remove it")), Verdict::Warn);
        assert_eq!(judged(true, false, 1 << 40, Ok(())), Verdict::Ok);
    }
}
