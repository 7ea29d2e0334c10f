//! The authd dialogue inside TLS no. 1, the same on both raw doors: ticket, admission, host, hand-over.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use rustls::server::UnbufferedServerConnection;
use tokio::time::timeout_at;

use super::refused::Who;
use super::{FAREWELL, Refused};
use crate::admission::{Admission, Denied, Entry};
use crate::backend::{self, BackendError, Dial, Reached};
use crate::flow::Leg;
use crate::gate::{Caller, Gate, NotAdmitted};
use crate::metrics::Stage;
use crate::protocol::authd::{Action, Refusal, Server};
use crate::session::{self, HandOver};
use crate::ticket::{Permit, TargetKind};
use crate::tls::{TlsError, TlsStream};
use crate::wire::{self, Runtime};

type Tls = TlsStream<UnbufferedServerConnection>;

/// Runs the dialogue to the hand-over, or to a refusal that the client was told.
pub(super) async fn run(
    gate: &Arc<Gate>,
    caller: Caller,
    tls: Tls,
    entry: Entry,
    runtime: Runtime,
) -> Result<(), Refused> {
    let config = gate.config.load_full();
    let deadline = tokio::time::Instant::now() + config.deadlines.dialogue;
    let mut dialogue = Dialogue {
        gate,
        caller,
        runtime,
        tls,
        server: Server::new(),
        login: None,
        host: None,
        announced: false,
    };
    let path = loop {
        let line = match timeout_at(deadline, dialogue.tls.read_line()).await {
            Ok(Ok(line)) => line,
            Ok(Err(TlsError::Line(error))) => {
                let reply = dialogue.server.malformed(error);
                return Err(dialogue.goodbye(&reply, Refused::new("malformed", error)).await);
            }
            Ok(Err(error)) => return Err(Refused::new("client_closed", error).of(&dialogue.who())),
            Err(_) => {
                return Err(dialogue
                    .refuse(
                        Refusal::Deadline,
                        Refused::new("deadline_dialogue", "the client's dialogue took too long"),
                    )
                    .await);
            }
        };
        match dialogue.server.line(&line) {
            Action::Reply(reply) => dialogue.say(&reply).await?,
            Action::Goodbye(reply) => {
                let (quit, who) = (reply.starts_with("221"), dialogue.who());
                let reason = if quit {
                    Refused::new("quit", "the client said QUIT")
                } else {
                    Refused::new("bad_dialogue", reply.trim_end())
                };
                return Err(dialogue.goodbye(&reply, reason.of(&who)).await);
            }
            Action::Login { ticket } => dialogue.login(&ticket).await?,
            Action::Thumbprint { nonce, sha256 } => dialogue.thumbprint(&nonce, sha256).await?,
            Action::Connect { path } => break path,
        }
    };
    dialogue.connect(path, entry).await
}

struct Dialogue<'a> {
    gate: &'a Arc<Gate>,
    caller: Caller,
    runtime: Runtime,
    tls: Tls,
    server: Server,
    /// Set once the ticket opened and the tenant let it in.
    login: Option<(Permit, Admission)>,
    /// Set once the host took its ticket.
    host: Option<Reached>,
    /// The client knows what TLS no. 2 will show, so it must be this host's.
    announced: bool,
}

