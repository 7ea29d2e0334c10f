//! `POST /v1/tickets`: tickets for portals that know a token, or show a certificate.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use serde::Deserialize;
use serde_json::json;

use super::mint::{MintError, mint};
use super::{Person, lock};
use crate::client::url::mks_url;
use crate::gate::{Caller, Gate};
use crate::protocol::http::Head;
use crate::protocol::reply::Reply;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    org: String,
    user: String,
    vm: String,
    source: Option<IpAddr>,
}

pub(super) async fn respond(
    gate: &Arc<Gate>,
    caller: &Caller,
    head: &Head,
    body: &[u8],
    certified: bool,
    now: SystemTime,
) -> (Reply, bool) {
    let path = head.target.split('?').next().unwrap_or_default();
    if path != "/v1/tickets" {
        return (error("404 Not Found", "there is nothing here; POST /v1/tickets"), false);
    }
    if head.method != "POST" {
        return (error("405 Method Not Allowed", "only POST is taken here").header("Allow", "POST"), false);
    }
    match if certified { Ok(true) } else { authorised(gate, caller, head) } {
        Ok(true) => {}
        Ok(false) => {
            gate.metrics.refused(caller.door, "", "desk_login");
            return (
                error(
                    "401 Unauthorized",
                    "a portal shows its certificate, or its token: Authorization: Bearer …",
                )
                .header("WWW-Authenticate", "Bearer"),
                false,
            );
        }
        Err(status) => return (error(status, "not now"), false),
    }
    let wanted: Wanted = match serde_json::from_slice(body) {
        Ok(wanted) => wanted,
        Err(_) => {
            return (
                error(
                    "400 Bad Request",
                    "the body is {\"org\": …, \"user\": …, \"vm\": …, \"source\": optional address}",
                ),
                true,
            );
        }
    };
    let person = Person { user: wanted.user, org: wanted.org };
    match mint(gate, &person, &wanted.vm, wanted.source, now).await {
        Ok(minted) => {
            let host = gate.console_authority(caller);
            let body = json!({
                "ticket": minted.sealed,
                "url": mks_url(&host, &minted.claims.vm, &minted.sealed),
                "jti": minted.claims.jti,
                "expires": minted.claims.exp,
            });
            (Reply::new("201 Created", "application/json", format!("{body}\n")), true)
        }
        Err(why) => {
            gate.metrics.refused(caller.door, "", why.as_str());
            let (status, text) = match &why {
                MintError::NotYours => ("403 Forbidden", "no such VM in that org"),
                MintError::Vcenter(_) => ("503 Service Unavailable", "the vCenter does not answer just now"),
                MintError::Broken(_) => ("500 Internal Server Error", "the ticket could not be made"),
            };
            if !matches!(why, MintError::NotYours) {
                tracing::error!(?why, "a ticket could not be minted");
            }
            (error(status, text), true)
        }
    }
}

/// Whether the request shows the portal's token. Tries are limited like logins.
fn authorised(gate: &Gate, caller: &Caller, head: &Head) -> Result<bool, &'static str> {
    let config = gate.config.load();
    let Some(desk) = &config.desk else { return Ok(false) };
    let (Some(file), Some(shown)) = (&desk.token, head.header("authorization")) else { return Ok(false) };
    let source = crate::admission::source_of(caller.source.ip());
    if !lock(&gate.desk.by_source).take(source, desk.attempts_per_source, std::time::Instant::now()) {
        return Err("429 Too Many Requests");
    }
    let token = file.read().map_err(|why| {
        tracing::error!(why, "no portal can be told by its token");
        "503 Service Unavailable"
    })?;
    let shown = shown.strip_prefix("Bearer ").unwrap_or_default().trim();
    let right = aws_lc_rs::constant_time::verify_slices_are_equal(shown.as_bytes(), token.as_bytes()).is_ok();
    if right {
        lock(&gate.desk.by_source).give_back(&source);
    }
    Ok(right)
}

fn error(status: &'static str, text: &str) -> Reply {
    Reply::new(status, "application/json", format!("{}\n", json!({ "error": text })))
}
