//! The addresses under which portals hand out consoles. Pure: text in, parts out.

use std::fmt;

use thiserror::Error;
use zeroize::Zeroizing;

use crate::tls::Thumbprint;

/// A console, as a portal's URL names it.
#[derive(Clone, PartialEq, Eq)]
pub struct ConsoleUrl {
    /// Name or address of the gate, IPv6 without brackets.
    pub host: String,
    /// Its port, where the URL names one.
    pub port: Option<u16>,
    /// What to ask for in CONNECT.
    pub vm: String,
    /// The ticket. Secret.
    pub ticket: Zeroizing<String>,
    /// The certificate of TLS no. 1, where the URL pins it.
    pub thumbprint: Option<Thumbprint>,
}

/// Why a text is no console URL that can be opened here. The URL is not repeated: it holds a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum UrlError {
    /// Another scheme.
    #[error(
        "not a console URL: mks://HOST[:PORT]/VM?ticket=… or vmrc://HOST[:PORT]/?mksticket=…&path=… is expected"
    )]
    Scheme,
    /// No usable host or port.
    #[error("the URL's host or port is missing or malformed")]
    Authority,
    /// No ticket.
    #[error("the URL holds no ticket (mks://…?ticket= or vmrc://…?mksticket=)")]
    NoTicket,
    /// No VM.
    #[error("the URL does not name the virtual machine (mks://HOST/VM or vmrc://…&path=)")]
    NoVm,
    /// `vmrc://clone:…`
    #[error("the URL holds a vSphere clone ticket; open it with `mksgate console`")]
    CloneTicket,
    /// `wss://…`
    #[error("the URL is for a browser's console; open it with `mksgate console`")]
    Browser,
    /// `https://…` of something else.
    #[error(
        "the URL is not a cell's: https://CELL/api/vApp/vm-61/screen/action/acquireTicket (or acquireMksTicket) is expected"
    )]
    Cell,
    /// A bad `%xx`, or a control character.
    #[error("the URL holds a malformed percent-encoding or a control character")]
    Encoding,
    /// A thumbprint that is none.
    #[error("the URL's thumbprint is neither a SHA-1 nor a SHA-256 in hexadecimal")]
    Thumbprint,
}

/// Whatever names a console.
#[derive(Debug, PartialEq, Eq)]
pub enum Address {
    /// `mks://…`, `vmrc://…?mksticket=`: a ticket for a raw door.
    Console(ConsoleUrl),
    /// `vmrc://clone:TICKET@HOST/?moid=vm-61`: a vCenter's clone ticket.
    Clone {
        /// The vCenter.
        host: String,
        /// Its port.
        port: u16,
        /// The clone ticket. Secret.
        ticket: Secret,
        /// The machine.
        moref: String,
    },
    /// `wss://HOST/ticket/T`, `wss://HOST/PORT;T`.
    Web {
        /// The server.
        host: String,
        /// Its port.
        port: u16,
        /// The path, ticket and all. Secret.
        path: Secret,
    },
    /// `https://CELL/api/vApp/vm-61/screen/action/acquireTicket`.
    Cell {
        /// The cell.
        host: String,
        /// Its port.
        port: u16,
        /// What to post to.
        path: String,
    },
}

/// A text that is not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub Zeroizing<String>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl Address {
    /// Reads any of the forms.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let text = text.trim();
        let (scheme, rest) = text.split_once("://").ok_or(UrlError::Scheme)?;
        let (authority, tail) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let server =
            |authority: &str| host_and_port(authority).map(|(host, port)| (host, port.unwrap_or(443)));
        match scheme.to_ascii_lowercase().as_str() {
            "https" => {
                let (host, port) = server(authority)?;
                Ok(Self::Cell { host, port, path: cell_path(tail).ok_or(UrlError::Cell)?.to_owned() })
            }
            "wss" => {
                let (host, port) = server(authority)?;
                // What follows is the server's to read: a ticket may hold anything.
                let form = crate::protocol::console_url::ConsoleUrl::parse(tail);
                let known = form.ok_or(UrlError::NoTicket)?;
                known.map_err(|_| UrlError::NoTicket)?;
                Ok(Self::Web { host, port, path: Secret(tail.to_owned().into()) })
            }
            "vmrc" if authority.contains('@') => clone(authority, tail),
            _ => ConsoleUrl::parse(text).map(Self::Console),
        }
    }
}

