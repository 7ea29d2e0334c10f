//! The WebSocket doors: a ticket in the address, then a console in frames.

use std::sync::Arc;

use rustls::server::UnbufferedServerConnection;
use tokio::time::timeout_at;

use super::refused::Who;
use super::websocket::{Stream, StreamError};
use super::{FAREWELL, Refused};
use crate::admission::{Admission, Denied, Entry};
use crate::backend::{self, BackendError, Console, Dial, Opening, VcenterError};
use crate::gate::{Caller, Gate, NotAdmitted};
use crate::metrics::Stage;
use crate::protocol::console_url::{ConsoleUrl, may_open};
use crate::protocol::http::{Head, Status};
use crate::protocol::rfb;
use crate::protocol::rfb_client::RfbClientError;
use crate::protocol::websocket::{CloseCode, UpgradeError, negotiate};
use crate::session::{self, HandOver, NotOpened};
use crate::ticket::Permit;
use crate::tls::TlsStream;
use crate::wire::{self, Runtime};

/// What the server says first on `/{port};{ticket}` (PROTOCOLS: exactly these 17 bytes).
const ASK_VMX: &[u8] = b"connect info vmx\n";

/// What a refused client is told, and what the operator is.
type Told = (CloseCode, String, Refused);

fn told(not: NotOpened, refused: Refused) -> Told {
    let (code, words) = not.words();
    (code, words.to_owned(), refused)
}

/// Checks the request as a WebSocket's handshake; the response that switches. The text goes to the client.
pub(super) fn check(
    gate: &Gate,
    head: &Head,
) -> Result<(String, crate::protocol::websocket::Subprotocol), (Status, String)> {
    let config = gate.config.load();
    if !may_open(origin(head), head.header("host"), &config.web.origins) {
        return Err((Status::Forbidden, Status::Forbidden.text().into()));
    }
    negotiate(head).map_err(|error| {
        let status = match error {
            UpgradeError::Method => Status::MethodNotAllowed,
            // RFC 6455, 4.2.2: another version is told which one is spoken, as one that asks for no upgrade is.
            UpgradeError::NoUpgrade | UpgradeError::Version => Status::WebSocketRequired,
            _ => Status::BadRequest,
        };
        (status, format!("Not a WebSocket: {error}."))
    })
}

/// Two origins are as good as a foreign one.
fn origin(head: &Head) -> Option<&str> {
    let mut origins = head.values("origin");
    match (origins.next(), origins.next()) {
        (one, None) => one,
        _ => Some("null"),
    }
}

/// Runs to the hand-over, or to a refusal that the client was told.
pub(super) async fn run(
    gate: &Arc<Gate>,
    caller: Caller,
    tls: TlsStream<UnbufferedServerConnection>,
    entry: Entry,
    runtime: Runtime,
    url: ConsoleUrl,
    (response, subprotocol): (String, crate::protocol::websocket::Subprotocol),
) -> Result<(), Refused> {
    let door = Door { gate, caller, runtime };
    let mut stream = Stream::new(tls, response, subprotocol);
    let (permit, admission) = match door.admit(&url.ticket) {
        Ok(login) => login,
        Err(told) => return Err(door.refuse(stream, told).await),
    };
    let who = Some(who(&permit));
    let config = gate.config.load_full();
    let _ = wire::set_mark(stream.wire(), &config.sockets, admission.tenant().number);
    let console = match door.open(&mut stream, &url, &permit, &admission).await {
        Ok(console) => console,
        Err((code, words, refused)) => {
            return Err(door.refuse(stream, (code, words, refused.of(&who))).await);
        }
    };
    let internal = |error| Refused::new("internal", error).of(&who);
    let (client, to_backend) = stream.into_leg(config.web.ping).map_err(internal)?;
    let Console { leg: backend, to_client, .. } = console;
    let over = HandOver { caller, entry, permit, admission, client, backend, to_backend, to_client };
    session::hand_over(gate, over).map_err(internal)
}

fn who(permit: &Permit) -> Who {
    Who { tenant: permit.tenant().into(), user: permit.user().into(), jti: permit.jti().into() }
}

struct Door<'a> {
    gate: &'a Arc<Gate>,
    caller: Caller,
    runtime: Runtime,
}

