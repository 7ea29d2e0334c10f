//! Sealed tickets: what they say, who may seal and open them, how often they may be used.

mod claims;

pub use claims::{Claims, Target, TargetKind};
// STANDIN
/// d
#[derive(Clone, Debug)]
#[expect(missing_docs)]
pub struct TicketPolicy {
    pub issuer: Option<String>,
    pub audience: Option<String>,
    pub first_use: std::time::Duration,
    pub reconnect: std::time::Duration,
    pub clock_skew: std::time::Duration,
    pub max_connections: u32,
    pub max_tracked: usize,
    pub bind_source: bool,
}
/// d
pub struct Permit;
#[expect(missing_docs)]
impl Permit {
    pub fn tenant(&self) -> &str {
        ""
    }
    pub fn user(&self) -> &str {
        ""
    }
    pub fn vm(&self) -> &str {
        ""
    }
    pub fn jti(&self) -> &str {
        ""
    }
    pub fn target(&self) -> &Target {
        todo!()
    }
    pub fn session(&self) -> Option<std::time::Duration> {
        None
    }
}
/// d
pub struct Tickets;
#[expect(missing_docs)]
impl Tickets {
    pub fn open(
        &self,
        _t: &str,
        _s: std::net::IpAddr,
        _n: std::time::SystemTime,
    ) -> Result<Permit, TicketError> {
        Err(TicketError)
    }
}
/// d
#[derive(Debug)]
pub struct TicketError;
#[expect(missing_docs)]
impl TicketError {
    pub fn as_str(&self) -> &'static str {
        ""
    }
}
impl std::fmt::Display for TicketError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("")
    }
}
