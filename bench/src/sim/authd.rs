//! The dialogue of ESXi's `authd`, server side, from the banner to the screen.

use std::io;
use std::sync::Arc;

use base64::Engine as _;
use rustls::ServerConfig;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::event::{Closed, EventKind};
use super::fault::{Fault, Faults, Step};
use super::host::{Host, LiveVm};
use super::stream::{Stream, Traffic};
use super::wire::Wire;

/// Longest command line, its end included.
const MAX_LINE: usize = 4096;
/// base64 of 12 bytes.
const NONCE: usize = 16;

/// Serves one connection until it ends.
pub(super) async fn serve(host: Arc<Host>, conn: u64, tcp: Arc<TcpStream>, traffic: Arc<Traffic>) -> Closed {
    let mut wire = Wire::new(tcp);
    wire.set_drip(host.faults().drip);
    match Dialogue::new(host, conn, Stream::plain(wire)).run(traffic).await {
        Ok(()) => Closed::Host,
        Err(closed) => closed,
    }
}

impl From<io::Error> for Closed {
    fn from(err: io::Error) -> Self {
        match err.kind() {
            io::ErrorKind::UnexpectedEof => Self::Client,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => {
                Self::ClientReset
            }
            _ => Self::Error(err.to_string()),
        }
    }
}

/// What a step does when its fault lets it go on.
enum Go {
    Right,
    Instead(Vec<u8>),
    WrongCertificate,
}

/// What CONNECT agreed on.
struct Agreed {
    vm: Arc<LiveVm>,
    nonce: Vec<u8>,
}

struct Dialogue {
    host: Arc<Host>,
    conn: u64,
    stream: Stream,
    faults: Faults,
    user: Option<String>,
    /// The machine that the ticket opened.
    opened: Option<String>,
    nonce: Option<Vec<u8>>,
}

impl Dialogue {
    fn new(host: Arc<Host>, conn: u64, stream: Stream) -> Self {
        Self { faults: host.faults(), host, conn, stream, user: None, opened: None, nonce: None }
    }

    async fn run(mut self, traffic: Arc<Traffic>) -> Result<(), Closed> {
        self.banner().await?;
        if self.host.banner.contains("SSL Required") {
            let identity = self.host.identity.tls();
            self = self.secure(Step::Tls1, identity).await?;
            self.event(EventKind::Tls1);
        }
        let agreed = loop {
            let Some(line) = self.read_line().await? else { return Ok(()) };
            match line.split_once(' ').map_or((line.as_str(), ""), |(verb, rest)| (verb, rest.trim())) {
                ("QUIT", _) => return self.refuse("221 Goodbye").await,
                ("CONNECT", rest) => {
                    if let Some(agreed) = self.connect(rest).await? {
                        break agreed;
                    }
                }
                (verb, rest) => self.command(verb, rest).await?,
            }
        };
        self.console(agreed, traffic).await
    }

    async fn banner(&mut self) -> Result<(), Closed> {
        let line = match self.step(Step::Banner).await? {
            Go::Instead(bytes) => bytes,
            _ => format!("{}\r\n", self.host.banner).into_bytes(),
        };
        Ok(self.stream.send(&line).await?)
    }

    /// Starts a TLS layer on the raw stream.
    async fn secure(mut self, step: Step, config: Arc<ServerConfig>) -> Result<Self, Closed> {
        let config = match self.step(step).await? {
            Go::Right => config,
            Go::WrongCertificate => self.host.stranger.tls(),
            Go::Instead(bytes) => {
                let mut bare = Stream::plain(self.stream.into_wire());
                bare.send(&bytes).await?;
                return Err(swallow(&mut bare).await);
            }
        };
        self.stream = Stream::accept(self.stream.into_wire(), config).await?;
        Ok(self)
    }

