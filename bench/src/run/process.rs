//! Programs that a measurement starts. They end with it, whatever ends it.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::load::cost::tree;

/// How long a program may take to listen.
const READY: Duration = Duration::from_secs(10);
/// Ports tried for a program that cannot have the first.
const PORTS: usize = 3;

/// A running program; killed when dropped.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it, its standard error in `log`. Where util-linux is there, the kernel ends it when this process dies of
    /// anything (prctl(2), PR_SET_PDEATHSIG), and it is in a process group of its own, so that Ctrl-C is ours to answer.
    pub fn start(name: &str, command: &Command, log: &Path) -> Result<Self> {
        let mut command = tied(command);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(log)?).process_group(0);
        let child = command.spawn().with_context(|| format!("starting {name}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// Starts a program that listens where it is told, and waits until it does. A port that is taken in between is
    /// replaced by another.
    pub fn listening(
        name: &str,
        log: &Path,
        mut command: impl FnMut(SocketAddr) -> Result<Command>,
    ) -> Result<(Self, SocketAddr)> {
        let mut failure = None;
        for _ in 0..PORTS {
            let address = free_address()?;
            let mut process = Self::start(name, &command(address)?, log)?;
            match process.await_listener(address) {
                Ok(()) => return Ok((process, address)),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(|| anyhow::anyhow!("{name} was never started")))
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The first line it prints; what it prints later is thrown away.
    pub fn first_line(&mut self) -> Result<String> {
        let stdout = self.child.stdout.take().context("its output was read before")?;
        let (mut reader, mut line) = (BufReader::new(stdout), String::new());
        reader.read_line(&mut line)?;
        std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
        if line.is_empty() {
            bail!("{} printed nothing{}", self.name, self.tail());
        }
        Ok(line.trim_end().to_owned())
    }

    /// The lines it prints, up to the first that begins with `last`; what it prints later is thrown away.
    pub fn lines_until(&mut self, last: &str) -> Result<Vec<String>> {
        let stdout = self.child.stdout.take().context("its output was read before")?;
        let (mut reader, mut lines) = (BufReader::new(stdout), Vec::new());
        while lines.last().is_none_or(|line: &String| !line.starts_with(last)) {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                bail!("{} ended before it printed {last:?}{}", self.name, self.tail());
            }
            lines.push(line.trim_end().to_owned());
        }
        std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
        Ok(lines)
    }

    /// Waits until its log holds these words, and returns the log.
    pub fn await_log(&mut self, words: &str) -> Result<String> {
        let limit = Instant::now() + READY;
        loop {
            let log = fs::read_to_string(&self.log)?;
            if log.contains(words) {
                return Ok(log);
            }
            self.alive()?;
            if Instant::now() > limit {
                bail!("{} is not ready after {READY:?}{}", self.name, self.tail());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// An error with the end of its log, if it has ended.
    pub fn alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended: {status}{}", self.name, self.tail()),
        }
    }

    /// Waits until somebody listens there. A connection made to find out would reach a backend; the kernel's table does not.
    pub fn await_listener(&mut self, address: SocketAddr) -> Result<()> {
        let limit = Instant::now() + READY;
        while Instant::now() < limit {
            self.alive()?;
            let inode = listener(address)?;
            if inode.is_some_and(|inode| tree(self.pid()).into_iter().any(|pid| holds(pid, &inode))) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("{} does not listen on {address}{}", self.name, self.tail())
    }

    fn tail(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(5)..].join("\n  ");
        if tail.is_empty() { String::new() } else { format!(":\n  {tail}") }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The same command under setpriv(1), which executes it in its place: the process number stays the child's.
fn tied(command: &Command) -> Command {
    let Some(setpriv) = find("setpriv") else { return again(command, Command::new(command.get_program())) };
    let mut tied = Command::new(setpriv);
    tied.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program());
    again(command, tied)
}

fn again(command: &Command, mut to: Command) -> Command {
    to.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => to.env(name, value),
            None => to.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        to.current_dir(dir);
    }
    to
}

/// The inode of the socket that listens there (proc_net_tcp: local address, remote address, state 0A: LISTEN).
fn listener(address: SocketAddr) -> Result<Option<String>> {
    let port = format!(":{:04X} ", address.port());
    let table = fs::read_to_string("/proc/net/tcp")?;
    let line = table.lines().find(|line| line.contains(&port) && line.contains(" 00000000:0000 0A "));
    Ok(line.and_then(|line| line.split_whitespace().nth(9)).map(str::to_owned))
}

/// Whether a process has this socket open: the port may be somebody else's.
fn holds(pid: u32, inode: &str) -> bool {
    let socket = format!("socket:[{inode}]");
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    files.filter_map(|file| fs::read_link(file.path()).ok()).any(|to| to.to_string_lossy() == socket)
}

/// Where a program is, as a shell would look for it; the system's own directories count too.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// A program of this project, next to the one that runs: `relay`, `sim`, `mksgate`.
pub fn own(program: &str) -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    // A test's binary lives one directory below.
    let beside = here.ancestors().skip(1).take(2).map(|dir| dir.join(program)).find(|file| file.is_file());
    beside.with_context(|| {
        format!("{program} is not built: cargo build --release -p mksgate -p mksgate-bench --bins")
    })
}

/// An address on loopback whose port nobody has right now.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}

/// The first line that a program says of its version.
pub fn version(program: &Path, flag: &str) -> String {
    let output = Command::new(program).arg(flag).stdin(Stdio::null()).output();
    let text = output.map(|o| [o.stdout, o.stderr].concat()).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().next().unwrap_or("unknown").trim().to_owned()
}
