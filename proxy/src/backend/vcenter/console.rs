//! From a ticket's vCenter target to the host that really shows the console.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::endpoint::{EndpointKey, body, fault_of};
use super::session::{Session, With};
use super::{Pool, VcenterError};
use crate::config::TargetRange;
use crate::protocol::soap::request::{self, Service, TaskState, returned};
use crate::protocol::soap::ticket::ConsoleTicket;
use crate::protocol::soap::{Element, Message, Moref, SoapError};
use crate::ticket::{Target, TargetKind};

/// First and longest pause between two looks at a task.
const LOOK: Duration = Duration::from_millis(100);
const LOOK_LONGEST: Duration = Duration::from_secs(2);

/// Which console the door needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsoleKind {
    /// authd on port 902.
    Mks,
    /// `wss://host/ticket/…`.
    Webmks,
}

/// What is asked of a vCenter.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The sealed ticket's target, of kind `vcenter`.
    pub target: Target,
    /// The VM's moref.
    pub vm: String,
    /// Which console.
    pub kind: ConsoleKind,
    /// Whether a VM that is off is powered on first.
    pub power_on: bool,
    /// Where the tenant's consoles and vCenters may be.
    pub reach: Vec<TargetRange>,
}

impl Pool {
    pub(super) async fn console(&self, wanted: Wanted) -> Result<Target, VcenterError> {
        let (key, session) = self.session(&wanted.target, None)?;
        let settings = self.settings.load_full();
        let with = settings.with(&wanted.reach);
        let vm = Moref::vm(wanted.vm.as_str());
        let ticket = match acquire(&session, &with, &vm, wanted.kind).await {
            Err(VcenterError::Fault { fault, .. }) if fault.is_powered_off() => {
                if !wanted.power_on {
                    return Err(VcenterError::PoweredOff);
                }
                power_on(&session, &with, &vm).await?;
                acquire(&session, &with, &vm, wanted.kind).await?
            }
            other => other?,
        };
        resolve(ticket, &key.endpoint, wanted.kind)
    }
}

async fn acquire(
    session: &Arc<Session>,
    with: &With<'_>,
    vm: &Moref,
    kind: ConsoleKind,
) -> Result<ConsoleTicket, VcenterError> {
    let name = match kind {
        ConsoleKind::Mks => "mks",
        ConsoleKind::Webmks => "webmks",
    };
    let reply = session.ask(with, |_| request::acquire_ticket(vm, name)).await?;
    match reply.message {
        Message::Body(answer) => Ok(ConsoleTicket::from_answer("AcquireTicket", &answer)?),
        Message::Fault(fault) if kind == ConsoleKind::Mks && fault.is_unknown_operation() => {
            let reply = session.ask(with, |_| request::acquire_mks_ticket(vm)).await?;
            Ok(ConsoleTicket::from_answer("AcquireMksTicket", &body("AcquireMksTicket", reply.message)?)?)
        }
        Message::Fault(fault) => Err(fault_of("AcquireTicket", fault)),
    }
}

/// Powers on, or resumes, and waits until it is done.
pub(super) async fn power_on(
    session: &Arc<Session>,
    with: &With<'_>,
    vm: &Moref,
) -> Result<(), VcenterError> {
    let deadline = Instant::now() + with.settings.power_on;
    let late = |_| VcenterError::PowerOn("not done in time (`vcenter.power_on_seconds`)".into());
    timeout_at(deadline, power_on_slowly(session, with, vm)).await.map_err(late)?
}

async fn power_on_slowly(session: &Arc<Session>, with: &With<'_>, vm: &Moref) -> Result<(), VcenterError> {
    let reply = session.ask(with, |_| request::power_on(vm)).await?;
    let answer = match reply.message {
        Message::Body(answer) => answer,
        // Somebody else just did it.
        Message::Fault(fault) if fault.is_powered_off() => return Ok(()),
        Message::Fault(fault) => return Err(fault_of("PowerOnVM_Task", fault)),
    };
    let task =
        returned("PowerOnVM_Task", &answer)?.and_then(Element::as_moref).ok_or(SoapError::Missing("task"))?;
    let mut pause = LOOK;
    loop {
        let state = |service: &Service| request::task_state(&service.property_collector, &task);
        let answer = body("RetrieveProperties", session.ask(with, state).await?.message)?;
        match TaskState::from_answer(&answer)? {
            TaskState::Success => return Ok(()),
            TaskState::Error(text) => return Err(VcenterError::PowerOn(text)),
            TaskState::Busy => {}
        }
        sleep(pause).await;
        pause = (pause * 2).min(LOOK_LONGEST);
    }
}