fn clone(authority: &str, tail: &str) -> Result<Address, UrlError> {
    let (user, server) = authority.rsplit_once('@').ok_or(UrlError::Authority)?;
    let ticket = user.strip_prefix("clone:").ok_or(UrlError::Authority)?;
    let (host, port) = host_and_port(server)?;
    let query = tail.split_once('?').map_or("", |(_, query)| query);
    let moref = parameter(query, "moid")?.filter(|moref| !moref.is_empty()).ok_or(UrlError::NoVm)?;
    let ticket = decode(ticket)?;
    if ticket.is_empty() {
        return Err(UrlError::NoTicket);
    }
    Ok(Address::Clone { host, port: port.unwrap_or(443), ticket: Secret(ticket.into()), moref })
}

/// `/api/vApp/vm-61/screen/action/acquireTicket` or `…/acquireMksTicket`; nothing else is posted to.
fn cell_path(tail: &str) -> Option<&str> {
    let (vm, action) = tail.strip_prefix("/api/vApp/")?.split_once("/screen/action/")?;
    let known = matches!(action, "acquireTicket" | "acquireMksTicket");
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    (known && !vm.is_empty() && vm.bytes().all(plain)).then_some(tail)
}

/// Whether the text wants to be a URL rather than a bare ticket: a sealed ticket holds no colon.
pub fn is_url(text: &str) -> bool {
    text.contains("://")
}

impl ConsoleUrl {
    /// Reads `mks://HOST[:PORT]/VM?ticket=T`, also with `/ticket=T`, and `vmrc://HOST[:PORT]/?mksticket=T&path=VM`.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let (scheme, rest) = text.trim().split_once("://").ok_or(UrlError::Scheme)?;
        let rest = rest.split_once('#').map_or(rest, |(rest, _)| rest);
        let (authority, tail) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        match scheme.to_ascii_lowercase().as_str() {
            "mks" => mks(authority, tail),
            "vmrc" => vmrc(authority, tail),
            "wss" | "ws" => Err(UrlError::Browser),
            _ => Err(UrlError::Scheme),
        }
    }
}

/// The `mks://` URL of a console; `host` may have a port.
pub fn mks_url(host: &str, vm: &str, ticket: &str) -> String {
    format!("mks://{host}/{}?ticket={}", encode(vm, b"/"), encode(ticket, b""))
}

impl fmt::Debug for ConsoleUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsoleUrl")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("vm", &self.vm)
            .field("thumbprint", &self.thumbprint)
            .finish_non_exhaustive()
    }
}

fn mks(authority: &str, tail: &str) -> Result<ConsoleUrl, UrlError> {
    let (host, port) = host_and_port(authority)?;
    // vCloud's manual shows the ticket behind a slash in its prose and behind a question mark in its samples.
    let (vm, query) = match tail.split_once('?') {
        Some((vm, query)) => (vm, query),
        None => tail.split_at(tail.find("/ticket=").ok_or(UrlError::NoTicket)?),
    };
    let query = query.trim_start_matches('/');
    let vm = decode(vm.strip_prefix('/').unwrap_or(vm))?;
    let ticket = parameter(query, "ticket")?.ok_or(UrlError::NoTicket)?;
    finish(ConsoleUrl { host, port, vm, ticket: ticket.into(), thumbprint: thumbprint(query)? })
}

fn vmrc(authority: &str, tail: &str) -> Result<ConsoleUrl, UrlError> {
    if authority.contains('@') {
        return Err(UrlError::CloneTicket);
    }
    let (host, port) = host_and_port(authority)?;
    let query = tail.split_once('?').map_or("", |(_, query)| query);
    let ticket = parameter(query, "mksticket")?.ok_or(UrlError::NoTicket)?;
    let vm = parameter(query, "path")?.unwrap_or_default();
    finish(ConsoleUrl { host, port, vm, ticket: ticket.into(), thumbprint: thumbprint(query)? })
}

fn finish(url: ConsoleUrl) -> Result<ConsoleUrl, UrlError> {
    match (url.ticket.is_empty(), url.vm.is_empty()) {
        (true, _) => Err(UrlError::NoTicket),
        (_, true) => Err(UrlError::NoVm),
        _ => Ok(url),
    }
}

