//! Ticket keys and certificate are read again when their files change (inotify), so rotation needs no command.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::Control;
use crate::sys;

/// Files of one rotation come within this time of each other.
const SETTLE: Duration = Duration::from_millis(100);

/// Watches for as long as the control thread runs.
pub(super) async fn secrets(control: Arc<Control>) {
    if let Err(error) = watch(&control).await {
        tracing::warn!(%error, "key and certificate files are not watched; `mksgate reload` or SIGHUP reads them again");
    }
}

async fn watch(control: &Control) -> io::Result<()> {
    loop {
        let directories = directories(control);
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let woken = sys::watched(inotify.as_fd().try_clone_to_owned()?, tokio::io::Interest::READABLE)?;
        for directory in &directories {
            inotify.add_watch(directory, events())?;
        }
        // A reload may have moved the files elsewhere: then start over with the new places.
        while directories == self::directories(control) {
            woken.readable().await?.clear_ready();
            tokio::time::sleep(SETTLE).await;
            while inotify.read_events().is_ok_and(|events| !events.is_empty()) {}
            control.reload_secrets();
        }
    }
}

fn events() -> AddWatchFlags {
    AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_ATTRIB
}

fn directories(control: &Control) -> BTreeSet<PathBuf> {
    let config = control.gate.config.load();
    let of = |file: &Path| file.parent().map(Path::to_path_buf);
    [Some(config.tickets.keys.clone()), of(&config.tls.certificate), of(&config.tls.key)]
        .into_iter()
        .flatten()
        .collect()
}
