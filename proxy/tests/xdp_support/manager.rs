//! A service manager as far as descriptors go: it keeps what a process gives it, and hands it to the next.
#![allow(dead_code, clippy::allow_attributes, reason = "each test binary uses its part of it")]
#![expect(unsafe_code, reason = "descriptors by number, as sd_notify(3) and sd_listen_fds(3) want them")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IoSliceMut, Read as _, Seek as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;

use mksgate_bench::netns::Namespace;
use nix::cmsg_space;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
use tempfile::TempDir;

use super::keeper::{Keeper, Place};

/// What it has, by name. A thread of its own listens: the kernel queues a few messages only, and whoever has more to say waits.
pub struct Manager {
    dir: TempDir,
    kept: Arc<Mutex<BTreeMap<String, OwnedFd>>>,
    heard: mpsc::Receiver<()>,
    listener: Option<JoinHandle<()>>,
}

/// Above whatever a process has open at its start.
const HIGH: RawFd = 500;
/// SD_LISTEN_FDS_START
const FIRST: RawFd = 3;

impl Manager {
    pub fn new() -> Manager {
        let dir = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        let kept = Arc::default();
        let (sender, heard) = mpsc::channel();
        let listener = std::thread::spawn({
            let kept = Arc::clone(&kept);
            move || listen(&socket, &kept, &sender)
        });
        Manager { dir, kept, heard, listener: Some(listener) }
    }

    fn tell(&self, what: &str) {
        let socket = UnixDatagram::unbound().unwrap();
        socket.send_to(what.as_bytes(), self.dir.path().join("notify")).unwrap();
    }

    /// Starts a keeper with everything that it has.
    pub fn start(&self, place: &Place, inside: &Namespace, more: &[&str]) -> Keeper {
        self.hear();
        let kept = self.kept.lock().unwrap();
        let fds: Vec<RawFd> = kept.values().map(|fd| fd.as_raw_fd()).collect();
        let names: Vec<&str> = kept.keys().map(String::as_str).collect();
        let keeper = place.command(more);
        let mut command = Command::new("sh");
        let shell = ["-c", "LISTEN_PID=$$ exec \"$@\"", "sh"];
        command.args(shell).arg(keeper.get_program()).args(keeper.get_args());
        command.env("NOTIFY_SOCKET", self.dir.path().join("notify"));
        command.env("LISTEN_FDS", fds.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        let hand_over = move || {
            // Up first: a number that is wanted below may be that of another one.
            for (to, fd) in (HIGH..).zip(&fds) {
                // SAFETY: `fd` is open in the parent, which waits for this process to begin.
                unsafe { libc::dup2(*fd, to) };
            }
            for (to, from) in (FIRST..).zip(HIGH..).take(fds.len()) {
                // SAFETY: the one was made above; whatever has the other number is not wanted after exec(2).
                unsafe { (libc::dup2(from, to), libc::close(from)) };
            }
            Ok(())
        };
        // SAFETY: between fork and exec it makes system calls and nothing else.
        unsafe { command.pre_exec(hand_over) };
        // The numbers stay what they are: nobody tells anything before that process runs.
        drop(kept);
        Keeper::of(command, inside)
    }

    /// Waits until it has taken in what it was told.
    pub fn hear(&self) {
        self.tell("HEARD");
        self.heard.recv().unwrap();
    }

    /// Names of what is kept.
    pub fn names(&self) -> Vec<String> {
        self.hear();
        self.kept.lock().unwrap().keys().cloned().collect()
    }

    /// The names of one kind.
    pub fn all(&self, kind: &str) -> Vec<String> {
        self.names().into_iter().filter(|name| name.starts_with(kind)).collect()
    }

    /// Loses what has such a name.
    pub fn lose(&self, part: &str) {
        self.hear();
        let mut kept = self.kept.lock().unwrap();
        let before = kept.len();
        kept.retain(|name, _| !name.contains(part));
        assert!(kept.len() < before, "{part}");
    }

    /// Changes the text of the state, as another version would have written it.
    pub fn rewrite_state(&self, change: impl FnOnce(&mut serde_json::Value)) {
        let name = self.all("state.").pop().unwrap();
        let mut kept = self.kept.lock().unwrap();
        let mut old = File::from(kept[&name].try_clone().unwrap());
        let mut text = String::new();
        old.rewind().unwrap();
        old.read_to_string(&mut text).unwrap();
        let mut state = serde_json::from_str(&text).unwrap();
        change(&mut state);
        let mut new = File::from(memfd_create("state", MFdFlags::MFD_CLOEXEC).unwrap());
        new.write_all(state.to_string().as_bytes()).unwrap();
        kept.insert(name, new.into());
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.tell("END");
        let ended = self.listener.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking(), "the manager was told nonsense");
    }
}

fn listen(socket: &UnixDatagram, kept: &Mutex<BTreeMap<String, OwnedFd>>, heard: &mpsc::Sender<()>) {
    loop {
        let (said, file) = message(socket);
        let name = said.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or_default();
        let mut kept = kept.lock().unwrap();
        if let Some(file) = file {
            assert!(said.contains("FDSTORE=1") && said.contains("FDPOLL=0"), "{said}");
            assert!(kept.insert(name.to_owned(), file).is_none(), "{name} twice");
        } else if said.contains("FDSTOREREMOVE=1") {
            assert!(kept.remove(name).is_some(), "{name} is not there");
        } else if said == "HEARD" {
            heard.send(()).unwrap();
        } else if said == "END" {
            return;
        }
    }
}

/// The next message and its descriptor, if it has one.
fn message(socket: &UnixDatagram) -> (String, Option<OwnedFd>) {
    let mut buffer = [0; 4096];
    let mut space = cmsg_space!([RawFd; 8]);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let got = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags).unwrap();
    let rights = got.cmsgs().unwrap().flat_map(|message| match message {
        ControlMessageOwned::ScmRights(fds) => fds,
        _ => Vec::new(),
    });
    // SAFETY: they have just been received, and nobody else knows them.
    let file = rights.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).next();
    let length = got.bytes;
    (String::from_utf8(buffer[..length].to_vec()).unwrap(), file)
}
