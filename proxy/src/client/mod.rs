//! `mksgate connect`: opens a sealed ticket's console through a front door for an ordinary VNC viewer.
//!
//! ```text
//! viewer ─ RFB, handshake played here ─► client ─ TLS no. 2 ──────────────────────────► VM
//!                                               ─ TLS no. 1, dialogue ─► gate (gone after CONNECT)
//! ```
//!
//! Every connection of a viewer opens a console of its own with the same ticket; what may pass is tried again with back-off.

pub mod cell;
mod door;
mod error;
mod https;
mod proxy;
mod trust;
mod tunnel;
pub mod url;
mod viewer;
pub mod vsphere;
mod web;

use std::cell::Cell;
use std::net::SocketAddr;
use std::process::Stdio;
use std::rc::Rc;
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::task::{JoinSet, LocalSet};

pub use door::{Target, Ticket};
pub use error::ConnectError;
pub use https::Server;
pub use proxy::HttpProxy;
pub use trust::{Trust, TrustError, Trusting};
pub use web::{Path, WebTarget};

use tunnel::{Console, Ended};
use web::WebConsole;

/// First pause between two tries; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A front door of the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Door {
    /// TCP 902: a banner, then TLS.
    Authd,
    /// TLS 443: `GET /mks`.
    Mks,
}

impl Door {
    /// The port it usually has.
    pub fn port(self) -> u16 {
        match self {
            Self::Authd => 902,
            Self::Mks => 443,
        }
    }
}

/// How a console is reached.
#[derive(Debug)]
pub enum Way {
    /// Through a raw door: TLS no. 2 ends here.
    Mks(Target),
    /// In a WebSocket.
    Web(WebTarget),
}

enum Opened {
    Mks(Console),
    Web(WebConsole),
}

/// How to serve viewers.
#[derive(Debug)]
pub struct Serving {
    /// Where they connect.
    pub listen: SocketAddr,
    /// A command that is a viewer.
    pub viewer: Option<String>,
    /// End with the first console.
    pub once: bool,
    /// How long a failing console is tried again.
    pub patience: Duration,
}

/// Why `mksgate connect` ended.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The ticket opens no console (any more).
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The listening address cannot be used.
    #[error("cannot listen on {0}: {1}; choose another address with --listen")]
    Listen(SocketAddr, std::io::Error),
    /// The viewer cannot be run.
    #[error("cannot run the viewer {0:?}: {1}")]
    Viewer(String, std::io::Error),
}

/// Listens, and serves viewers until the ticket is of no more use, the viewer command ends, or (`once`) the first console ends.
/// `listening` is told the address as soon as viewers may come.
pub async fn serve(
    way: Way,
    serving: Serving,
    listening: impl FnOnce(SocketAddr),
) -> Result<(), ClientError> {
    let failed = |error| ClientError::Listen(serving.listen, error);
    let listener = TcpListener::bind(serving.listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    listening(address);
    let shared = Rc::new(Shared { way, patience: serving.patience, worked: Cell::new(false) });
    let mut viewer = serving.viewer.map(|command| Viewer::new(command, address));
    if let Some(viewer) = &mut viewer {
        viewer.start()?;
    }
    // A connection before its hand-over stays on its thread.
    LocalSet::new().run_until(serve_viewers(listener, shared, viewer, serving.once)).await
}

async fn serve_viewers(
    listener: TcpListener,
    shared: Rc<Shared>,
    mut viewer: Option<Viewer>,
    once: bool,
) -> Result<(), ClientError> {
    let mut consoles = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if !once || consoles.is_empty() => match accepted {
                Ok((stream, _)) => {
                    if let Some(viewer) = &mut viewer {
                        viewer.broken = false;
                    }
                    consoles.spawn_local(Rc::clone(&shared).console(stream));
                }
                Err(error) => {
                    say(&format!("a viewer could not be accepted: {error}"));
                    tokio::time::sleep(FIRST_PAUSE).await;
                }
            },
            Some(ended) = consoles.join_next() => match ended.unwrap_or(Ok(Ended::Broken)) {
                Err(error) if once || !error.may_pass() => {
                    // The ticket is dead for new consoles; those that run stay.
                    drop(listener);
                    while consoles.join_next().await.is_some() {}
                    return Err(error.into());
                }
                Ok(_) if once => return Ok(()),
                Ok(Ended::Broken) => {
                    if let Some(viewer) = &mut viewer {
                        viewer.broken = true;
                    }
                }
                Ok(_) => {}
                Err(error) => say(&format!("no console: {error}")),
            },
            ended = ended(&mut viewer) => {
                ended?;
                // Its connection ended with it, but that may not have been noticed yet.
                let last = tokio::time::timeout(FIRST_PAUSE, consoles.join_next()).await;
                let broke = matches!(last, Ok(Some(Ok(Ok(Ended::Broken)))));
                match &mut viewer {
                    Some(viewer) if viewer.broken || broke => viewer.restart().await?,
                    _ => return Ok(()),
                }
            }
        }
    }
}

