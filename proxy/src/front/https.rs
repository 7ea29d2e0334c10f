//! TLS 443: an HTTP/1.1 request tells which door is meant.

use std::sync::Arc;

use rustls::server::UnbufferedServerConnection;
use tokio::time::timeout;

use super::{FAREWELL, Refused, authd, dialogue};
use crate::admission::Entry;
use crate::gate::{Caller, Gate};
use crate::metrics::Door;
use crate::protocol::http::{self, Head, HeadError, Status};
use crate::tls::TlsStream;
use crate::wire::{Runtime, Wire};

type Tls = TlsStream<UnbufferedServerConnection>;

/// TLS, one request head, then the door it names.
pub(super) async fn serve(
    gate: &Arc<Gate>,
    caller: Caller,
    wire: Wire,
    entry: Entry,
    early: Vec<u8>,
    runtime: Runtime,
) -> Result<(), Refused> {
    let not_tls = Status::BadRequest.response("This port speaks TLS: use https.");
    let mut tls = authd::shake_hands(gate, &caller, wire, early, not_tls).await?;
    let within = gate.config.load().deadlines.handshake;
    let head = match timeout(within, read_head(&mut tls)).await {
        Ok(Ok(head)) => head,
        Ok(Err((Some(status), refused))) => return Err(answer(tls, status, refused).await),
        Ok(Err((None, refused))) => return Err(refused),
        Err(_) => {
            let refused = Refused::new("deadline_request", "no whole request in time");
            return Err(answer(tls, Status::Timeout, refused).await);
        }
    };
    match route(&head) {
        Ok(Route::Mks) => {
            let switched = tls.write_all(http::SWITCH_TO_MKS).await;
            switched.map_err(|e| Refused::new("client_closed", e))?;
            dialogue::run(gate, Caller { door: Door::Mks, ..caller }, tls, entry, runtime).await
        }
        Err(status) => {
            let refused = Refused::new("bad_request", status.as_str());
            Err(answer(tls, status, refused).await)
        }
    }
}

/// The doors behind TLS 443.
enum Route {
    /// `GET /mks`, `Upgrade: mks`.
    Mks,
}

fn route(head: &Head) -> Result<Route, Status> {
    let path = head.target.split('?').next().unwrap_or_default();
    match path {
        "/mks" if head.method != "GET" => Err(Status::MethodNotAllowed),
        "/mks" if !head.upgrades_to("mks") => Err(Status::UpgradeRequired),
        "/mks" => Ok(Route::Mks),
        _ => Err(Status::NotFound),
    }
}

/// Reads one head; what was received behind it stays in the stream.
async fn read_head(tls: &mut Tls) -> Result<Head, (Option<Status>, Refused)> {
    let mut buffer = Vec::new();
    loop {
        let more = tls.read().await.map_err(|error| (None, Refused::new("client_closed", error)))?;
        if more.is_empty() {
            return Err((None, Refused::new("client_closed", "closed before a request")));
        }
        buffer.extend_from_slice(&more);
        match Head::parse(&buffer) {
            Ok(Some((head, len))) => {
                tls.unread_mut().splice(0..0, buffer.drain(len..));
                return Ok(head);
            }
            Ok(None) => {}
            Err(error) => {
                let status = match error {
                    HeadError::TooLarge => Status::HeadTooLarge,
                    HeadError::Malformed | HeadError::Body => Status::BadRequest,
                };
                return Err((Some(status), Refused::new("bad_request", error)));
            }
        }
    }
}

async fn answer(mut tls: Tls, status: Status, refused: Refused) -> Refused {
    let response = status.response(status.text());
    let _ = timeout(FAREWELL, tls.farewell(response.as_bytes())).await;
    refused
}
