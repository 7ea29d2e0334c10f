//! Who is measured: nobody in between, our engine in its variants, HAProxy, nginx. Each runs as a process of its own with
//! one thread, in front of the generator's backend.

use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

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
    child: Option<Child>,
}

impl Running {
    /// The process, if there is one.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Contender {
    /// Starts it in front of `backend`, its files in `dir`. `None` if the program is not installed.
    pub fn start(self, backend: SocketAddr, dir: &Path) -> Result<Option<Running>> {
        let (address, child) = match self {
            Self::Direct => (backend, None),
            Self::Mksgate { driver, mode } => relay(backend, driver, mode).map(|(a, c)| (a, Some(c)))?,
            Self::Haproxy | Self::Nginx => {
                let Some(program) = self.program() else { return Ok(None) };
                let address = free_address()?;
                let child = self.peer(&program, address, backend, dir)?;
                (address, Some(child))
            }
        };
        let mut running = Running { contender: self, address, child };
        await_listener(&mut running)?;
        Ok(Some(running))
    }

    /// Its version, for the report.
    pub fn version(self) -> String {
        let (flag, program) = match self {
            Self::Haproxy | Self::Nginx => ("-v", self.program()),
            Self::Direct | Self::Mksgate { .. } => return env!("CARGO_PKG_VERSION").into(),
        };
        let Some(program) = program else { return "not installed".into() };
        let output = Command::new(program).arg(flag).output();
        let text = output.map(|o| [o.stdout, o.stderr].concat()).unwrap_or_default();
        String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned()
    }

    fn program(self) -> Option<PathBuf> {
        let name = if self == Self::Haproxy { "haproxy" } else { "nginx" };
        let path = std::env::var_os("PATH").unwrap_or_default();
        let places = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]).collect::<Vec<_>>();
        places.into_iter().map(|place| place.join(name)).find(|file| file.is_file())
    }

    fn peer(self, program: &Path, listen: SocketAddr, backend: SocketAddr, dir: &Path) -> Result<Child> {
        let file = dir.join(format!("{self}.conf"));
        let mut command = Command::new(program);
        let text = match self {
            Self::Haproxy => {
                command.arg("-db").arg("-f").arg(&file);
                haproxy(listen, backend)
            }
            _ => {
                command.arg("-e").arg("stderr").arg("-p").arg(dir).arg("-c").arg(&file);
                nginx(listen, backend, dir)
            }
        };
        fs::write(&file, text)?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().with_context(|| format!("starting {}", program.display()))
    }
}

fn haproxy(listen: SocketAddr, backend: SocketAddr) -> String {
    format!(
        "global\n  nbthread 1\n  maxconn 8000\n\
         defaults\n  mode tcp\n  option splice-auto\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n\
         listen bench\n  bind {listen} backlog 4096\n  server backend {backend}\n"
    )
}

fn nginx(listen: SocketAddr, backend: SocketAddr, dir: &Path) -> String {
    let module =
        ["/usr/lib/nginx/modules/ngx_stream_module.so", "/usr/lib64/nginx/modules/ngx_stream_module.so"];
    let load = module.into_iter().find(|file| Path::new(file).is_file());
    let load = load.map(|file| format!("load_module {file};\n")).unwrap_or_default();
    format!(
        "{load}daemon off;\nmaster_process off;\nworker_processes 1;\npid {};\nerror_log stderr crit;\n\
         events {{ worker_connections 16384; }}\n\
         stream {{ server {{ listen {listen} backlog=4096; proxy_pass {backend}; proxy_timeout 1h; tcp_nodelay on; }} }}\n",
        dir.join("nginx.pid").display()
    )
}

/// The relay of this package, next to this program.
fn relay(backend: SocketAddr, driver: &str, mode: &str) -> Result<(SocketAddr, Child)> {
    let program = std::env::current_exe()?.with_file_name("relay");
    let mut child = Command::new(&program)
        .args(["--connect", &backend.to_string(), "--driver", driver, "--mode", mode])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}; build the whole package mksgate-bench", program.display()))?;
    let mut line = String::new();
    let stdout = child.stdout.take().context("the relay's output")?;
    BufReader::new(stdout).read_line(&mut line)?;
    let address = line.trim().parse().with_context(|| format!("the relay says {line:?}"))?;
    Ok((address, child))
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}

/// Waits until the proxy listens. A connection made to find out would reach the backend; the kernel's table does not.
fn await_listener(running: &mut Running) -> Result<()> {
    let limit = Instant::now() + Duration::from_secs(10);
    let port = format!(":{:04X} ", running.address.port());
    while Instant::now() < limit {
        if let Some(status) = running.child.as_mut().map(Child::try_wait).transpose()?.flatten() {
            bail!("{} ended at once: {status}", running.contender);
        }
        let table = fs::read_to_string("/proc/net/tcp")?;
        // Local address, remote address, state 0A: LISTEN.
        if table.lines().any(|line| line.contains(&port) && line.contains(" 00000000:0000 0A ")) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("{} does not listen", running.contender)
}
