//! What a ticket says (docs/ticket-format.md), as it stands inside the JWE.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::tls::Thumbprint;

/// Longest `jti`, `tenant`, `user`, `iss`, `aud`, in bytes.
const MAX_NAME: usize = 256;
/// Longest `vm`, `cfg_file` and target `ticket`, in bytes: they become words of a line of a protocol.
const MAX_WORD: usize = 2048;
/// Longest host name (RFC 1035 2.3.4).
const MAX_HOST: usize = 255;

/// Claims that no gate can act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ClaimError {
    /// Not the JSON of docs/ticket-format.md. What the JSON says is not repeated: it holds secrets.
    #[error(
        "the ticket's claims are not the JSON object of docs/ticket-format.md (missing, unknown or repeated member, or wrong type)"
    )]
    Json,
    /// A member whose value makes no sense.
    #[error("the ticket's claim {name:?} {why}")]
    Value {
        /// The member.
        name: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// The claims of a ticket. Times are whole seconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// Who minted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iss: Option<String>,
    /// The cell it is meant for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aud: Option<String>,
    /// Its own name: what logs, audit records and `ticket revoke` use.
    pub jti: String,
    /// When it was minted.
    pub iat: u64,
    /// Not valid before.
    pub nbf: u64,
    /// Not valid from this second on.
    pub exp: u64,
    /// The tenant whose limits and targets apply.
    pub tenant: String,
    /// The person.
    pub user: String,
    /// What the client must ask for in CONNECT: the VM's configuration file, or a moref.
    pub vm: String,
    /// Where the console really is.
    pub target: Target,
    /// The only address it may come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// How many connections at once; the configuration's limit where absent, and never more than that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// Longest life of a session, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_seconds: Option<u64>,
    /// Reserved: refused when true, until a backend can honour it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub view_only: bool,
}

impl Claims {
    /// Reads claims as they stand inside the JWE.
    pub fn from_json(json: &[u8]) -> Result<Self, ClaimError> {
        let claims: Self = serde_json::from_slice(json).map_err(|_| ClaimError::Json)?;
        claims.validate()?;
        Ok(claims)
    }

    /// Whether a gate could act on them. No text may hold a control character: each becomes part of a line somewhere.
    pub fn validate(&self) -> Result<(), ClaimError> {
        text("jti", &self.jti, MAX_NAME)?;
        text("tenant", &self.tenant, MAX_NAME)?;
        text("user", &self.user, MAX_NAME)?;
        text("vm", &self.vm, MAX_WORD)?;
        text("iss", self.iss.as_deref().unwrap_or("-"), MAX_NAME)?;
        text("aud", self.aud.as_deref().unwrap_or("-"), MAX_NAME)?;
        if self.exp <= self.nbf.max(self.iat) {
            return Err(ClaimError::Value { name: "exp", why: "is not later than iat and nbf" });
        }
        if self.max_connections == Some(0) {
            return Err(ClaimError::Value { name: "max_connections", why: "is 0" });
        }
        if self.session_seconds == Some(0) {
            return Err(ClaimError::Value { name: "session_seconds", why: "is 0" });
        }
        self.target.validate()
    }
}

impl Target {
    fn validate(&self) -> Result<(), ClaimError> {
        text("target.host", &self.host, MAX_HOST)?;
        if self.host.contains(|c: char| c.is_whitespace() || c == '/') {
            return Err(ClaimError::Value { name: "target.host", why: "is no host name or address" });
        }
        if self.port == Some(0) {
            return Err(ClaimError::Value { name: "target.port", why: "is 0" });
        }
        text("target.ticket", self.ticket.as_deref().unwrap_or("-"), MAX_WORD)?;
        text("target.cfg_file", self.cfg_file.as_deref().unwrap_or("-"), MAX_WORD)?;
        let why = "holds a text that is no SHA-1 or SHA-256 in hexadecimal";
        match self.thumbprints.iter().all(|print| print.parse::<Thumbprint>().is_ok()) {
            true => Ok(()),
            false => Err(ClaimError::Value { name: "target.thumbprints", why }),
        }
    }
}

fn text(name: &'static str, value: &str, longest: usize) -> Result<(), ClaimError> {
    let why = if value.is_empty() {
        "is empty"
    } else if value.len() > longest {
        "is too long"
    } else if value.contains(char::is_control) {
        "holds a control character"
    } else {
        return Ok(());
    };
    Err(ClaimError::Value { name, why })
}

