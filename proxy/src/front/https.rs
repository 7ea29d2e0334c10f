//! TLS 443: an HTTP/1.1 request tells which door is meant.

use std::sync::Arc;

use rustls::server::UnbufferedServerConnection;
use tokio::time::timeout;

use super::{FAREWELL, Refused, api, authd, console, dialogue, page};
use crate::admission::Entry;
use crate::gate::{Caller, Gate};
use crate::metrics::Door;
use crate::protocol::console_url::ConsoleUrl;
use crate::protocol::http::{self, Head, HeadError, Status};
use crate::tls::TlsStream;
use crate::wire::{Runtime, Wire};

/// Requests of one connection: a browser fetches the page's files over a few connections, one after the other.
const PAGE_REQUESTS: usize = 64;

pub(super) type Tls = TlsStream<UnbufferedServerConnection>;

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
    for left in (0..PAGE_REQUESTS).rev() {
        let (head, body) = match timeout(within, read_head(&mut tls)).await {
            Ok(Ok((head, body))) => (head, body),
            Ok(Err((Some(status), refused))) => return Err(answer(tls, status, refused).await),
            Ok(Err((None, _))) if left + 1 < PAGE_REQUESTS => return Ok(()),
            Ok(Err((None, refused))) => return Err(refused),
            Err(_) if left + 1 < PAGE_REQUESTS => return Ok(()),
            Err(_) => {
                let refused = Refused::new("deadline_request", "no whole request in time");
                return Err(answer(tls, Status::Timeout, refused).await);
            }
        };
        let refused = |status: Status| Refused::new("bad_request", status.as_str());
        match route(&head) {
            Ok(Route::Api(door)) => {
                return api::serve(gate, Caller { door, ..caller }, tls, entry, head, body).await;
            }
            _ if body > 0 => {
                return Err(answer(tls, Status::BadRequest, refused(Status::BadRequest)).await);
            }
            Ok(Route::Mks) => {
                let switched = tls.write_all(http::SWITCH_TO_MKS).await;
                switched.map_err(|e| Refused::new("client_closed", e))?;
                return dialogue::run(gate, Caller { door: Door::Mks, ..caller }, tls, entry, runtime).await;
            }
            Ok(Route::Console(url)) => {
                let caller = Caller { door: Door::Web, ..caller };
                return match console::check(gate, &head) {
                    Ok(upgrade) => console::run(gate, caller, tls, entry, runtime, url, upgrade).await,
                    Err((status, text)) => Err(answer_with(tls, status, &text, refused(status)).await),
                };
            }
            Ok(Route::Page) if left == 0 || head.closes() => {
                let _ = timeout(within, tls.farewell(&page::respond(&head, true))).await;
                return Ok(());
            }
            Ok(Route::Page) => {
                let response = page::respond(&head, false);
                let answered = timeout(within, tls.write_all(&response)).await;
                if !matches!(answered, Ok(Ok(()))) {
                    return Ok(());
                }
            }
            Err(status) => return Err(answer(tls, status, refused(status)).await),
        }
    }
    Ok(())
}

/// The doors behind TLS 443.
enum Route {
    /// `GET /mks`, `Upgrade: mks`.
    Mks,
    /// `GET /ticket/{ticket}` or `GET /{port};{ticket}`: a WebSocket.
    Console(ConsoleUrl),
    /// `GET /console/…`.
    Page,
    /// `POST /sdk`, `/api/…`, `/v1/…`: requests and answers.
    Api(Door),
}

fn route(head: &Head) -> Result<Route, Status> {
    if let Some(url) = ConsoleUrl::parse(&head.target) {
        return url.map(Route::Console).map_err(|_| Status::BadRequest);
    }
    let path = head.target.split('?').next().unwrap_or_default();
    match path {
        "/mks" if head.method != "GET" => Err(Status::MethodNotAllowed),
        "/mks" if !head.upgrades_to("mks") => Err(Status::UpgradeRequired),
        "/mks" => Ok(Route::Mks),
        path if api::door(path).is_some() => api::door(path).map(Route::Api).ok_or(Status::NotFound),
        path if page::is_page(path) => Ok(Route::Page),
        _ => Err(Status::NotFound),
    }
}

/// Reads one head and how long its body is; what was received behind it stays in the stream.
pub(super) async fn read_head(tls: &mut Tls) -> Result<(Head, usize), (Option<Status>, Refused)> {
    let mut buffer = Vec::new();
    loop {
        let more = tls.read().await.map_err(|error| (None, Refused::new("client_closed", error)))?;
        if more.is_empty() {
            return Err((None, Refused::new("client_closed", "closed before a request")));
        }
        buffer.extend_from_slice(&more);
        match Head::parse_with_body(&buffer) {
            Ok(Some((head, len, body))) => {
                tls.unread_mut().splice(0..0, buffer.drain(len..));
                return Ok((head, body));
            }
            Ok(None) => {}
            Err(error) => {
                let status = match error {
                    HeadError::TooLarge => Status::HeadTooLarge,
                    HeadError::TargetTooLong => Status::TargetTooLong,
                    HeadError::Malformed | HeadError::Body => Status::BadRequest,
                };
                return Err((Some(status), Refused::new("bad_request", error)));
            }
        }
    }
}

async fn answer_with(mut tls: Tls, status: Status, text: &str, refused: Refused) -> Refused {
    let response = status.response(text);
    let _ = timeout(FAREWELL, tls.farewell(response.as_bytes())).await;
    refused
}

async fn answer(tls: Tls, status: Status, refused: Refused) -> Refused {
    answer_with(tls, status, status.text(), refused).await
}
