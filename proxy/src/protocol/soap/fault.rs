//! Faults: what a vCenter says no with, and what the appliance does.

use super::element::{Element, TypeName};
use super::envelope::frame;
use quick_xml::escape::escape;

/// The name and the sentence of a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The type in `detail`, `InvalidLogin` for one; empty where the server gave none.
    pub kind: String,
    /// The server's sentence.
    pub text: String,
    /// `faultcode`, without its prefix.
    pub code: String,
}

impl Fault {
    /// A fault of a type of `urn:vim25`.
    pub fn new(kind: &str, text: &str) -> Self {
        Self { kind: kind.into(), text: text.into(), code: "ServerFaultCode".into() }
    }

    /// No session, or one that is no more.
    pub fn not_authenticated() -> Self {
        Self::new("NotAuthenticated", "The session is not authenticated.")
    }

    /// The ticket was not taken.
    pub fn invalid_login() -> Self {
        Self::new("InvalidLogin", "Cannot complete login due to an incorrect or expired ticket.")
    }

    /// Not allowed here, whoever asks.
    pub fn no_permission() -> Self {
        Self::new("NoPermission", "Permission to perform this operation was denied.")
    }

    /// The request cannot be understood.
    pub fn bad_request(text: &str) -> Self {
        Self { kind: "InvalidRequest".into(), ..Self::new("", text) }
    }

    /// The vCenter behind the appliance does not answer.
    pub fn unavailable() -> Self {
        Self::new("HostCommunication", "The server behind this one does not answer; try again later.")
    }

    /// Reads the `Fault` element of an answer.
    pub(super) fn from_element(fault: &Element) -> Self {
        let detail = fault.child("detail").and_then(|detail| detail.children.first());
        let kind = detail.map_or("", |detail| match &detail.xsi_type {
            Some(TypeName::Vim(name) | TypeName::Xsd(name)) => name,
            None => detail.name.strip_suffix("Fault").unwrap_or(&detail.name),
        });
        let code = fault.child_text("faultcode").unwrap_or_default();
        let short = |text: &str| text.chars().filter(|c| !c.is_control()).take(300).collect();
        Self {
            kind: short(kind),
            text: short(fault.child_text("faultstring").unwrap_or_default()),
            code: short(code.rsplit(':').next().unwrap_or(code)),
        }
    }

    /// The envelope that says it; goes with status 500.
    pub fn envelope(&self) -> String {
        let (kind, text) = (escape(&*self.kind), escape(&*self.text));
        let more = match self.kind.as_str() {
            // Both fields are required by the type.
            "NoPermission" => {
                "<object type=\"ManagedEntity\">console</object><privilegeId>System.View</privilegeId>"
            }
            _ => "",
        };
        frame(&format!(
            "<soapenv:Fault><faultcode>ServerFaultCode</faultcode><faultstring>{text}</faultstring><detail>\
             <{kind}Fault xmlns=\"urn:vim25\" xsi:type=\"{kind}\">{more}</{kind}Fault></detail></soapenv:Fault>"
        ))
    }

    /// The session is no more: log in again.
    pub fn is_session_lost(&self) -> bool {
        self.kind == "NotAuthenticated"
    }

    /// The operation does not exist there, or not with this argument.
    pub fn is_unknown_operation(&self) -> bool {
        matches!(
            self.kind.as_str(),
            "InvalidArgument" | "NotSupported" | "NotImplemented" | "MethodNotFound" | "InvalidRequest" | ""
        )
    }

    /// The VM is off, suspended, or on its way there.
    pub fn is_powered_off(&self) -> bool {
        self.kind == "InvalidPowerState"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::soap::Message;

    #[test]
    fn a_fault_says_its_name_both_ways() {
        for fault in [
            Fault::not_authenticated(),
            Fault::invalid_login(),
            Fault::no_permission(),
            Fault::new("InvalidState", "a <state> & more"),
        ] {
            let Message::Fault(read) = Message::answer(&fault.envelope()).unwrap() else { panic!() };
            assert_eq!(read, fault);
        }
    }

    #[test]
    fn a_fault_without_a_type_is_known_by_its_element() {
        let text = frame(
            "<soapenv:Fault><faultcode>ServerFaultCode</faultcode><faultstring>x</faultstring><detail><InvalidLoginFault xmlns=\"urn:vim25\"/></detail></soapenv:Fault>",
        );
        let Message::Fault(fault) = Message::answer(&text).unwrap() else { panic!() };
        assert_eq!(fault.kind, "InvalidLogin");
    }
}