/// What all consoles of one run share.
struct Shared {
    way: Way,
    patience: Duration,
    /// The ticket opened a console before.
    worked: Cell<bool>,
}

impl Shared {
    /// One viewer's connection, from its accept to its end.
    async fn console(self: Rc<Self>, mut viewer: TcpStream) -> Result<Ended, ConnectError> {
        viewer.set_nodelay(true)?;
        let opened = tokio::select! {
            opened = self.open() => opened,
            () = viewer::gone(&viewer) => return Ok(Ended::Viewer),
        };
        let console = match opened {
            Ok(console) => console,
            Err(error) => {
                viewer::refuse(viewer, &error.to_string()).await;
                return Err(error);
            }
        };
        let ended = match console {
            Opened::Web(console) => console.pump(viewer).await?,
            Opened::Mks(console) => {
                let early = match viewer::greet(&mut viewer).await {
                    Ok(early) => early,
                    Err(error) => {
                        say(&format!("the viewer gave up during its handshake: {error}"));
                        return Ok(Ended::Viewer);
                    }
                };
                console.pump(&viewer, &early).await?
            }
        };
        match ended {
            Ended::Viewer => say("the viewer closed the console"),
            Ended::Machine => say("the virtual machine closed the console"),
            Ended::Broken => {
                say("the console's connection broke; the same ticket reconnects within its time")
            }
        }
        Ok(ended)
    }

    /// Opens a console, again and again while that may help and patience lasts.
    async fn open(&self) -> Result<Opened, ConnectError> {
        let (mut pause, patience) = (FIRST_PAUSE, tokio::time::Instant::now() + self.patience);
        loop {
            match self.open_once().await {
                Ok(console) => return Ok(console),
                Err(error) if error.may_pass() && tokio::time::Instant::now() + pause < patience => {
                    say(&format!("{error}; trying again in {pause:?}"));
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn open_once(&self) -> Result<Opened, ConnectError> {
        let opened = match &self.way {
            Way::Mks(target) => {
                let raw = target.open(self.worked.get()).await?;
                Opened::Mks(Console::establish(raw).await?)
            }
            Way::Web(target) => Opened::Web(target.open().await?),
        };
        self.worked.set(true);
        Ok(opened)
    }
}

/// The viewer command and its process.
struct Viewer {
    command: String,
    child: Option<Child>,
    /// Its console's connection broke: it is started again when it ends.
    broken: bool,
    started: Instant,
    pause: Duration,
}

impl Viewer {
    /// `{host}` and `{port}` stand for the address; without either, `HOST::PORT` is appended.
    fn new(command: String, address: SocketAddr) -> Self {
        let (host, port) = (address.ip().to_string(), address.port().to_string());
        let command = if command.contains("{port}") || command.contains("{host}") {
            command.replace("{host}", &host).replace("{port}", &port)
        } else {
            format!("{command} {host}::{port}")
        };
        Self { command, child: None, broken: false, started: Instant::now(), pause: FIRST_PAUSE }
    }

    /// Starts it again; the sooner it ended, the later.
    async fn restart(&mut self) -> Result<(), ClientError> {
        let short = self.started.elapsed() < 2 * LONGEST_PAUSE;
        self.pause = if short { (self.pause * 2).min(LONGEST_PAUSE) } else { FIRST_PAUSE };
        tokio::time::sleep(self.pause).await;
        self.start()
    }

    fn start(&mut self) -> Result<(), ClientError> {
        self.broken = false;
        self.started = Instant::now();
        let spawned = Command::new("sh")
            .arg("-c")
            .arg(format!("exec {}", self.command))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        self.child = Some(spawned.map_err(|error| ClientError::Viewer(self.command.clone(), error))?);
        Ok(())
    }
}

/// Waits for the viewer command's end; forever where there is none.
async fn ended(viewer: &mut Option<Viewer>) -> Result<(), ClientError> {
    let Some(Viewer { command, child: Some(child), .. }) = viewer else {
        return std::future::pending().await;
    };
    let status = child.wait().await.map_err(|error| ClientError::Viewer(command.clone(), error))?;
    match status.code() {
        Some(code @ (126 | 127)) => {
            let error = std::io::Error::other(format!("the shell could not run it (status {code})"));
            Err(ClientError::Viewer(command.clone(), error))
        }
        _ => Ok(()),
    }
}

/// A remark for the person at the terminal.
fn say(remark: &str) {
    eprintln!("mksgate: {remark}");
}
