//! The status page, on the loopback port or before the admin socket: three files that were built in, and nothing from anybody
//! else.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::error::ApiError;

/// Scripts, styles and data of our own, and nothing else: no inline script, no frame around it, no other host.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page's files.
pub(super) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new().route("/", get(index)).route("/status.js", get(script)).route("/status.css", get(style))
}

/// Lets those in who call this host by its loopback names, or by one that the operator gave it. A page of somebody else's whose name was made to lead to 127.0.0.1
/// (DNS rebinding) is of one origin with what it reads here, but comes with its own name.
pub(super) async fn named_as_ours(
    State(names): State<Arc<[String]>>,
    request: Request,
    next: Next,
) -> Response {
    // A browser always sends it; without it there is a program that means what it does.
    let name = request.headers().get(header::HOST).map(|host| host.to_str().unwrap_or_default());
    match name {
        Some(host) if !is_ours(host, &names) => ApiError::new(
            StatusCode::MISDIRECTED_REQUEST,
            "this port does not answer to that name (Host)",
            "ask for 127.0.0.1, [::1] or localhost; the service's own port also answers to admin.metrics_names",
        )
        .into_response(),
        _ => next.run(request).await,
    }
}

/// `localhost`, an address of loopback or one of `names`, with any port: who comes through `ssh -L` has another one.
fn is_ours(host: &str, names: &[String]) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.is_empty() => name,
        _ => host,
    };
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || bare.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
        || names.iter().any(|known| known.eq_ignore_ascii_case(bare))
}

async fn index() -> Response {
    file("text/html; charset=utf-8", include_str!("status/index.html"))
}

async fn script() -> Response {
    file("text/javascript; charset=utf-8", include_str!("status/status.js"))
}

async fn style() -> Response {
    file("text/css; charset=utf-8", include_str!("status/status.css"))
}

fn file(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_loopback_are_told_from_others() {
        for ours in
            ["localhost", "LocalHost:80", "127.0.0.1", "127.0.0.1:9465", "127.9.9.9:1", "[::1]", "[::1]:9465"]
        {
            assert!(is_ours(ours, &[]), "{ours}");
        }
        for other in [
            "",
            ":80",
            "x",
            "evil.example",
            "evil.example:9465",
            "127.0.0.1.evil.example",
            "localhost.evil.example:80",
            "10.0.0.1:80",
            "0.0.0.0:80",
            "[fe80::1]:80",
            "127.0.0.1:80@evil.example",
            "evil.example:127.0.0.1",
        ] {
            assert!(!is_ours(other, &[]), "{other}");
        }
    }
}