/// `HOST`, `HOST:PORT`, `[V6]`, `[V6]:PORT`.
pub fn host_and_port(text: &str) -> Result<(String, Option<u16>), UrlError> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or(UrlError::Authority)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| UrlError::Authority)?;
            match rest {
                "" => (host, None),
                _ => (host, Some(rest.strip_prefix(':').ok_or(UrlError::Authority)?)),
            }
        }
        None if text.parse::<std::net::Ipv6Addr>().is_ok() => (text, None),
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let fits = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    let digits = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    if host.is_empty() || !host.chars().all(fits) || !port.is_none_or(digits) {
        return Err(UrlError::Authority);
    }
    let port = port.map(|port| port.parse().ok().filter(|port| *port != 0).ok_or(UrlError::Authority));
    Ok((host.to_owned(), port.transpose()?))
}

fn thumbprint(query: &str) -> Result<Option<Thumbprint>, UrlError> {
    let text = parameter(query, "thumbprint")?;
    text.map(|text| text.parse().map_err(|_| UrlError::Thumbprint)).transpose()
}

fn parameter(query: &str, name: &str) -> Result<Option<String>, UrlError> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    value.map(decode).transpose()
}

/// Percent-decoding. A plus stays a plus: tickets of vCloud are base64.
pub(super) fn decode(text: &str) -> Result<String, UrlError> {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.bytes());
    while let Some(byte) = rest.next() {
        let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16)).ok_or(UrlError::Encoding);
        bytes.push(if byte == b'%' { (digit()? << 4 | digit()?) as u8 } else { byte });
    }
    let text = String::from_utf8(bytes).map_err(|_| UrlError::Encoding)?;
    if text.contains(char::is_control) { Err(UrlError::Encoding) } else { Ok(text) }
}