impl Dialogue<'_> {
    async fn login(&mut self, sealed: &str) -> Result<(), Refused> {
        let (refusal, refused, permit) = match self.gate.admit(sealed, self.caller.source.ip()) {
            Ok((permit, admission)) => {
                self.gate.metrics.record(Stage::Admission, self.caller.accepted.elapsed());
                let mark = admission.tenant().number;
                let _ = wire::set_mark(self.tls.wire(), &self.gate.config.load().sockets, mark);
                self.login = Some((permit, admission));
                let reply = self.server.logged_in();
                return self.say(&reply).await;
            }
            Err(NotAdmitted::Ticket(error)) => {
                return Err(self.refuse(Refusal::Login, Refused::new(error.as_str(), error)).await);
            }
            Err(NotAdmitted::Draining(permit)) => {
                (Refusal::Draining, Refused::new("draining", "the appliance is draining"), permit)
            }
            Err(NotAdmitted::Limit(permit, denied @ Denied::UnknownTenant)) => {
                let refused = Refused::new(denied.as_str(), "no such tenant in the configuration");
                (Refusal::NoAccess, refused, Some(permit))
            }
            Err(NotAdmitted::Limit(permit, denied)) => {
                let refused =
                    Refused::new(denied.as_str(), "a limit of the tenant (`tenants` in the configuration)");
                (Refusal::Busy, refused, Some(permit))
            }
        };
        Err(self.refuse(refusal, refused.of(&permit.as_ref().map(who))).await)
    }

    async fn thumbprint(&mut self, nonce: &str, sha256: bool) -> Result<(), Refused> {
        self.reach_host().await?;
        let Some(host) = &mut self.host else { return Err(self.lost().await) };
        match host.host.thumbprint(nonce, sha256).await {
            Ok(announced) => {
                self.announced = true;
                let reply = self.server.thumbprint(&announced);
                self.say(&reply).await
            }
            Err(error) => Err(self.no_host(error).await),
        }
    }

    async fn connect(mut self, path: String, entry: Entry) -> Result<(), Refused> {
        let Some((permit, _)) = &self.login else { return Err(self.lost().await) };
        if path != permit.vm() {
            let detail = format!("CONNECT named another VM than the ticket's {:?}", permit.vm());
            return Err(self.refuse(Refusal::NoSuchVm, Refused::new("wrong_vm", detail)).await);
        }
        if !self.tls.unread().is_empty() {
            let reply = self.server.malformed(crate::protocol::line::LineError::BadByte);
            return Err(self
                .goodbye(&reply, Refused::new("malformed", "bytes behind CONNECT inside TLS no. 1"))
                .await);
        }
        let began = Instant::now();
        let (backend, to_client) = self.console().await?;
        let Some((permit, admission)) = self.login.take() else { return Err(self.lost().await) };
        let who = Some(who(&permit));
        self.gate.metrics.record(Stage::BackendHandshake, began.elapsed());
        let reply = self.server.connected(&path);
        self.tls.write_last(reply.as_bytes()).await.map_err(|e| Refused::new("client_closed", e).of(&who))?;
        let (wire, to_backend) = self.tls.into_raw();
        let client = wire.into_fd().map_err(|e| Refused::new("internal", e).of(&who))?;
        let over = HandOver {
            caller: self.caller,
            entry,
            permit,
            admission,
            client: Leg::Raw(client),
            backend: Leg::Raw(backend),
            to_backend,
            to_client,
        };
        session::hand_over(self.gate, over).map_err(|error| Refused::new("internal", error).of(&who))
    }

    /// CONNECT at the host. A VM that moved since a vCenter named the host is looked for once more, unless the client was
    /// already told what the old host will show.
    async fn console(&mut self) -> Result<(OwnedFd, Vec<u8>), Refused> {
        let vcenter =
            self.login.as_ref().is_some_and(|(permit, _)| permit.target().kind == TargetKind::Vcenter);
        let mut again = vcenter && !self.announced;
        loop {
            self.reach_host().await?;
            let Some(Reached { host, cfg_file }) = self.host.take() else { return Err(self.lost().await) };
            match host.console(&cfg_file).await {
                Ok(console) => return Ok(console),
                Err(error) if again && error.may_have_moved() => again = false,
                Err(error) => return Err(self.no_host(error).await),
            }
        }
    }

    /// Connects to the host and logs in there, once.
    async fn reach_host(&mut self) -> Result<(), Refused> {
        if self.host.is_some() {
            return Ok(());
        }
        let Some((permit, admission)) = &self.login else { return Err(self.lost().await) };
        let config = self.gate.config.load_full();
        let how = Dial {
            tenant: admission.tenant(),
            sockets: &config.sockets,
            within: config.deadlines.connect,
            runtime: self.runtime,
        };
        match backend::reach(self.gate, permit, how).await {
            Ok(host) => {
                self.host = Some(host);
                Ok(())
            }
            Err(error) => Err(self.no_host(error).await),
        }
    }

    async fn no_host(&mut self, error: BackendError) -> Refused {
        let refused = Refused::new(error.as_str(), &error);
        tracing::info!(reason = error.as_str(), %error, source = %self.caller.source, "no console");
        self.refuse(error.refusal(), refused).await
    }

    async fn say(&mut self, line: &str) -> Result<(), Refused> {
        let said = self.tls.write_all(line.as_bytes()).await;
        said.map_err(|error| Refused::new("client_closed", error).of(&self.who()))
    }

    /// Tells the client and hands the reason on. Whether the client still listens changes nothing.
    async fn goodbye(&mut self, line: &str, refused: Refused) -> Refused {
        let _ = tokio::time::timeout(FAREWELL, self.tls.farewell(line.as_bytes())).await;
        refused.of(&self.who())
    }

    async fn refuse(&mut self, refusal: Refusal, refused: Refused) -> Refused {
        self.goodbye(&refusal.line(), refused).await
    }

    /// The state machine lets nobody come here without a login; if it ever did, nobody gets further.
    async fn lost(&mut self) -> Refused {
        self.refuse(Refusal::Login, Refused::new("internal", "a step without its login")).await
    }

    fn who(&self) -> Option<Who> {
        self.login.as_ref().map(|(permit, _)| who(permit))
    }
}

fn who(permit: &Permit) -> Who {
    Who { tenant: permit.tenant().into(), user: permit.user().into(), jti: permit.jti().into() }
}