/// What kind of console the target is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TargetKind {
    /// ESXi's authd on TCP 902.
    EsxiMks,
    /// ESXi's WebMKS, `wss://host/ticket/T`.
    EsxiWebmks,
    /// Classic ESX: 902, then 903.
    EsxTwoPass,
    /// A plain or TLS RFB server.
    Vnc,
    /// A vCenter that is asked for the host and the ticket.
    Vcenter,
}

/// Where the console really is, and the secrets that open it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// The protocol.
    #[zeroize(skip)]
    pub kind: TargetKind,
    /// Name or address.
    pub host: String,
    /// TCP port; the kind's usual one where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The hypervisor's own ticket, clone ticket or VNC password. Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
    /// The VM's configuration file as the hypervisor knows it; `vm` of the claims where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cfg_file: Option<String>,
    /// Accepted certificates: SHA-1 (20 bytes) or SHA-256 (32 bytes) of the leaf's DER, hexadecimal, colons optional.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub thumbprints: Vec<String>,
    /// Whether the target speaks TLS; the kind's usual way where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<bool>,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target")
            .field("kind", &self.kind)
            .field("host", &self.host)
            .field("port", &self.port)
            .field("ticket", &self.ticket.as_ref().map(|_| "(secret)"))
            .field("cfg_file", &self.cfg_file)
            .field("thumbprints", &self.thumbprints)
            .field("tls", &self.tls)
            .finish()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Claims that are in time at `iat`.
    pub(crate) fn claims(jti: &str, iat: u64) -> Claims {
        Claims {
            iss: None,
            aud: None,
            jti: jti.into(),
            iat,
            nbf: iat,
            exp: iat + 3600,
            tenant: "acme".into(),
            user: "ada".into(),
            vm: "vm-61".into(),
            target: Target {
                kind: TargetKind::EsxiMks,
                host: "esx1.example".into(),
                port: None,
                ticket: Some("cst-secret".into()),
                cfg_file: None,
                thumbprints: vec!["A9".repeat(20)],
                tls: None,
            },
            source: None,
            max_connections: None,
            session_seconds: None,
            view_only: false,
        }
    }

    fn edited(pointer: &str, value: serde_json::Value) -> Result<Claims, ClaimError> {
        let mut json = serde_json::to_value(claims("j", 1)).unwrap();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        json.pointer_mut(parent).unwrap().as_object_mut().unwrap().insert(name.into(), value);
        Claims::from_json(json.to_string().as_bytes())
    }

    #[test]
    fn they_come_back_as_they_went() {
        let claims = claims("j", 1);
        assert_eq!(Claims::from_json(&serde_json::to_vec(&claims).unwrap()), Ok(claims));
    }

    #[test]
    fn nonsense_is_named() {
        for (pointer, value, name) in [
            ("/jti", "".into(), "jti"),
            ("/jti", "a".repeat(257).into(), "jti"),
            ("/user", "ada\nPASS x".into(), "user"),
            ("/vm", "x mks\r\nQUIT".into(), "vm"),
            ("/iss", "".into(), "iss"),
            ("/exp", 1.into(), "exp"),
            ("/nbf", 4000.into(), "exp"),
            ("/max_connections", 0.into(), "max_connections"),
            ("/session_seconds", 0.into(), "session_seconds"),
            ("/target/host", "a b".into(), "target.host"),
            ("/target/host", "".into(), "target.host"),
            ("/target/port", 0.into(), "target.port"),
            ("/target/ticket", "a\r\nb".into(), "target.ticket"),
            ("/target/cfg_file", "\0".into(), "target.cfg_file"),
            ("/target/thumbprints", vec!["A9"].into(), "target.thumbprints"),
        ] {
            let error = edited(pointer, value).unwrap_err();
            assert!(matches!(error, ClaimError::Value { name: n, .. } if n == name), "{pointer}: {error}");
        }
    }

    #[test]
    fn other_json_is_refused_without_repeating_it() {
        for (pointer, value) in [
            ("/extra", 1.into()),
            ("/iat", 1.5.into()),
            ("/iat", "1".into()),
            ("/exp", (-1).into()),
            ("/target/kind", "telnet".into()),
            ("/target/port", 70_000.into()),
            ("/source", "cst-secret".into()),
            ("/target/extra", 1.into()),
        ] {
            assert_eq!(edited(pointer, value), Err(ClaimError::Json), "{pointer}");
        }
        for text in [&b""[..], b"[]", b"{}", b"\xff", b"{\"jti\":\"a\",\"jti\":\"b\"}"] {
            assert_eq!(Claims::from_json(text), Err(ClaimError::Json));
        }
        assert!(!format!("{:?}", claims("j", 1)).contains("cst-secret"));
    }
}
