//! A program of the demo: started apart from the terminal's Ctrl-C, its log in a file, ended when dropped.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a part may take to end by itself.
const GRACE: Duration = Duration::from_secs(5);

/// A running part.
pub struct Part {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Part {
    pub fn start(name: &'static str, command: &mut Command, log: &Path) -> Result<Self> {
        // A group of its own: Ctrl-C reaches the demo, which ends its parts in order.
        let child = command
            .stdin(Stdio::null())
            .stderr(File::create(log)?)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name, child, log: log.to_owned() })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The first line of its standard output.
    pub fn first_line(&mut self) -> Result<String> {
        let stdout = self.child.stdout.take().context("standard output was read before")?;
        let mut line = String::new();
        let mut reader = BufReader::new(stdout);
        reader.read_line(&mut line)?;
        // Kept open: a program must not fail because nobody reads what else it says.
        std::thread::spawn(move || io::copy(&mut reader, &mut io::sink()));
        if line.is_empty() {
            self.alive()?;
            bail!("{} printed nothing", self.name);
        }
        Ok(line)
    }

    /// Waits for a word in its log.
    pub fn wait_log(&mut self, word: &str, within: Duration) -> Result<()> {
        let start = Instant::now();
        while !fs::read_to_string(&self.log)?.contains(word) {
            self.alive()?;
            if start.elapsed() > within {
                bail!("{} is not ready after {within:?}:\n{}", self.name, self.tail());
            }
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// An error, with the end of its log, if it has ended.
    pub fn alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended ({status}):\n{}", self.name, self.tail()),
        }
    }

    fn tail(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // Not yet waited for, so the number is still this child's.
        if let Ok(None) = self.child.try_wait() {
            let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        }
        let start = Instant::now();
        while start.elapsed() < GRACE {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
