//! AcquireTicket as a client of `/sdk` sees it: the host is the appliance, the ticket a sealed one, the thumbprint ours.

use std::time::{SystemTime, UNIX_EPOCH};

use super::SdkSession;
use crate::backend::vcenter::ConsoleKind;
use crate::gate::{Caller, Gate};
use crate::protocol::soap::ticket::ConsoleTicket;
use crate::ticket::{Claims, Target};

/// How long the sealed ticket may wait for its only use, on top of what the configuration says: a vCenter's own is as short.
const GRACE: u64 = 30;

/// Seals what the vCenter named and says where it is to be used: here.
pub(super) fn seal(
    gate: &Gate,
    caller: &Caller,
    session: &SdkSession,
    target: Target,
    kind: ConsoleKind,
    now: SystemTime,
) -> Result<ConsoleTicket, String> {
    let config = gate.config.load();
    let policy = &config.tickets.policy;
    let now =
        now.duration_since(UNIX_EPOCH).map_err(|_| "the clock stands before 1970".to_owned())?.as_secs();
    let permit = &session.permit;
    let vm = target.cfg_file.clone().unwrap_or_else(|| permit.vm().to_owned());
    let mut number = [0; 8];
    aws_lc_rs::rand::fill(&mut number).map_err(|_| "no random bytes".to_owned())?;
    let claims = Claims {
        iss: policy.issuer.clone(),
        aud: policy.audience.clone(),
        // The name of the ticket it comes from leads there.
        jti: format!(
            "{}/{:016x}",
            permit.jti().chars().take(80).collect::<String>(),
            u64::from_be_bytes(number)
        ),
        iat: now,
        nbf: now,
        exp: now + policy.first_use.as_secs() + GRACE,
        tenant: permit.tenant().into(),
        user: permit.user().into(),
        vm: vm.clone(),
        target,
        source: policy.bind_source.then_some(caller.source.ip()),
        // The host's own ticket works once.
        max_connections: Some(1),
        session_seconds: permit.session().map(|longest| longest.as_secs()),
        view_only: false,
    };
    let sealed = gate.tickets.keys().seal(&claims).map_err(|error| error.to_string())?;
    let host = gate.console_host(caller);
    let port = match kind {
        ConsoleKind::Mks => gate.console_authd_port(),
        ConsoleKind::Webmks => gate.console_tls_port(),
    };
    let url = (kind == ConsoleKind::Webmks).then(|| {
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        format!("wss://{host}:{port}/ticket/{sealed}")
    });
    let (sha1, sha256) = gate.presented.thumbprints().ok_or("no certificate is shown")?;
    Ok(ConsoleTicket {
        ticket: sealed,
        cfg_file: vm,
        host: Some(host),
        port: Some(port),
        thumbprints: vec![sha1.to_string(), sha256.to_string()],
        url,
    })
}