fn encode(text: &str, also: &[u8]) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || also.contains(&byte) {
            encoded.push(byte.into());
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parts(text: &str) -> Result<(String, Option<u16>, String, String), UrlError> {
        let url = ConsoleUrl::parse(text)?;
        Ok((url.host, url.port, url.vm, url.ticket.to_string()))
    }

    #[test]
    fn the_forms_that_portals_hand_out() {
        let own =
            |host: &str, port, vm: &str, ticket: &str| Ok((host.into(), port, vm.into(), ticket.into()));
        for (text, expected) in [
            (
                "mks://10.147.43.171/vm-61?ticket=cst-%2Fa%3D+b",
                own("10.147.43.171", None, "vm-61", "cst-/a=+b"),
            ),
            ("mks://gate.example:902/vm-61/ticket=e.y", own("gate.example", Some(902), "vm-61", "e.y")),
            ("MKS://[2001:db8::1]:443/vm-61?ticket=e.y#x", own("2001:db8::1", Some(443), "vm-61", "e.y")),
            ("mks://[::1]/vm-61?x=y&ticket=e.y", own("::1", None, "vm-61", "e.y")),
            (
                "vmrc://esx:902/?mksticket=52-ab&thumbprint=&path=/vmfs/volumes/a%20b/c%20(1).vmx",
                Err(UrlError::Thumbprint),
            ),
            (
                "vmrc://esx:902/?mksticket=52-ab&path=/vmfs/volumes/a%20b/c%20(1).vmx",
                own("esx", Some(902), "/vmfs/volumes/a b/c (1).vmx", "52-ab"),
            ),
            ("vmrc://esx?mksticket=52&path=%5Bds%5D%20a.vmx", own("esx", None, "[ds] a.vmx", "52")),
        ] {
            assert_eq!(parts(text), expected, "{text}");
        }
        let url = ConsoleUrl::parse("mks://h/v?ticket=very-secret").unwrap();
        assert!(!format!("{url:?}").contains("very-secret"));
        let print = "A9:99:3E:36:47:06:81:6A:BA:3E:25:71:78:50:C2:6C:9C:D0:D8:9D";
        let url = ConsoleUrl::parse(&format!("vmrc://h/?mksticket=t&thumbprint={print}&path=p")).unwrap();
        assert_eq!(url.thumbprint.map(|t| t.to_string()).as_deref(), Some(print));
    }

    #[test]
    fn others_are_refused_in_words() {
        for (text, error) in [
            ("", UrlError::Scheme),
            ("http://h/vm?ticket=t", UrlError::Scheme),
            ("mks:/h/vm?ticket=t", UrlError::Scheme),
            ("mks:///vm?ticket=t", UrlError::Authority),
            ("mks://h:/vm?ticket=t", UrlError::Authority),
            ("mks://h:0/vm?ticket=t", UrlError::Authority),
            ("mks://h:+1/vm?ticket=t", UrlError::Authority),
            ("mks://h:65536/vm?ticket=t", UrlError::Authority),
            ("mks://[::1/vm?ticket=t", UrlError::Authority),
            ("mks://[::1]x/vm?ticket=t", UrlError::Authority),
            ("mks://user@h/vm?ticket=t", UrlError::Authority),
            ("mks://h/vm", UrlError::NoTicket),
            ("mks://h/vm?ticket=", UrlError::NoTicket),
            ("mks://h/vm?tickets=t", UrlError::NoTicket),
            ("mks://h/?ticket=t", UrlError::NoVm),
            ("mks://h?ticket=t", UrlError::NoVm),
            ("mks://h/vm?ticket=%4", UrlError::Encoding),
            ("mks://h/vm?ticket=%zz", UrlError::Encoding),
            ("mks://h/vm?ticket=a%0d%0aQUIT", UrlError::Encoding),
            ("mks://h/%ff?ticket=a", UrlError::Encoding),
            ("vmrc://h/?moid=vm-61", UrlError::NoTicket),
            ("vmrc://h/?mksticket=t", UrlError::NoVm),
            ("vmrc://clone:cst-VCT-1@h:443/?moid=vm-61", UrlError::CloneTicket),
            ("wss://h/ticket/t", UrlError::Browser),
        ] {
            assert_eq!(parts(text).err(), Some(error), "{text}");
        }
    }

    #[test]
    fn every_form_of_an_address_is_told_apart() {
        let secret = |text: &str| Secret(text.to_owned().into());
        let host = || "h.example".to_owned();
        for (text, expected) in [
            (
                "https://h.example/api/vApp/vm-61/screen/action/acquireTicket",
                Ok(Address::Cell {
                    host: host(),
                    port: 443,
                    path: "/api/vApp/vm-61/screen/action/acquireTicket".into(),
                }),
            ),
            (
                "vmrc://clone:cst-VCT-52ab--tp-AA-BB@h.example:8443/?moid=vm-61",
                Ok(Address::Clone {
                    host: host(),
                    port: 8443,
                    ticket: secret("cst-VCT-52ab--tp-AA-BB"),
                    moref: "vm-61".into(),
                }),
            ),
            (
                "wss://h.example/ticket/e.y+/=",
                Ok(Address::Web { host: host(), port: 443, path: secret("/ticket/e.y+/=") }),
            ),
            (
                "wss://h.example:8443/902;cst-//x=?a",
                Ok(Address::Web { host: host(), port: 8443, path: secret("/902;cst-//x=?a") }),
            ),
            ("https://h.example/api/vApp/vm-61/power/action/powerOff", Err(UrlError::Cell)),
            ("https://h.example/api/vApp/vm-6/1/screen/action/acquireTicket", Err(UrlError::Cell)),
            ("https://h.example/", Err(UrlError::Cell)),
            ("https://user@h.example/api/vApp/v/screen/action/acquireTicket", Err(UrlError::Authority)),
            ("wss://h.example/", Err(UrlError::NoTicket)),
            ("wss://h.example/ticket/", Err(UrlError::NoTicket)),
            ("vmrc://clone:@h.example/?moid=vm-61", Err(UrlError::NoTicket)),
            ("vmrc://clone:x@h.example/", Err(UrlError::NoVm)),
            ("vmrc://else:x@h.example/?moid=vm-61", Err(UrlError::Authority)),
            ("http://h.example/", Err(UrlError::Scheme)),
            ("mks://h.example/vm-61", Err(UrlError::NoTicket)),
        ] {
            assert_eq!(Address::parse(text), expected, "{text}");
        }
        assert!(matches!(Address::parse("mks://h/vm-61?ticket=t"), Ok(Address::Console(_))));
        let printed = format!("{:?}", Address::parse("wss://h/ticket/very-secret"));
        assert!(!printed.contains("very-secret"));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(vm in "[^\\pC]{1,40}", ticket in "[^\\pC]{1,60}") {
            let (host, port, v, t) = parts(&mks_url("[::1]:8443", &vm, &ticket)).unwrap();
            prop_assert_eq!((host.as_str(), port, v, t), ("::1", Some(8443), vm, ticket));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "(mks://|vmrc://)?\\PC{0,60}") {
            let _ = ConsoleUrl::parse(&text);
        }
    }
}
