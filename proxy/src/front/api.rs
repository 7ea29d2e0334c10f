//! The doors of requests and answers on TLS 443: one connection, one request after the other.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::https::{Tls, read_head};
use super::{FAREWELL, Refused};
use crate::admission::Entry;
use crate::gate::{Caller, Gate};
use crate::metrics::Door;
use crate::protocol::http::{Head, Status};
use crate::protocol::reply::Reply;
use crate::protocol::soap::Limits;
use crate::{desk, sdk};

/// Longest silence between two requests of a client that has a session.
const IDLE: Duration = Duration::from_secs(120);
/// Requests of one connection before its client has a session.
const STRANGER: usize = 32;
/// How often a waiting connection looks whether the appliance is going away.
const LOOK: Duration = Duration::from_millis(500);
/// Told to a client that waits before it sends its body.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Which of these doors a path belongs to.
pub(super) fn door(path: &str) -> Option<Door> {
    match path.split('/').nth(1)? {
        "sdk" => Some(Door::Sdk),
        "api" | "v1" => Some(Door::Desk),
        _ => None,
    }
}

/// Serves until the client leaves, breaks the rules, or the appliance goes away.
pub(super) async fn serve(
    gate: &Arc<Gate>,
    caller: Caller,
    mut tls: Tls,
    mut entry: Entry,
    mut head: Head,
    mut length: usize,
) -> Result<(), Refused> {
    let within = gate.config.load().deadlines.handshake;
    let mut known = false;
    let certified = tls.connection().peer_certificates().is_some();
    for served in 0.. {
        let body = match timeout(within, read_body(&mut tls, &head, length)).await {
            Ok(Ok(body)) => body,
            Ok(Err(refused)) => return Err(refused),
            Err(_) => return Err(Refused::new("deadline_request", "no whole request in time")),
        };
        let (reply, authenticated) = respond(gate, &caller, &head, body, certified).await;
        if authenticated && !known {
            // No longer in a handshake: it may stay as long as it has something to ask.
            known = true;
            entry.handed_over();
        }
        let last = head.closes() || gate.is_draining() || (!known && served >= STRANGER);
        if last {
            let _ = timeout(FAREWELL, tls.farewell(&reply.encode(true))).await;
            return Ok(());
        }
        let sent = timeout(within, tls.write_all(&reply.encode(false))).await;
        if !matches!(sent, Ok(Ok(()))) {
            return Ok(());
        }
        let idle = if known { IDLE } else { within };
        let next = tokio::select! {
            next = read_head(&mut tls) => next,
            () = sleep(idle) => return Ok(()),
            () = draining(gate) => return Ok(()),
        };
        (head, length) = match next {
            Ok((head, length)) if door(path(&head)) == Some(caller.door) => (head, length),
            // Another door wants a connection of its own.
            Ok(_) => {
                farewell(tls, Status::NotFound).await;
                return Ok(());
            }
            Err((Some(status), refused)) => {
                farewell(tls, status).await;
                return Err(refused);
            }
            Err((None, _)) => return Ok(()),
        };
    }
    Ok(())
}

fn path(head: &Head) -> &str {
    head.target.split('?').next().unwrap_or_default()
}

async fn farewell(mut tls: Tls, status: Status) {
    let _ = timeout(FAREWELL, tls.farewell(status.response(status.text()).as_bytes())).await;
}

async fn draining(gate: &Gate) {
    while !gate.is_draining() {
        sleep(LOOK).await;
    }
}

async fn read_body(tls: &mut Tls, head: &Head, length: usize) -> Result<Vec<u8>, Refused> {
    let closed = |error| Refused::new("client_closed", error);
    if length > Limits::REQUEST.bytes {
        let _ = timeout(FAREWELL, tls.farewell(&Reply::empty("413 Content Too Large").encode(true))).await;
        return Err(Refused::new("bad_request", "a body that is too large"));
    }
    if head.header("expect").is_some_and(|expect| expect.eq_ignore_ascii_case("100-continue")) {
        tls.write_all(CONTINUE).await.map_err(closed)?;
    }
    let mut body = Vec::new();
    while body.len() < length {
        let more = tls.read().await.map_err(closed)?;
        if more.is_empty() {
            return Err(Refused::new("client_closed", "closed inside a request"));
        }
        body.extend_from_slice(&more);
    }
    let behind = body.split_off(length);
    tls.unread_mut().splice(0..0, behind);
    Ok(body)
}

/// The answer, and whether it was given to somebody who is known.
async fn respond(
    gate: &Arc<Gate>,
    caller: &Caller,
    head: &Head,
    body: Vec<u8>,
    certified: bool,
) -> (Reply, bool) {
    match caller.door {
        Door::Sdk => sdk::respond(gate, caller, head, body).await,
        Door::Desk if gate.config.load().desk.is_some() => {
            desk::respond(gate, caller, head, body, certified).await
        }
        _ => (Reply::empty("404 Not Found"), false),
    }
}