impl Door<'_> {
    /// The ticket, then the limits of its tenant.
    fn admit(&self, sealed: &str) -> Result<(Permit, Admission), Told> {
        let gate = self.gate;
        let (permit, admission) =
            gate.admit(sealed, self.caller.source.ip()).map_err(|barred| match barred {
                NotAdmitted::Ticket(error) => told(NotOpened::Ticket, Refused::new(error.as_str(), error)),
                NotAdmitted::Draining(permit) => {
                    let refused = Refused::new("draining", "the appliance is draining");
                    told(NotOpened::Draining, refused.of(&permit.as_ref().map(who)))
                }
                NotAdmitted::Limit(permit, denied) => {
                    let (not, detail) = match denied {
                        Denied::UnknownTenant => {
                            (NotOpened::UnknownTenant, "no such tenant in the configuration")
                        }
                        _ => (NotOpened::TooMany, "a limit of the tenant (`tenants` in the configuration)"),
                    };
                    told(not, Refused::new(denied.as_str(), detail).of(&Some(who(&permit))))
                }
            })?;
        gate.metrics.record(Stage::Admission, self.caller.accepted.elapsed());
        Ok((permit, admission))
    }

    /// The in-band question, the console behind, and RFB's handshake where the console leaves it out.
    async fn open(
        &self,
        stream: &mut Stream,
        url: &ConsoleUrl,
        permit: &Permit,
        admission: &Admission,
    ) -> Result<Console, Told> {
        let config = self.gate.config.load_full();
        if url.asks_vmx {
            stream.say(ASK_VMX);
            self.in_time(stream.message()).await.and_then(|answer| named(&answer, permit))?;
        }
        let opening = Opening {
            dial: Dial {
                tenant: admission.tenant(),
                sockets: &config.sockets,
                within: config.deadlines.connect,
                runtime: self.runtime,
            },
            within: config.deadlines.backend,
            provider: self.gate.provider.load_full(),
            vcenters: &self.gate.vcenters,
            hosts: &self.gate.hosts,
            metrics: &self.gate.metrics,
        };
        let (kind, vm) = (permit.target().kind, permit.vm());
        let opened = async {
            let opened = backend::open(permit.target(), vm, opening).await;
            opened.map_err(|error| self.no_console(&error))
        };
        if backend::wants_handshake(kind) {
            // At once: the viewer's way and the host's are gone side by side.
            return Ok(tokio::try_join!(opened, self.shake_hands(stream))?.0);
        }
        let (console, flushed) = tokio::join!(opened, self.in_time(async { Ok(stream.flush().await?) }));
        let console = console?;
        flushed?;
        if console.wants_handshake {
            self.shake_hands(stream).await?;
        }
        Ok(console)
    }

    /// RFB's handshake with the viewer.
    async fn shake_hands(&self, stream: &mut Stream) -> Result<(), Told> {
        let played = self.in_time(shake_hands(stream)).await?;
        played.map_err(|error| told(NotOpened::NotRfb, Refused::new("bad_rfb", error)))
    }

    /// A step of the client's, within the dialogue's deadline.
    async fn in_time<T>(&self, work: impl Future<Output = Result<T, StreamError>>) -> Result<T, Told> {
        let within = self.gate.config.load().deadlines.dialogue;
        match timeout_at(tokio::time::Instant::now() + within, work).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(StreamError::Violation(violation))) => {
                Err((violation.code(), violation.to_string(), Refused::new("bad_websocket", violation)))
            }
            Ok(Err(StreamError::TooMuch)) => {
                Err(told(NotOpened::TooMuch, Refused::new("bad_websocket", StreamError::TooMuch)))
            }
            Ok(Err(error)) => Err((CloseCode::NORMAL, String::new(), Refused::new("client_closed", error))),
            Err(_) => {
                let refused = Refused::new("deadline_dialogue", "the client's dialogue took too long");
                Err(told(NotOpened::TooSlow, refused))
            }
        }
    }

    fn no_console(&self, error: &BackendError) -> Told {
        tracing::info!(reason = error.as_str(), %error, source = %self.caller.source, "no console");
        let not = match error {
            BackendError::OutsideTargets(_) | BackendError::Vcenter(VcenterError::OutsideTargets(_)) => {
                NotOpened::OutsideTargets
            }
            BackendError::Refused { .. } | BackendError::NotWebSocket(_) | BackendError::SecondPass => {
                NotOpened::HostRefused
            }
            BackendError::Rfb(RfbClientError::Refused(_) | RfbClientError::NoPassword) => {
                NotOpened::HostRefused
            }
            BackendError::Resolve { .. }
            | BackendError::Unreachable { .. }
            | BackendError::Timeout { .. } => NotOpened::Unreachable,
            BackendError::WrongCertificate => NotOpened::WrongHost,
            BackendError::Vcenter(VcenterError::PoweredOff | VcenterError::PowerOn(_)) => {
                NotOpened::PoweredOff
            }
            BackendError::Vcenter(VcenterError::Login { .. }) => NotOpened::VcenterRefused,
            BackendError::Vcenter(_) => NotOpened::VcenterFailed,
            BackendError::Unsupported(_) | BackendError::BadTarget(_) => NotOpened::Unsupported,
            BackendError::Internal(_) => NotOpened::Internal,
            _ => NotOpened::HostFailed,
        };
        told(not, Refused::new(error.as_str(), error))
    }

    /// Tells the client. Whether it still listens changes nothing.
    async fn refuse(&self, mut stream: Stream, (code, words, refused): Told) -> Refused {
        let _ = tokio::time::timeout(FAREWELL, stream.close(code, &words)).await;
        refused
    }
}

/// Whether the client named the ticket's machine. The cell's own sample leaves out the leading slash.
fn named(answer: &[u8], permit: &Permit) -> Result<(), Told> {
    let bare = |name: &[u8]| name.strip_prefix(b"/").unwrap_or(name).to_vec();
    let given = bare(answer.trim_ascii_end());
    let names = [Some(permit.vm()), permit.target().cfg_file.as_deref()];
    if names.into_iter().flatten().any(|name| bare(name.as_bytes()) == given) {
        return Ok(());
    }
    let refused =
        Refused::new("wrong_vm", format!("the client named another VM than the ticket's {:?}", permit.vm()));
    Err(told(NotOpened::WrongVm, refused))
}

/// Plays the server in RFB's handshake. The version goes in a frame of its own: by its 12 bytes VMware's viewer tells a
/// handshake from a stream that begins with ServerInit.
async fn shake_hands(stream: &mut Stream) -> Result<Result<(), rfb::RfbError>, StreamError> {
    let mut handshake = rfb::Handshake::new();
    loop {
        match handshake.step(&mut stream.data) {
            Ok(rfb::Step::Send([])) => {}
            Ok(rfb::Step::Send(bytes)) => stream.say(bytes),
            Ok(rfb::Step::Wait) => stream.more().await?,
            Ok(rfb::Step::Done) => return Ok(Ok(stream.flush().await?)),
            Err(error) => return Ok(Err(error)),
        }
    }
}
