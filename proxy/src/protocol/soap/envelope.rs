//! The frame: an envelope with one operation, its answer, or a fault.

use super::VIM;
use super::element::Element;
use super::fault::Fault;
use super::parse::{Limits, Named, SoapError, parse_named};

const SOAP: &str = "http://schemas.xmlsoap.org/soap/envelope/";

/// What a body holds.
#[derive(Debug)]
pub enum Message {
    /// An operation, or the answer to one.
    Body(Element),
    /// A fault.
    Fault(Fault),
}

/// Puts an operation or an answer into an envelope.
pub fn envelope(body: &Element) -> String {
    let mut inner = String::new();
    body.write_top(&mut inner);
    frame(&inner)
}

pub(super) fn frame(inner: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<soapenv:Envelope xmlns:soapenv=\"{SOAP}\" \
         xmlns:xsd=\"http://www.w3.org/2001/XMLSchema\" xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\">\
         <soapenv:Body>{inner}</soapenv:Body></soapenv:Envelope>"
    )
}

/// The operation in a client's envelope. Whatever is in the header is dropped.
pub fn call(text: &str) -> Result<Element, SoapError> {
    match open(text, Limits::REQUEST)? {
        Message::Body(operation) => Ok(operation),
        Message::Fault(_) => Err(SoapError::Envelope),
    }
}

impl Message {
    /// A server's answer: `urn:vim25` throughout, or a fault.
    pub fn answer(text: &str) -> Result<Self, SoapError> {
        open(text, Limits::ANSWER)
    }
}

fn open(text: &str, limits: Limits) -> Result<Message, SoapError> {
    let root = parse_named(text, limits)?;
    if (root.namespace.as_str(), root.element.name.as_str()) != (SOAP, "Envelope") {
        return Err(SoapError::Envelope);
    }
    let mut bodies =
        root.children.into_iter().filter(|part| part.namespace == SOAP && part.element.name == "Body");
    let (Some(body), None) = (bodies.next(), bodies.next()) else { return Err(SoapError::Envelope) };
    let mut inside = body.children.into_iter();
    let (Some(only), None) = (inside.next(), inside.next()) else { return Err(SoapError::Envelope) };
    if only.namespace == SOAP && only.element.name == "Fault" {
        return Ok(Message::Fault(Fault::from_element(&any(only))));
    }
    vim(only).map(Message::Body)
}

/// Everything in it must be of `urn:vim25`: nothing of another namespace can hide what a peer would take for the real thing.
fn vim(named: Named) -> Result<Element, SoapError> {
    if named.namespace != VIM {
        return Err(SoapError::Envelope);
    }
    let children = named.children.into_iter().map(vim).collect::<Result<_, _>>()?;
    Ok(Element { children, ..named.element })
}

fn any(named: Named) -> Element {
    Element { children: named.children.into_iter().map(any).collect(), ..named.element }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::soap::Moref;

    #[test]
    fn an_operation_goes_in_and_comes_out() {
        let operation = Element::new("PowerOnVM_Task").with(Element::of("_this", &Moref::vm("vm-61")));
        assert_eq!(call(&envelope(&operation)).unwrap(), operation);
    }

    #[test]
    fn what_is_no_envelope_with_one_operation_is_refused() {
        let with = |body: &str| {
            format!(
                "<s:Envelope xmlns:s=\"{SOAP}\"><s:Header><x/></s:Header><s:Body>{body}</s:Body></s:Envelope>"
            )
        };
        assert!(call(&with("<A xmlns=\"urn:vim25\"/>")).is_ok());
        for body in [
            "",
            "<A/>",
            "<A xmlns=\"urn:vim2\"/>",
            "<A xmlns=\"urn:vim25\"/><B xmlns=\"urn:vim25\"/>",
            "<A xmlns=\"urn:vim25\"><_this xmlns=\"urn:other\">x</_this></A>",
            "<s:Fault/>",
        ] {
            assert_eq!(call(&with(body)).unwrap_err(), SoapError::Envelope, "{body}");
        }
        let two = format!("<s:Envelope xmlns:s=\"{SOAP}\"><s:Body/><s:Body/></s:Envelope>");
        assert_eq!(call(&two).unwrap_err(), SoapError::Envelope);
    }
}
