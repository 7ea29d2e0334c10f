//! Network namespaces without names: each lives as long as its handle, or what runs in it, and never longer. Nothing is left
//! behind by a test that fails, however it ends.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::process::{Command, Output};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace of its own, with its loopback interface up.
#[derive(Debug)]
pub struct Namespace {
    handle: File,
}

impl Namespace {
    /// Makes one.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN, or where `ip` is missing.
    pub fn new() -> Result<Self> {
        let make = || -> io::Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        };
        let made = thread::scope(|scope| scope.spawn(make).join());
        let handle = made.map_err(|_| io::Error::other("the thread that makes a namespace has panicked"))?;
        let this = Self { handle: handle.context("making a network namespace")? };
        this.ip("link set lo up")?;
        Ok(this)
    }

    /// Runs `work` on a thread inside. Sockets it opens, processes and threads it starts stay inside.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || setns(&self.handle, CloneFlags::CLONE_NEWNET).map(|()| work());
        let done = thread::scope(|scope| scope.spawn(inside).join());
        match done {
            Ok(Ok(value)) => value,
            Ok(Err(error)) => panic!("entering a network namespace: {error}"),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// `ip` with these arguments; what it printed.
    ///
    /// # Errors
    /// With what it said.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        self.command("ip", &arguments.split_whitespace().collect::<Vec<_>>())
    }

    /// A program run to its end inside; what it printed.
    ///
    /// # Errors
    /// With what it said.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let run = || Command::new(program).args(arguments).output();
        let Output { status, stdout, stderr } =
            self.run(run).with_context(|| format!("running {program}; which package brings it?"))?;
        if !status.success() {
            bail!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&stderr).trim());
        }
        Ok(String::from_utf8_lossy(&stdout).into_owned())
    }

    /// A pair of veth interfaces, one end named `name` here, the other named `peer` in the other namespace; both up.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn veth(&self, name: &str, other: &Namespace, peer: &str) -> Result<()> {
        let there = format!("/proc/{}/fd/{}", std::process::id(), other.handle.as_raw_fd());
        self.ip(&format!("link add {name} type veth peer name {peer} netns {there}"))?;
        self.ip(&format!("link set {name} up"))?;
        other.ip(&format!("link set {peer} up"))?;
        Ok(())
    }

    /// Gives an interface an IPv4 address in a /16.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn v4(&self, interface: &str, address: Ipv4Addr) -> Result<()> {
        self.ip(&format!("address add {address}/16 dev {interface}")).map(drop)
    }

    /// Gives an interface an IPv6 address in a /48, usable at once.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn v6(&self, interface: &str, address: Ipv6Addr) -> Result<()> {
        self.ip(&format!("address add {address}/48 dev {interface} nodad")).map(drop)
    }
}
