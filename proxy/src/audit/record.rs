//! What a record says (docs/admin-api.md lists the fields).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::Refusal;
use crate::flow::FlowEnd;
use crate::session::{CloseReason, Fault, Session, SocketView, rfc3339};
use crate::xdp::DropEvent;

/// One line of the audit trail before it is text.
pub(super) struct Record {
    pub(super) at: SystemTime,
    pub(super) event: Event,
}

pub(super) enum Event {
    Open(Arc<Session>),
    Close(Arc<Session>, FlowEnd, Duration),
    Refused(RefusedLine),
    Shed(DropEvent),
}

#[derive(Serialize)]
struct Line<T> {
    time: String,
    event: &'static str,
    #[serde(flatten)]
    rest: T,
}

#[derive(Serialize)]
struct OpenLine<'a> {
    session: u64,
    started: String,
    door: &'static str,
    tenant: &'a str,
    user: &'a str,
    vm: &'a str,
    jti: &'a str,
    mark: u32,
    source: String,
    client: SocketView,
    backend: SocketView,
}

#[derive(Serialize)]
struct CloseLine<'a> {
    #[serde(flatten)]
    open: OpenLine<'a>,
    reason: CloseReason,
    fault: Fault,
    seconds: f64,
    up_bytes: u64,
    down_bytes: u64,
    client_rtt_us: Option<u32>,
    backend_rtt_us: Option<u32>,
}

#[derive(Serialize)]
pub(super) struct RefusedLine {
    door: &'static str,
    tenant: String,
    user: String,
    jti: String,
    source: String,
    reason: &'static str,
    suppressed: u64,
}

impl Event {
    pub(super) fn refused(refusal: &Refusal<'_>, suppressed: u64) -> Self {
        Self::Refused(RefusedLine {
            door: refusal.door.as_str(),
            tenant: refusal.tenant.to_owned(),
            user: refusal.user.to_owned(),
            jti: refusal.jti.to_owned(),
            source: refusal.source.to_string(),
            reason: refusal.reason,
            suppressed,
        })
    }

    /// The value of `event`.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Open(_) => "open",
            Self::Close(..) => "close",
            Self::Refused(_) => "refused",
            Self::Shed(_) => "shed",
        }
    }

    /// Tenant and ticket, by which the journal can be filtered.
    pub(super) fn tenant_and_jti(&self) -> (&str, &str) {
        match self {
            Self::Open(session) | Self::Close(session, ..) => (&session.tenant, &session.jti),
            Self::Refused(refused) => (&refused.tenant, &refused.jti),
            Self::Shed(dropped) => (&dropped.tenant, ""),
        }
    }
}

impl Record {
    /// The JSON text without the line end.
    pub(super) fn line(&self) -> String {
        match &self.event {
            Event::Open(session) => self.text(open_line(session)),
            Event::Close(session, end, lived) => self.text(CloseLine {
                open: open_line(session),
                reason: end.reason,
                fault: end.reason.fault(),
                seconds: lived.as_millis() as f64 / 1e3,
                up_bytes: end.up,
                down_bytes: end.down,
                client_rtt_us: end.rtt_us[0],
                backend_rtt_us: end.rtt_us[1],
            }),
            Event::Refused(refused) => self.text(refused),
            Event::Shed(dropped) => self.text(dropped),
        }
    }

    fn text(&self, rest: impl Serialize) -> String {
        let line = Line { time: rfc3339(self.at), event: self.event.name(), rest };
        // Strings and numbers only: serialising them does not fail.
        serde_json::to_string(&line).unwrap_or_default()
    }
}

fn open_line(session: &Session) -> OpenLine<'_> {
    OpenLine {
        session: session.id,
        started: rfc3339(session.started),
        door: session.door.as_str(),
        tenant: &session.tenant,
        user: &session.user,
        vm: &session.vm,
        jti: &session.jti,
        mark: session.mark,
        source: session.source.to_string(),
        client: SocketView::new(session.local, session.peer),
        backend: SocketView::new(session.backend_local, session.backend),
    }
}
