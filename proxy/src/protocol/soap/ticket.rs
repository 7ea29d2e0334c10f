//! Console tickets as a vCenter gives them out.

use super::element::Element;
use super::parse::SoapError;
use super::request::returned;
use super::version::Version;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// `VirtualMachineTicket` or `VirtualMachineMksTicket`.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct ConsoleTicket {
    /// The secret: user name and password at the host, or the path of its WebSocket.
    pub ticket: String,
    /// The VM's configuration file.
    pub cfg_file: String,
    /// The host; the server that was asked where absent.
    pub host: Option<String>,
    /// Its port; 902 (443 for `webmks`) where absent.
    pub port: Option<u16>,
    /// Thumbprints of the host's certificate, as they came.
    pub thumbprints: Vec<String>,
    /// `wss://host:443/ticket/…`, for `webmks`.
    pub url: Option<String>,
}

/// Without the ticket.
impl std::fmt::Debug for ConsoleTicket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsoleTicket")
            .field("cfg_file", &self.cfg_file)
            .field("host", &self.host)
            .field("port", &self.port)
            .field("thumbprints", &self.thumbprints)
            .finish_non_exhaustive()
    }
}

impl ConsoleTicket {
    /// From the answer to `AcquireTicket` or `AcquireMksTicket`.
    pub fn from_answer(operation: &str, answer: &Element) -> Result<Self, SoapError> {
        let value = returned(operation, answer)?.ok_or(SoapError::Missing("returnval"))?;
        let text = |name: &str| value.child_text(name).map(str::to_owned);
        let mut thumbprints: Vec<String> = text("sslThumbprint").into_iter().collect();
        for listed in value.all("certThumbprintList").filter_map(|entry| entry.child_text("thumbprint")) {
            if !thumbprints.iter().any(|known| known == listed) {
                thumbprints.push(listed.to_owned());
            }
        }
        let port = match value.child_text("port") {
            None | Some("0") => None,
            Some(port) => Some(port.parse().map_err(|_| SoapError::Missing("port"))?),
        };
        Ok(Self {
            ticket: text("ticket").ok_or(SoapError::Missing("ticket"))?,
            cfg_file: text("cfgFile").ok_or(SoapError::Missing("cfgFile"))?,
            host: text("host"),
            port,
            thumbprints,
            url: text("url"),
        })
    }

    /// The answer to `operation` that says this to a client of this version: the list of thumbprints came with 7.0.3.1, the
    /// URL with 7.0, and clients fail on what their version does not know. `AcquireMksTicket` never had either.
    pub fn answer(&self, operation: &str, version: &Version) -> Element {
        // By its length in characters: 20 bytes and their colons.
        let sha1 = self.thumbprints.iter().find(|t| t.len() == 59);
        let mut value = Element::new("returnval")
            .has("ticket", self.ticket.as_str())
            .has("cfgFile", self.cfg_file.as_str())
            .with_some(self.host.as_ref().map(|host| Element::text("host", host.as_str())))
            .with_some(self.port.map(|port| Element::text("port", port.to_string())))
            .with_some(sha1.map(|t| Element::text("sslThumbprint", t.as_str())));
        if operation != "AcquireTicket" {
            return Element::new(format!("{operation}Response")).with(value);
        }
        let listed = self.thumbprints.iter().filter(|_| version.is_at_least(&[7, 0, 3, 1]));
        for (print, algorithm) in listed.filter_map(|t| match t.len() {
            59 => Some((t, "SHA-1")),
            95 => Some((t, "SHA-256")),
            _ => None,
        }) {
            let entry = Element::new("certThumbprintList");
            value = value.with(entry.has("thumbprint", print.as_str()).has("hashAlgorithm", algorithm));
        }
        let url = self.url.as_ref().filter(|_| version.is_at_least(&[7, 0]));
        value = value.with_some(url.map(|url| Element::text("url", url.as_str())));
        Element::new("AcquireTicketResponse").with(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::soap::{Message, envelope};

    #[test]
    fn a_ticket_goes_in_and_comes_out() {
        let sha1 = ["AB"; 20].join(":");
        let sha256 = ["CD"; 32].join(":");
        let ticket = ConsoleTicket {
            ticket: "cst-<&>".into(),
            cfg_file: "[ds 1] web (1)/web.vmx".into(),
            host: Some("console.example".into()),
            port: Some(443),
            thumbprints: vec![sha1.clone(), sha256],
            url: Some("wss://console.example:443/ticket/x".into()),
        };
        let text = envelope(&ticket.answer("AcquireTicket", &Version::parse("8.0.0.0")));
        let Message::Body(answer) = Message::answer(&text).unwrap() else { panic!() };
        assert_eq!(ConsoleTicket::from_answer("AcquireTicket", &answer).unwrap(), ticket);
        let Message::Body(answer) =
            Message::answer(&envelope(&ticket.answer("AcquireMksTicket", &Version::parse("8.0.0.0"))))
                .unwrap()
        else {
            panic!()
        };
        let old = ConsoleTicket::from_answer("AcquireMksTicket", &answer).unwrap();
        assert_eq!((&old.thumbprints, &old.url), (&vec![sha1], &None));
        assert!(ConsoleTicket::from_answer("AcquireTicket", &answer).is_err());
    }

    #[test]
    fn an_old_client_is_told_nothing_it_does_not_know() {
        let ticket = ConsoleTicket {
            ticket: "t".into(),
            cfg_file: "c".into(),
            host: None,
            port: None,
            thumbprints: vec![["AB"; 20].join(":")],
            url: Some("wss://h/ticket/t".into()),
        };
        let names = |version: &str| -> Vec<String> {
            let answer = ticket.answer("AcquireTicket", &Version::parse(version));
            answer.children[0].children.iter().skip(2).map(|child| child.name.clone()).collect()
        };
        assert_eq!(names("6.5"), ["sslThumbprint"]);
        assert_eq!(names("7.0"), ["sslThumbprint", "url"]);
        assert_eq!(names("8.0.0.0"), ["sslThumbprint", "certThumbprintList", "url"]);
    }

    #[test]
    fn host_and_port_may_be_absent() {
        let answer = Element::new("AcquireTicketResponse")
            .with(Element::new("returnval").has("ticket", "t").has("cfgFile", "c").has("port", "0"));
        let ticket = ConsoleTicket::from_answer("AcquireTicket", &answer).unwrap();
        assert_eq!((&ticket.host, ticket.port), (&None, None));
        let without =
            Element::new("AcquireTicketResponse").with(Element::new("returnval").has("ticket", "t"));
        assert_eq!(ConsoleTicket::from_answer("AcquireTicket", &without), Err(SoapError::Missing("cfgFile")));
    }
}
