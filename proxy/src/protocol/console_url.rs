//! The addresses under which browsers ask for a console, and the pages that may do so.

use thiserror::Error;

/// A request for a console.
#[derive(Clone, PartialEq, Eq)]
pub struct ConsoleUrl {
    /// The sealed ticket, decoded.
    pub ticket: String,
    /// The form of vCloud Director, `/{port};{ticket}`: the client expects to be asked for the VM in-band.
    pub asks_vmx: bool,
}

impl std::fmt::Debug for ConsoleUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsoleUrl").field("ticket", &"(secret)").field("asks_vmx", &self.asks_vmx).finish()
    }
}

/// A path of a console without a ticket that could be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the address holds no ticket, or one that is not percent-encoded as it should be")]
pub struct BadTicket;

impl ConsoleUrl {
    /// `None`: the target is no console's. The ticket is everything behind the first `;` (or behind `/ticket/`), raw or
    /// percent-encoded: it may hold `/`, `+`, `=` and `?`, so nothing is split or normalised.
    pub fn parse(target: &str) -> Option<Result<Self, BadTicket>> {
        let (raw, asks_vmx) = match target.strip_prefix("/ticket/") {
            Some(ticket) => (ticket, false),
            None => (cell_form(target)?, true),
        };
        Some(decode(raw).map(|ticket| Self { ticket, asks_vmx }))
    }
}

/// What follows the `;` in `/{port};`.
fn cell_form(target: &str) -> Option<&str> {
    let (port, ticket) = target.strip_prefix('/')?.split_once(';')?;
    let digits = (1..=5).contains(&port.len()) && port.bytes().all(|b| b.is_ascii_digit());
    (digits && port.parse::<u16>().is_ok()).then_some(ticket)
}

fn decode(raw: &str) -> Result<String, BadTicket> {
    let mut out = Vec::with_capacity(raw.len());
    let mut bytes = raw.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16)).ok_or(BadTicket);
        out.push((digit()? << 4 | digit()?) as u8);
    }
    let ticket = String::from_utf8(out).map_err(|_| BadTicket)?;
    let printable = !ticket.is_empty() && ticket.bytes().all(|b| b.is_ascii_graphic());
    if printable { Ok(ticket) } else { Err(BadTicket) }
}

/// Whether a page of this origin may open a console. Only browsers send an origin; without one there is no page that
/// could be foreign. `host` is the request's own `Host`.
pub fn may_open(origin: Option<&str>, host: Option<&str>, allowed: &[String]) -> bool {
    let Some(origin) = origin else { return true };
    let same = |host: &str| {
        let mine = origin.strip_prefix("https://");
        mine.is_some_and(|o| without_port(o).eq_ignore_ascii_case(without_port(host)))
    };
    host.is_some_and(same) || allowed.iter().any(|a| a.eq_ignore_ascii_case(origin))
}

/// Drops `:443`, which a browser leaves out and others write.
fn without_port(host: &str) -> &str {
    host.strip_suffix(":443").unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_form_gives_the_same_ticket() {
        for target in ["/902;a/b+c==", "/902;a%2Fb%2bc%3D%3D", "/ticket/a/b+c==", "/ticket/a%2Fb+c%3d="] {
            let url = ConsoleUrl::parse(target).unwrap().unwrap();
            assert_eq!((url.ticket.as_str(), url.asks_vmx), ("a/b+c==", target.starts_with("/9")));
            assert!(!format!("{url:?}").contains("a/b"));
        }
        assert_eq!(ConsoleUrl::parse("/443;x;y//z/../?q").unwrap().unwrap().ticket, "x;y//z/../?q");
    }

    #[test]
    fn other_paths_are_no_consoles_and_bad_tickets_are_said_to_be() {
        for target in
            ["/", "/console/", "/;x", "/99999;x", "/a;x", "//902;x", "/ticket", "/../ticket/x", "902;x", "*"]
        {
            assert!(ConsoleUrl::parse(target).is_none(), "{target}");
        }
        for target in
            ["/902;", "/ticket/", "/ticket/%", "/ticket/%4", "/ticket/%zz", "/ticket/%00", "/ticket/%ff"]
        {
            assert_eq!(ConsoleUrl::parse(target), Some(Err(BadTicket)), "{target}");
        }
    }

    #[test]
    fn foreign_pages_are_refused() {
        let portal = ["https://portal.example".to_owned()];
        let may = |origin: &str, host: &str| may_open(Some(origin), Some(host), &portal);
        assert!(may("https://console.example", "console.example"));
        assert!(may("https://Console.example", "console.example:443"));
        assert!(may("https://console.example:8443", "console.example:8443"));
        assert!(may("https://portal.example", "console.example"));
        assert!(!may("https://console.example:8443", "console.example"));
        assert!(!may("http://console.example", "console.example"));
        assert!(!may("https://evil.example", "console.example"));
        assert!(!may("null", "console.example"));
        assert!(may_open(None, None, &[]) && !may_open(Some("https://x"), None, &[]));
    }

    proptest! {
        #[test]
        fn encoding_changes_nothing(ticket in "[!-~]{1,80}") {
            let encoded: String = ticket.bytes().map(|b| format!("%{b:02x}")).collect();
            let url = ConsoleUrl::parse(&format!("/902;{encoded}")).unwrap().unwrap();
            prop_assert_eq!(url.ticket, ticket);
        }

        #[test]
        fn any_target_is_answered(target in "\\PC{0,60}") {
            let _ = ConsoleUrl::parse(&target);
        }
    }
}
