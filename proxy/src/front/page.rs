//! `GET /console/`: the console page, embedded at build time. A closed list of files; nothing is ever looked up on disk.

use crate::protocol::http::Head;

include!(concat!(env!("OUT_DIR"), "/console.rs"));

/// What a browser may do on the page: scripts, styles and pictures of our own, WebSockets to where the page came from.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'; manifest-src 'none'";

/// Said where the page was left out of the build.
const ABSENT: &str = "This build holds no console page: it was made without Node.js and npm. Any viewer that speaks RFB over WebSocket can use wss://<this host>/ticket/<ticket>.\n";

/// Whether this build holds the page.
pub fn is_built() -> bool {
    !FILES.is_empty()
}

/// Whether the path belongs to the page.
pub(super) fn is_page(path: &str) -> bool {
    path == "/console" || path.starts_with("/console/")
}

/// The whole response; `last`: the connection closes behind it.
pub(super) fn respond(head: &Head, last: bool) -> Vec<u8> {
    let path = head.target.split('?').next().unwrap_or_default();
    if !matches!(head.method.as_str(), "GET" | "HEAD") {
        return response(
            "405 Method Not Allowed",
            "text/plain; charset=utf-8",
            b"Only GET is taken here.\n",
            true,
            last,
            "Allow: GET, HEAD\r\n",
        );
    }
    let with_body = head.method == "GET";
    if path == "/console" {
        return response(
            "308 Permanent Redirect",
            "text/plain; charset=utf-8",
            b"",
            with_body,
            last,
            "Location: /console/\r\n",
        );
    }
    let name = path.strip_prefix("/console/").unwrap_or_default();
    let name = if name.is_empty() { "index.html" } else { name };
    match FILES.binary_search_by_key(&name, |(name, _)| name) {
        Ok(at) => response("200 OK", kind(name), FILES[at].1, with_body, last, ""),
        Err(_) if FILES.is_empty() => {
            response("404 Not Found", "text/plain; charset=utf-8", ABSENT.as_bytes(), with_body, last, "")
        }
        Err(_) => response(
            "404 Not Found",
            "text/plain; charset=utf-8",
            b"There is nothing here.\n",
            with_body,
            last,
            "",
        ),
    }
}

fn response(status: &str, kind: &str, body: &[u8], with_body: bool, last: bool, extra: &str) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nCache-Control: no-store\r\nContent-Security-Policy: {POLICY}\r\nX-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\nCross-Origin-Opener-Policy: same-origin\r\nCross-Origin-Resource-Policy: same-origin\r\nPermissions-Policy: camera=(), geolocation=(), microphone=(), clipboard-read=(self), clipboard-write=(self), fullscreen=(self)\r\n{extra}{}\r\n",
        body.len(),
        if last { "Connection: close\r\n" } else { "" }
    );
    let mut bytes = head.into_bytes();
    if with_body {
        bytes.extend_from_slice(body);
    }
    bytes
}

fn kind(name: &str) -> &'static str {
    match name.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "text/plain; charset=utf-8",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(request: &str) -> String {
        let head =
            Head::parse(format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap().unwrap().0;
        String::from_utf8_lossy(&respond(&head, true)).into_owned()
    }

    #[test]
    fn only_what_is_listed_is_there() {
        assert!(FILES.is_sorted_by_key(|(name, _)| name));
        for path in [
            "/console/../etc/passwd",
            "/console//index.html",
            "/console/%2e%2e/x",
            "/console/x",
            "/console/./",
        ] {
            assert!(ask(&format!("GET {path}")).starts_with("HTTP/1.1 404"), "{path}");
        }
        assert!(ask("GET /console").contains("308") && ask("POST /console/").contains("405"));
    }

    #[test]
    fn nothing_is_cached_and_the_policy_is_strict() {
        let page = ask("GET /console/");
        assert!(page.contains("Cache-Control: no-store\r\n") && page.contains("default-src 'none'"));
        assert!(!POLICY.contains("unsafe") && !POLICY.contains("http"));
        let status = if FILES.is_empty() { "404" } else { "200" };
        assert!(page.starts_with(&format!("HTTP/1.1 {status}")), "{page:.100}");
        assert!(ask("HEAD /console/").ends_with("\r\n\r\n"));
    }
}
