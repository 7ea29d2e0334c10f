//! What a ticket says (docs/ticket-format.md), as it stands inside the JWE.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

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
    /// How many connections at once; the configuration's default where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// Longest life of a session, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_seconds: Option<u64>,
    /// Reserved: refused when true, until a backend can honour it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub view_only: bool,
}

/// What kind of console the target is (DESIGN 5).
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
