//! A console of any kind as a leg of a flow, for doors that speak WebSocket to their clients.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::client::UnbufferedClientConnection;
use rustls::crypto::CryptoProvider;

use super::vcenter::{ConsoleKind, Vcenters};
use super::{
    BackendError, Dial, EsxiMks, Hosts, Step, VcenterError, ask_vcenter, esxi_webmks, two_pass, vnc,
};
use crate::flow::Leg;
use crate::metrics::{Metrics, Stage};
use crate::ticket::{Target, TargetKind};
use crate::tls::{Session, TlsStream};

/// A console that was opened.
pub struct Console {
    /// The way to it.
    pub leg: Leg,
    /// Bytes of it that were received already.
    pub to_client: Vec<u8>,
    /// It begins with ServerInit: the viewer's part of RFB's handshake is still to be played with the viewer.
    pub wants_handshake: bool,
}

/// What opening one needs beside the target.
#[derive(Clone)]
pub struct Opening<'a> {
    /// How it is connected to.
    pub dial: Dial<'a>,
    /// Longest time of each step after that.
    pub within: Duration,
    /// TLS as it is spoken to hypervisors.
    pub provider: Arc<CryptoProvider>,
    /// Whom to ask where the target is at a vCenter.
    pub vcenters: &'a Vcenters,
    /// Where it is noted how hosts do.
    pub hosts: &'a Hosts,
    /// Where the steps are timed.
    pub metrics: &'a Metrics,
}

/// Opens the console a ticket names; `vm` is the ticket's, for targets that have no name of their own for it.
pub async fn open(target: &Target, vm: &str, how: Opening<'_>) -> Result<Console, BackendError> {
    if target.kind != TargetKind::Vcenter {
        return open_host(target, vm, &how).await;
    }
    match open_host(&ask(target, vm, &how).await?, vm, &how).await {
        // It moved between ticket and connect, or its host just went away: the vCenter knows where it is now.
        Err(error) if error.may_have_moved() => open_host(&ask(target, vm, &how).await?, vm, &how).await,
        other => other,
    }
}

/// Whether consoles of this kind all begin with ServerInit, as [`Console::wants_handshake`] tells afterwards.
pub fn wants_handshake(kind: TargetKind) -> bool {
    matches!(kind, TargetKind::EsxiMks | TargetKind::EsxTwoPass | TargetKind::Vnc)
}

async fn open_host(target: &Target, vm: &str, how: &Opening<'_>) -> Result<Console, BackendError> {
    let began = Instant::now();
    let console = match target.kind {
        TargetKind::EsxiMks | TargetKind::EsxTwoPass => esxi_mks(target, vm, how).await,
        TargetKind::EsxiWebmks => esxi_webmks::open(target, how).await,
        TargetKind::Vnc => vnc::open(target, how).await,
        TargetKind::Vcenter => Err(BackendError::Unsupported("vcenter, named by a vCenter")),
    };
    how.hosts.note(
        &target.host,
        target.port.unwrap_or_else(|| usual_port(target.kind)),
        &console,
        SystemTime::now(),
    );
    let console = console?;
    how.metrics.record(Stage::BackendHandshake, began.elapsed());
    Ok(console)
}

fn usual_port(kind: TargetKind) -> u16 {
    match kind {
        TargetKind::EsxiMks | TargetKind::EsxTwoPass => 902,
        TargetKind::Vnc => 5900,
        TargetKind::EsxiWebmks | TargetKind::Vcenter => 443,
    }
}

/// WebMKS, which needs no TLS inside TLS; authd where the vCenter does not know that kind of ticket.
async fn ask(target: &Target, vm: &str, how: &Opening<'_>) -> Result<Target, BackendError> {
    let tenant = how.dial.tenant;
    match ask_vcenter(how.vcenters, target, vm, tenant, ConsoleKind::Webmks).await {
        Err(BackendError::Vcenter(VcenterError::Fault { fault, .. })) if fault.is_unknown_operation() => {
            ask_vcenter(how.vcenters, target, vm, tenant, ConsoleKind::Mks).await
        }
        other => other,
    }
}

/// TLS no. 2 ends here: the browser knows nothing of it.
async fn esxi_mks(target: &Target, vm: &str, how: &Opening<'_>) -> Result<Console, BackendError> {
    let began = Instant::now();
    let mut host = if target.kind == TargetKind::EsxTwoPass {
        two_pass::login(target, vm, how.provider.clone(), how.within, how.dial).await?
    } else {
        let wire = EsxiMks::connect(target, how.dial).await?;
        how.metrics.record(Stage::BackendConnect, began.elapsed());
        EsxiMks::login(wire, target, how.provider.clone(), how.within).await?
    };
    let nonce = nonce()?;
    let announced = host.thumbprint(&nonce, false).await?;
    let cfg_file = target.cfg_file.as_deref().unwrap_or(vm);
    let tls = host.console_inside(cfg_file, &announced, &nonce, how.provider.clone()).await?;
    let (leg, to_client) = tls_leg(tls)?;
    Ok(Console { leg, to_client, wants_handshake: wants_handshake(target.kind) })
}

/// Base64 of 12 random bytes: 16 characters.
fn nonce() -> Result<String, BackendError> {
    let mut bytes = [0; 12];
    let random = rand::fill(&mut bytes);
    random.map_err(|_| BackendError::Internal(std::io::Error::other("no random bytes")))?;
    Ok(STANDARD.encode(bytes))
}

/// A stream's leg, and what of its content was received already.
pub(super) fn tls_leg(stream: TlsStream<UnbufferedClientConnection>) -> Result<(Leg, Vec<u8>), BackendError> {
    let (wire, connection, received, plain) = stream.into_parts();
    let socket = wire.into_fd().map_err(BackendError::Internal)?;
    let session = Session::client(connection, received).map_err(|error| BackendError::Tls(error.into()))?;
    Ok((Leg::Tls(socket, session), plain))
}

/// A deadline for one step with the host.
pub(super) async fn within<T>(
    how: &Opening<'_>,
    step: Step,
    work: impl Future<Output = Result<T, BackendError>>,
) -> Result<T, BackendError> {
    super::esxi_mks::deadline(how.within, step, work).await
}
