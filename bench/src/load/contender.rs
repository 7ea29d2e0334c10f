//! Who is measured: nobody in between, our engine in its variants, HAProxy, nginx. Each runs as a process of its own with
//! one thread, in front of the generator's backend.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use mksgate::flow::study::Way;

use crate::run::Process;
use crate::run::process::{find, own, version};

/// One way from the client to the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    /// No proxy.
    Direct,
    /// The flow engine, by the names of the relay's `--driver` and `--mode`.
    Mksgate {
        /// `auto`, `io-uring`, `epoll`.
        driver: &'static str,
        /// `adaptive`, `splice`, `copy`.
        mode: &'static str,
    },
    /// A bare way of moving bytes.
    Study(Way),
    /// HAProxy in TCP mode with `option splice-auto`.
    Haproxy,
    /// nginx's stream module.
    Nginx,
}

/// The engine as it is by default.
pub const MKSGATE: Contender = Contender::Mksgate { driver: "auto", mode: "adaptive" };

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.write_str("direct"),
            Self::Mksgate { driver: "auto", mode: "adaptive" } => f.write_str("mksgate"),
            Self::Mksgate { driver, mode } => write!(f, "mksgate {driver} {mode}"),
            Self::Study(way) => f.write_str(way.as_str()),
            Self::Haproxy => f.write_str("haproxy"),
            Self::Nginx => f.write_str("nginx"),
        }
    }
}

/// A contender that takes connections; stopped when dropped.
pub struct Running {
    /// Which.
    pub contender: Contender,
    /// Where clients connect.
    pub address: SocketAddr,
    process: Option<Process>,
}

impl Running {
    /// The process, if there is one.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }
}

impl fmt::Display for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.contender.fmt(f)
    }
}

impl Contender {
    /// Starts it in front of `backend`, its files in `dir`. `None` if the program is not installed.
    pub fn start(self, backend: SocketAddr, dir: &Path) -> Result<Option<Running>> {
        let (address, process) = match self {
            Self::Direct => (backend, None),
            Self::Mksgate { driver, mode } => {
                relay(backend, &["--driver", driver, "--mode", mode], dir).map(|(a, p)| (a, Some(p)))?
            }
            Self::Study(way) => relay(backend, &["--way", way.as_str()], dir).map(|(a, p)| (a, Some(p)))?,
            Self::Haproxy | Self::Nginx => {
                let Some(program) = self.program() else { return Ok(None) };
                let log = dir.join(format!("{self}.log"));
                let (process, address) = Process::listening(&self.to_string(), &log, |address| {
                    self.peer(&program, address, backend, dir)
                })?;
                (address, Some(process))
            }
        };
        Ok(Some(Running { contender: self, address, process }))
    }

    /// The name for `--peers`.
    pub fn peer_name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Mksgate { .. } | Self::Study(_) => "mksgate",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
        }
    }

    /// Its version, for the report.
    pub fn version(self) -> String {
        match self {
            Self::Direct | Self::Mksgate { .. } | Self::Study(_) => env!("CARGO_PKG_VERSION").into(),
            Self::Haproxy | Self::Nginx => {
                self.program().map_or_else(|| "not installed".into(), |program| version(&program, "-v"))
            }
        }
    }

    fn program(self) -> Option<PathBuf> {
        find(self.peer_name())
    }

    fn peer(self, program: &Path, listen: SocketAddr, backend: SocketAddr, dir: &Path) -> Result<Command> {
        let file = dir.join(format!("{self}.conf"));
        let mut command = Command::new(program);
        let text = match self {
            Self::Haproxy => {
                command.arg("-db").arg("-f").arg(&file);
                haproxy(&[(listen, backend)])
            }
            _ => {
                command.arg("-e").arg("stderr").arg("-p").arg(dir).arg("-c").arg(&file);
                nginx(listen, backend, dir)
            }
        };
        fs::write(&file, text)?;
        Ok(command)
    }
}

/// HAProxy's configuration as a TCP relay with one thread, from each address to the one beside it.
pub fn haproxy(relays: &[(SocketAddr, SocketAddr)]) -> String {
    let mut text = "global\n  nbthread 1\n  maxconn 5500\n\
         defaults\n  mode tcp\n  option splice-auto\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n"
        .to_owned();
    for (n, (listen, backend)) in relays.iter().enumerate() {
        text += &format!("listen bench{n}\n  bind {listen} backlog 4096\n  server backend {backend}\n");
    }
    text
}

fn nginx(listen: SocketAddr, backend: SocketAddr, dir: &Path) -> String {
    let load = stream_module();
    format!(
        "{load}daemon off;\nmaster_process off;\nworker_processes 1;\npid {};\nerror_log stderr crit;\n\
         events {{ worker_connections 16384; }}\n\
         stream {{ server {{ listen {listen} backlog=4096; proxy_pass {backend}; proxy_timeout 1h; tcp_nodelay on; }} }}\n",
        dir.join("nginx.pid").display()
    )
}

/// The relay of this package, next to this program.
fn relay(backend: SocketAddr, how: &[&str], dir: &Path) -> Result<(SocketAddr, Process)> {
    let mut command = Command::new(own("relay")?);
    command.args(["--connect", &backend.to_string()]).args(how);
    let mut process = Process::start("relay", &command, &dir.join(format!("relay{}.log", how.concat())))?;
    let line = process.first_line()?;
    let address = line.parse().with_context(|| format!("the relay says {line:?}"))?;
    Ok((address, process))
}

/// What loads nginx's stream module, where it is not built in.
pub(super) fn stream_module() -> String {
    let module =
        ["/usr/lib/nginx/modules/ngx_stream_module.so", "/usr/lib64/nginx/modules/ngx_stream_module.so"];
    let found = module.into_iter().find(|file| Path::new(file).is_file());
    found.map(|file| format!("load_module {file};\n")).unwrap_or_default()
}