    async fn command(&mut self, verb: &str, rest: &str) -> Result<(), Closed> {
        match verb {
            "USER" => self.user(rest).await,
            "PASS" => self.pass(rest).await,
            "THUMBPRINT" | "THUMBPRINT_SHA2" => self.thumbprint(verb, rest).await,
            "BANNER" => self.reply(&self.host.banner.clone()).await,
            _ => self.refuse("500 Unknown command").await,
        }
    }

    async fn user(&mut self, name: &str) -> Result<(), Closed> {
        if name.is_empty() {
            return self.refuse("501 USER needs a name").await;
        }
        if let Some(faults) = self.host.ticket_faults(name) {
            self.stream.wire_mut().set_drip(faults.drip.or(self.faults.drip));
            self.faults = faults.over(&self.faults);
        }
        if let Go::Instead(bytes) = self.step(Step::User).await? {
            return self.refuse_raw(bytes).await;
        }
        self.user = Some(name.to_owned());
        self.opened = None;
        self.reply(&format!("331 Password required for {name}.")).await
    }

    async fn pass(&mut self, word: &str) -> Result<(), Closed> {
        let Some(user) = self.user.take() else { return self.refuse("503 Login with USER first.").await };
        if let Go::Instead(bytes) = self.step(Step::Pass).await? {
            return self.refuse_raw(bytes).await;
        }
        let opened = if user == word { self.host.redeem(&user) } else { None };
        if opened.is_none() {
            return self.refuse("530 Login incorrect.").await;
        }
        self.opened = opened;
        self.reply(&format!("230 User {user} logged in.")).await?;
        self.event(EventKind::LoggedIn { ticket: user });
        Ok(())
    }

    async fn thumbprint(&mut self, verb: &str, nonce: &str) -> Result<(), Closed> {
        let Some(path) = self.opened.clone() else {
            return self.refuse("530 Please login with USER and PASS.").await;
        };
        let decoded = base64::engine::general_purpose::STANDARD.decode(nonce);
        if nonce.len() != NONCE || decoded.is_err() {
            return self.refuse("501 THUMBPRINT needs a nonce of 16 characters").await;
        }
        let Some(vm) = self.host.vm(&path) else { return self.refuse("553 No such virtual machine").await };
        let identity = match self.step(Step::Thumbprint).await? {
            Go::Right => &vm.identity,
            Go::WrongCertificate => &self.host.stranger,
            Go::Instead(bytes) => return self.refuse_raw(bytes).await,
        };
        let print = if verb == "THUMBPRINT" { identity.sha1() } else { identity.sha256() };
        self.nonce = Some(nonce.as_bytes().to_vec());
        self.reply(&format!("200 {print}")).await
    }

    /// `CONNECT <cfgFile> <service>`: the file may hold spaces, the service is the last word.
    async fn connect(&mut self, rest: &str) -> Result<Option<Agreed>, Closed> {
        let refusal = match (rest.rsplit_once(' '), &self.opened) {
            (_, None) => "530 Please login with USER and PASS.",
            (None, _) => "501 CONNECT needs a file and a service",
            (Some((_, service)), _) if service != "mks" => "554 No such service",
            (Some((path, _)), _) if self.host.vm(path).is_none() => "553 No such virtual machine",
            (Some((path, _)), Some(opened)) if path != opened => "550 No access to this virtual machine",
            (Some((path, _)), _) => match self.host.vm(path) {
                Some(vm) if vm.full() => "552 Virtual machine is busy",
                Some(vm) => return self.agree(vm).await,
                None => "553 No such virtual machine",
            },
        };
        self.refuse(refusal).await?;
        Ok(None)
    }

    async fn agree(&mut self, vm: Arc<LiveVm>) -> Result<Option<Agreed>, Closed> {
        if let Go::Instead(bytes) = self.step(Step::Connect).await? {
            self.refuse_raw(bytes).await?;
            return Ok(None);
        }
        let nonce = match self.nonce.take() {
            Some(nonce) => nonce,
            None if vm.plain => Vec::new(),
            None => {
                self.refuse("503 Send THUMBPRINT first.").await?;
                return Ok(None);
            }
        };
        self.reply(&format!("200 Connect {}", vm.path)).await?;
        self.event(EventKind::Connected { vm: vm.path.clone() });
        Ok(Some(Agreed { vm, nonce }))
    }

