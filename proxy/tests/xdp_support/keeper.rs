//! `mksgate xdp keep` with what its unit gives it, and an appliance without any of that.
#![allow(dead_code, clippy::allow_attributes, reason = "each test binary uses its part of it")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, mpsc};

use mksgate_bench::netns::Namespace;
use tempfile::TempDir;

use crate::support::{PATIENCE, Setup};
use crate::xdp_support::wire::Wire;

use super::site::{Site, host, setup};

/// A running keeper; its socket's folder outlives it.
pub struct Keeper {
    child: Child,
    said: mpsc::Receiver<String>,
    before: Mutex<Vec<String>>,
}

/// Where keepers listen, one after the other.
pub struct Place(TempDir);

impl Place {
    pub fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    pub fn socket(&self) -> PathBuf {
        self.0.path().join("keeper.sock")
    }

    /// The configuration file of whoever is kept there, as the keeper finds it.
    fn config(&self) -> PathBuf {
        self.0.path().join("mksgate.toml")
    }

    /// A keeper in that network, with the capabilities of its unit and no others.
    pub fn start(&self, inside: &Namespace, more: &[&str]) -> Keeper {
        Keeper::of(self.command(more), inside)
    }

    /// How it is started.
    pub fn command(&self, more: &[&str]) -> Command {
        let only = "-all,+bpf,+perfmon,+net_admin";
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", only, "--inh-caps", "-all"]);
        command.arg(env!("CARGO_BIN_EXE_mksgate")).args(["xdp", "keep", "--user", "root", "--socket"]);
        command.arg(self.socket()).arg("--config").arg(self.config()).args(more);
        command
    }
}

impl Keeper {
    /// The process that this command starts there, once it serves.
    pub fn of(mut command: Command, inside: &Namespace) -> Keeper {
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = inside.run(|| command.spawn()).unwrap();
        let (sender, said) = mpsc::channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let keeper = Keeper { child, said, before: Mutex::default() };
        keeper.says("no proxy yet");
        keeper
    }

    /// Waits for a line of its log.
    pub fn says(&self, part: &str) -> String {
        let mut before = self.before.lock().unwrap();
        loop {
            match self.said.recv_timeout(PATIENCE) {
                Ok(line) if line.contains(part) => return line,
                Ok(line) => before.push(line),
                Err(error) => panic!("{part}: {error}\n{}", before.join("\n")),
            }
        }
    }

    /// It has said so before what was waited for last.
    pub fn has_said(&self, part: &str) -> bool {
        self.before.lock().unwrap().iter().any(|line| line.contains(part))
    }

    /// Ends it as a crash does.
    pub fn kill(self) {}

    pub fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `[xdp]` with the keeper at `place`.
pub fn kept(place: &Place, xdp: &str, tenants: &str) -> Setup {
    let setup = setup(&format!("keeper = {:?}\n{xdp}", place.socket()), tenants);
    let _ = fs::remove_file(place.config());
    symlink(setup.config_path(), place.config()).unwrap();
    setup
}

/// The appliance's binary without what the gate takes.
pub fn unprivileged() -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-bpf,-perfmon,-sys_admin", "--inh-caps", "-all"]);
    command.arg(env!("CARGO_BIN_EXE_mksgate"));
    command
}

/// A keeper and an appliance that lacks the privileges; `None`, with a printed reason, where there can be no gate.
pub fn start(place: &Place, xdp: &str, tenants: &str, more: &[&str]) -> Option<(Keeper, Site)> {
    start_by(place, xdp, tenants, |inside| place.start(inside, more))
}

/// The same with a keeper that starts in another way.
pub fn start_by(
    place: &Place,
    xdp: &str,
    tenants: &str,
    keeper: impl FnOnce(&Namespace) -> Keeper,
) -> Option<(Keeper, Site)> {
    let wire = Wire::new()?;
    let keeper = keeper(&wire.inside);
    let (appliance, host) = wire.inside.run(|| (kept(place, xdp, tenants).start_by(unprivileged()), host()));
    Some((keeper, Site { appliance, host, wire }))
}

/// Whether anybody's program of ours is on the interface.
pub fn program(site: &Site, interface: &str) -> Option<u32> {
    site.wire.program_on(interface).map(|(_, id)| id)
}