/// The ticket as a target. Whether it lies in the tenant's `targets` is seen when it is connected to.
pub(crate) fn resolve(
    ticket: ConsoleTicket,
    asked: &EndpointKey,
    kind: ConsoleKind,
) -> Result<Target, VcenterError> {
    let from_url = ticket.url.as_deref().filter(|_| kind == ConsoleKind::Webmks).and_then(authority);
    let (host, port) = match (&ticket.host, from_url) {
        (Some(host), _) => (host.clone(), ticket.port),
        (None, Some((host, port))) => (host, port.or(ticket.port)),
        (None, None) => (asked.host.clone(), ticket.port),
    };
    let mut thumbprints = ticket.thumbprints.clone();
    if thumbprints.is_empty() && host == asked.host {
        // The server that was asked shows the certificate it is known by.
        thumbprints = asked.thumbprints.iter().map(ToString::to_string).collect();
    }
    if thumbprints.is_empty() {
        return Err(SoapError::Missing("thumbprint of the host").into());
    }
    let (kind, usual) = match kind {
        ConsoleKind::Mks => (TargetKind::EsxiMks, 902),
        ConsoleKind::Webmks => (TargetKind::EsxiWebmks, 443),
    };
    Ok(Target {
        kind,
        host,
        port: Some(port.unwrap_or(usual)),
        ticket: Some(ticket.ticket.clone()),
        cfg_file: Some(ticket.cfg_file.clone()),
        thumbprints,
        tls: None,
    })
}

/// Host and port of `wss://host[:port]/…`.
fn authority(url: &str) -> Option<(String, Option<u16>)> {
    let authority = url.strip_prefix("wss://")?.split('/').next()?;
    match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            Some((host.into(), port.strip_prefix(':').and_then(|port| port.parse().ok())))
        }
        None => {
            let (host, port) = authority.split_once(':').map_or((authority, None), |(h, p)| (h, Some(p)));
            (!host.is_empty()).then(|| (host.into(), port.and_then(|port| port.parse().ok())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket(host: Option<&str>, port: Option<u16>, url: Option<&str>) -> ConsoleTicket {
        ConsoleTicket {
            ticket: "t".into(),
            cfg_file: "c".into(),
            host: host.map(str::to_owned),
            port,
            thumbprints: vec!["AB".into()],
            url: url.map(str::to_owned),
        }
    }

    fn asked() -> EndpointKey {
        EndpointKey { host: "vc".into(), port: 443, thumbprints: vec![crate::tls::Thumbprint::sha1(b"vc")] }
    }

    #[test]
    fn what_the_ticket_leaves_out_is_the_server_that_was_asked() {
        let at = |ticket, kind| {
            let target = resolve(ticket, &asked(), kind).unwrap();
            (target.kind, target.host.clone(), target.port.unwrap())
        };
        use ConsoleKind::{Mks, Webmks};
        assert_eq!(at(ticket(None, None, None), Mks), (TargetKind::EsxiMks, "vc".into(), 902));
        assert_eq!(at(ticket(Some("esx"), Some(9902), None), Mks), (TargetKind::EsxiMks, "esx".into(), 9902));
        assert_eq!(
            at(ticket(None, None, Some("wss://esx:8443/ticket/t")), Webmks),
            (TargetKind::EsxiWebmks, "esx".into(), 8443)
        );
        assert_eq!(
            at(ticket(None, None, Some("wss://[::1]/ticket/t")), Webmks),
            (TargetKind::EsxiWebmks, "::1".into(), 443)
        );
    }

    #[test]
    fn a_host_without_a_thumbprint_is_not_believed() {
        let bare = |host: Option<&str>| {
            let mut bare = ticket(host, None, None);
            bare.thumbprints.clear();
            resolve(bare, &asked(), ConsoleKind::Mks)
        };
        assert!(bare(Some("esx")).is_err());
        assert_eq!(bare(None).unwrap().thumbprints, vec![asked().thumbprints[0].to_string()]);
    }
}
