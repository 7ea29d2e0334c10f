//! What the service manager keeps for the keeper's next process (`FileDescriptorStoreMax=`): as long as it does, the program
//! stays on its interfaces without any process.

use std::{
    collections::BTreeSet,
    io,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::net::UnixListener,
    },
};

use super::{
    Gate,
    inner::Inner,
    left::{Left, SOCKET, written},
};
use crate::control::notify::Manager;

/// Links that are kept: `FileDescriptorStoreMax=` of the unit has room for them, for the program with its maps and its state, and
/// for those of the next one while there are both. An interface beyond them is attached to again by the next process.
const LINKS: usize = 200;

/// What is there now, by this process's word.
pub struct Store {
    manager: Manager,
    names: BTreeSet<String>,
    /// What the latest state was written of.
    written: Option<Mark>,
    /// Its number.
    number: u64,
    /// It was said that it cannot be told.
    said: bool,
}

/// Changes when the state does.
#[derive(PartialEq)]
struct Mark {
    revision: u64,
    program: u32,
    links: Vec<u32>,
}

impl Store {
    /// With what the manager has kept so far.
    pub(crate) fn new(manager: Manager, left: &Left) -> Store {
        let names: BTreeSet<String> = left.names().map(str::to_owned).collect();
        let numbers = names.iter().filter_map(|name| name.strip_prefix("state.")?.parse().ok());
        let number = numbers.max().unwrap_or(0);
        Store { manager, names, written: None, number, said: false }
    }

    /// Keeps the socket that this process has made, so that whoever comes while there is no keeper waits for the next.
    pub(crate) fn keep_socket(&mut self, listener: &UnixListener) {
        let kept = match self.names.remove(SOCKET) {
            // Of a socket that nobody finds any more.
            true => self.manager.forget(SOCKET),
            false => Ok(()),
        };
        let kept = kept.and_then(|()| self.add(SOCKET.to_owned(), listener.as_fd()));
        self.tell(kept);
    }

    /// Keeps what makes this gate, and nothing else; without a gate nothing.
    pub(super) fn keep(&mut self, gate: Option<&Gate>) {
        if self.manager.is_there() {
            let kept = match gate {
                Some(gate) => self.keep_gate(&gate.inner()),
                None => self.forget_all_but(&BTreeSet::new()),
            };
            self.tell(kept);
        }
    }

    fn keep_gate(&mut self, inner: &Inner) -> io::Result<()> {
        let program = inner.program.id();
        let mut wanted = BTreeSet::new();
        let maps = inner.program.files().map(|(name, file)| (format!("map.{program}.{name}"), file));
        let links =
            inner.attachments().take(LINKS).map(|there| (format!("link.{}", there.id()), there.link()));
        for (name, file) in maps.chain(links).chain([(format!("program.{program}"), inner.program.fd())]) {
            wanted.insert(name.clone());
            self.add(name, file)?;
        }
        // The state comes last: it names what is there already. What it does not name goes only then.
        let mark = Mark { revision: inner.revision, program, links: inner.links().collect() };
        if self.written.as_ref() != Some(&mark) {
            let file = written(inner)?;
            self.number += 1;
            self.add(format!("state.{}", self.number), file.as_fd())?;
            self.written = Some(mark);
        }
        wanted.insert(format!("state.{}", self.number));
        self.forget_all_but(&wanted)
    }

    fn add(&mut self, name: String, file: BorrowedFd<'_>) -> io::Result<()> {
        if !self.names.contains(&name) {
            self.manager.keep(&name, file)?;
            self.names.insert(name);
        }
        Ok(())
    }

    fn forget_all_but(&mut self, wanted: &BTreeSet<String>) -> io::Result<()> {
        let ours =
            |name: &str| ["map.", "link.", "program.", "state."].iter().any(|kind| name.starts_with(kind));
        let stale: Vec<String> =
            self.names.iter().filter(|name| ours(name) && !wanted.contains(*name)).cloned().collect();
        for name in stale {
            self.manager.forget(&name)?;
            self.names.remove(&name);
        }
        if wanted.is_empty() {
            self.written = None;
        }
        Ok(())
    }

    fn tell(&mut self, kept: io::Result<()>) {
        if let Err(error) = kept
            && !std::mem::replace(&mut self.said, true)
        {
            tracing::warn!(%error, "the service manager does not keep the XDP gate: it would go with this process");
        }
    }
}