    /// TLS no. 2, the nonce, the screen.
    async fn console(mut self, agreed: Agreed, traffic: Arc<Traffic>) -> Result<(), Closed> {
        let Agreed { vm, nonce } = agreed;
        let _open = vm.enter();
        self.stream.wire_mut().set_slow(self.faults.slow);
        if vm.plain {
            self.stream = Stream::plain(self.stream.into_wire());
        } else {
            self = self.secure(Step::Tls2, vm.identity.tls()).await?;
            self.nonce(&nonce).await?;
        }
        if let Go::Instead(bytes) = self.step(Step::Screen).await? {
            self.stream.send(&bytes).await?;
            return Err(swallow(&mut self.stream).await);
        }
        self.event(EventKind::ScreenOpen { vm: vm.path.clone() });
        self.stream.count(traffic);
        vm.screen.serve(self.stream).await
    }

    async fn nonce(&mut self, expected: &[u8]) -> Result<(), Closed> {
        if let Go::Instead(bytes) = self.step(Step::Nonce).await? {
            self.stream.send(&bytes).await?;
            return Err(swallow(&mut self.stream).await);
        }
        let mut nonce = [0; NONCE];
        self.stream.read_exact(&mut nonce).await?;
        if nonce != expected {
            return Err(Closed::Error("TLS no. 2 began with another nonce than THUMBPRINT named".to_owned()));
        }
        Ok(())
    }

    /// Lets the fault of a step happen.
    async fn step(&mut self, step: Step) -> Result<Go, Closed> {
        match self.faults.get(step) {
            None => Ok(Go::Right),
            Some(Fault::Reply(bytes)) => Ok(Go::Instead(bytes.clone())),
            Some(Fault::WrongCertificate) => Ok(Go::WrongCertificate),
            Some(Fault::Close) => Err(Closed::Fault),
            Some(Fault::Reset) => {
                self.stream.wire().reset_on_close();
                Err(Closed::Fault)
            }
            Some(Fault::Stall) => Err(swallow(&mut self.stream).await),
        }
    }

    /// A line without its end; `None` when the client was sent away for a line that is none.
    async fn read_line(&mut self) -> Result<Option<String>, Closed> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            if line.len() == MAX_LINE {
                self.refuse("502 Line too long").await?;
                return Ok(None);
            }
            line.push(self.stream.read_u8().await?);
        }
        line.truncate(line.len() - 2);
        match String::from_utf8(line) {
            Ok(line) => Ok(Some(line)),
            Err(_) => {
                self.refuse("502 Malformed command").await?;
                Ok(None)
            }
        }
    }

    async fn reply(&mut self, line: &str) -> Result<(), Closed> {
        Ok(self.stream.send(format!("{line}\r\n").as_bytes()).await?)
    }

    async fn refuse(&mut self, line: &str) -> Result<(), Closed> {
        self.refuse_raw(format!("{line}\r\n").into_bytes()).await
    }

    async fn refuse_raw(&mut self, bytes: Vec<u8>) -> Result<(), Closed> {
        self.stream.send(&bytes).await?;
        let reply = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        self.event(EventKind::Refused { reply });
        Ok(())
    }

    fn event(&self, kind: EventKind) {
        self.host.journal.record(self.conn, kind);
    }
}

/// Reads and throws away until the client leaves; whatever layer it speaks, below it.
async fn swallow(stream: &mut Stream) -> Closed {
    let mut sink = [0; 4096];
    loop {
        match stream.wire_mut().read(&mut sink).await {
            Ok(0) => return Closed::Client,
            Ok(_) => {}
            Err(err) => return err.into(),
        }
    }
}
