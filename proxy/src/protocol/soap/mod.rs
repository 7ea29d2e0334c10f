//! vSphere's SOAP (SOAP 1.1 envelopes, namespace `urn:vim25`): both sides, as pure functions over text.
//!
//! Nothing of a peer's text is ever passed on as it came. It is parsed into [`Element`]s under limits, checked, and written
//! again, so what was checked is what is sent. The table of what a client may ask for is in [`allowed`].

pub mod allowed;
pub mod answer;
mod element;
mod envelope;
pub mod fault;
mod parse;
pub mod request;
pub mod ticket;
mod version;

pub use element::{Element, Moref, TypeName};
pub use envelope::{Message, call, envelope};
pub use fault::Fault;
pub use parse::{Limits, SoapError, parse};
pub use version::Version;

/// The namespace of every operation and every value.
pub const VIM: &str = "urn:vim25";
/// The content type of requests and answers.
pub const CONTENT_TYPE: &str = "text/xml; charset=utf-8";
/// The session's cookie.
pub const COOKIE: &str = "vmware_soap_session";
