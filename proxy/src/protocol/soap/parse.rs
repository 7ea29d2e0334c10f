//! XML under limits: no DOCTYPE, no entities but the five of XML and characters, bounded depth, count and size.

use quick_xml::XmlVersion;
use quick_xml::events::{BytesRef, BytesStart, Event};
use quick_xml::name::{NamespaceResolver, QName, ResolveResult};
use quick_xml::reader::NsReader;
use thiserror::Error;

use super::element::{Element, TypeName};

const XSI: &str = "http://www.w3.org/2001/XMLSchema-instance";
const XSD: &str = "http://www.w3.org/2001/XMLSchema";

/// How much a text may hold. The memory of its elements is at most `elements` × 150 bytes and the text once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of text.
    pub bytes: usize,
    /// Elements inside each other.
    pub depth: usize,
    /// Elements in all.
    pub elements: usize,
}

impl Limits {
    /// What a client may send.
    pub const REQUEST: Self = Self { bytes: 128 * 1024, depth: 24, elements: 2_000 };
    /// What a vCenter may answer about one VM.
    pub const ANSWER: Self = Self { bytes: 4 * 1024 * 1024, depth: 48, elements: 60_000 };
}

/// Why a text is not taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SoapError {
    /// Larger than the limit.
    #[error("more than {0} bytes of XML")]
    TooLarge(usize),
    /// Nested too deep.
    #[error("XML nested deeper than {0}")]
    TooDeep(usize),
    /// Too many elements.
    #[error("more than {0} XML elements")]
    TooMany(usize),
    /// A DOCTYPE.
    #[error("XML with a DOCTYPE")]
    Doctype,
    /// An entity that XML itself does not define.
    #[error("XML with an entity of its own")]
    Entity,
    /// A processing instruction.
    #[error("XML with a processing instruction")]
    Instruction,
    /// Text between elements, or an element of two minds.
    #[error("XML with text between its elements")]
    Mixed,
    /// Not well-formed.
    #[error("not well-formed XML")]
    Malformed,
    /// Well-formed, but no SOAP envelope with one operation.
    #[error("not a SOAP envelope with one operation of urn:vim25")]
    Envelope,
    /// An answer that lacks what it must hold.
    #[error("an answer without its {0}")]
    Missing(&'static str),
}

/// An element and the namespace it is in.
pub(super) struct Named {
    pub(super) element: Element,
    pub(super) namespace: String,
    pub(super) children: Vec<Named>,
}

/// Parses a text whose elements may be of any namespace.
pub(super) fn parse_named(text: &str, limits: Limits) -> Result<Named, SoapError> {
    if text.len() > limits.bytes {
        return Err(SoapError::TooLarge(limits.bytes));
    }
    let mut reader = NsReader::from_str(text);
    reader.config_mut().enable_all_checks(true);
    let mut parser = Parser { limits, count: 0, stack: Vec::new(), root: None };
    loop {
        match reader.read_event().map_err(|_| SoapError::Malformed)? {
            Event::Start(start) => parser.start(&start, reader.resolver())?,
            Event::Empty(start) => {
                parser.start(&start, reader.resolver())?;
                parser.end()?;
            }
            Event::End(_) => parser.end()?,
            Event::Text(text) => parser.text(&text.xml10_content())?,
            Event::CData(text) => parser.text(&text.xml10_content())?,
            Event::GeneralRef(reference) => parser.text(&resolve(&reference)?)?,
            Event::Comment(_) | Event::Decl(_) => {}
            Event::PI(_) => return Err(SoapError::Instruction),
            Event::DocType(_) => return Err(SoapError::Doctype),
            Event::Eof => return parser.finish(),
        }
    }
}

/// Parses a text of plain elements, namespaces left out of account: a vCloud body, or a fragment.
pub fn parse(text: &str, limits: Limits) -> Result<Element, SoapError> {
    fn plain(named: Named) -> Element {
        Element { children: named.children.into_iter().map(plain).collect(), ..named.element }
    }
    parse_named(text, limits).map(plain)
}

struct Parser {
    limits: Limits,
    count: usize,
    stack: Vec<Named>,
    root: Option<Named>,
}

impl Parser {
    fn start(&mut self, start: &BytesStart<'_>, resolver: &NamespaceResolver) -> Result<(), SoapError> {
        self.count += 1;
        if self.count > self.limits.elements {
            return Err(SoapError::TooMany(self.limits.elements));
        }
        if self.stack.len() >= self.limits.depth {
            return Err(SoapError::TooDeep(self.limits.depth));
        }
        if self.root.is_some() {
            return Err(SoapError::Malformed);
        }
        if let Some(parent) = self.stack.last()
            && !parent.element.text.trim().is_empty()
        {
            return Err(SoapError::Mixed);
        }
        let (namespace, local) = resolver.resolve_element(start.name());
        let mut element = Element::new(name(local.as_ref())?);
        attributes(start, resolver, &mut element)?;
        self.stack.push(Named { element, namespace: bound(&namespace)?, children: Vec::new() });
        Ok(())
    }

    fn end(&mut self) -> Result<(), SoapError> {
        let mut done = self.stack.pop().ok_or(SoapError::Malformed)?;
        if !done.children.is_empty() {
            if !done.element.text.trim().is_empty() {
                return Err(SoapError::Mixed);
            }
            done.element.text = String::new();
        }
        match self.stack.last_mut() {
            Some(parent) => parent.children.push(done),
            None => self.root = Some(done),
        }
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), SoapError> {
        match self.stack.last_mut() {
            Some(top) => top.element.text.push_str(text),
            None if text.trim_matches(['\u{feff}', ' ', '\r', '\n', '\t']).is_empty() => {}
            None => return Err(SoapError::Malformed),
        }
        Ok(())
    }

    fn finish(self) -> Result<Named, SoapError> {
        match (self.root, self.stack.is_empty()) {
            (Some(root), true) => Ok(root),
            _ => Err(SoapError::Malformed),
        }
    }
}

/// Names are written again as they are, so they must be names.
fn name(name: &str) -> Result<&str, SoapError> {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    let first = |b: &u8| b.is_ascii_alphabetic() || *b == b'_';
    let fits = name.as_bytes().first().is_some_and(first) && name.bytes().all(inner) && name.len() <= 128;
    if fits { Ok(name) } else { Err(SoapError::Malformed) }
}

fn bound(namespace: &ResolveResult<'_>) -> Result<String, SoapError> {
    match namespace {
        ResolveResult::Bound(namespace) => Ok(namespace.as_ref().to_owned()),
        ResolveResult::Unbound => Ok(String::new()),
        ResolveResult::Unknown(_) => Err(SoapError::Malformed),
    }
}

fn attributes(
    start: &BytesStart<'_>,
    resolver: &NamespaceResolver,
    element: &mut Element,
) -> Result<(), SoapError> {
    for attribute in start.attributes() {
        let attribute = attribute.map_err(|_| SoapError::Malformed)?;
        if attribute.key.as_namespace_binding().is_some() {
            continue;
        }
        let (namespace, local) = resolver.resolve_attribute(attribute.key);
        let (namespace, local) = (bound(&namespace)?, local.as_ref());
        if local != "type" || !(namespace.is_empty() || namespace == XSI) {
            continue;
        }
        let value =
            attribute.normalized_value(XmlVersion::Explicit1_0).map_err(|_| SoapError::Entity)?.into_owned();
        if namespace == XSI {
            let (namespace, local) = resolver.resolve_element(QName(&value));
            let local = name(local.as_ref())?.to_owned();
            let is_xsd = bound(&namespace)? == XSD;
            element.xsi_type = Some(if is_xsd { TypeName::Xsd(local) } else { TypeName::Vim(local) });
        } else {
            element.moref = Some(name(&value)?.to_owned());
        }
    }
    Ok(())
}

fn resolve(reference: &BytesRef<'_>) -> Result<String, SoapError> {
    if let Some(c) = reference.resolve_char_ref().map_err(|_| SoapError::Malformed)? {
        let allowed =
            matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..);
        return if allowed { Ok(c.into()) } else { Err(SoapError::Malformed) };
    }
    match reference.xml10_content().as_ref() {
        "lt" => Ok("<".into()),
        "gt" => Ok(">".into()),
        "amp" => Ok("&".into()),
        "apos" => Ok("'".into()),
        "quot" => Ok("\"".into()),
        _ => Err(SoapError::Entity),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refused(text: &str) -> SoapError {
        parse(text, Limits::REQUEST).unwrap_err()
    }

    #[test]
    fn values_morefs_and_types_are_kept() {
        let text = r#"<?xml version="1.0"?><a xmlns="urn:vim25" xmlns:i="http://www.w3.org/2001/XMLSchema-instance"
            xmlns:s="http://www.w3.org/2001/XMLSchema"><_this type="VirtualMachine" versionId="8">vm-61</_this>
            <b i:type="s:string">x &lt;&#65;&amp;<![CDATA[<y>]]></b><c i:type="VirtualCdrom"/></a>"#;
        let a = parse(text, Limits::REQUEST).unwrap();
        assert_eq!(a.child("_this").unwrap().as_moref(), Some(Moref::vm("vm-61")));
        assert_eq!(a.child_text("b"), Some("x <A&<y>"));
        assert_eq!(a.child("b").unwrap().xsi_type, Some(TypeName::Xsd("string".into())));
        assert_eq!(a.child("c").unwrap().type_name(), Some("VirtualCdrom"));
        let mut again = String::new();
        a.write_top(&mut again);
        let framed = format!("<e xmlns:xsi=\"{XSI}\" xmlns:xsd=\"{XSD}\">{again}</e>");
        assert_eq!(parse(&framed, Limits::REQUEST).unwrap().children[0], a);
    }

    use crate::protocol::soap::Moref;

    #[test]
    fn every_trick_of_xml_is_refused() {
        assert_eq!(refused("<!DOCTYPE a [<!ENTITY b \"c\">]><a>&b;</a>"), SoapError::Doctype);
        assert_eq!(refused("<a>&b;</a>"), SoapError::Entity);
        assert_eq!(refused("<a type=\"&b;\"/>"), SoapError::Entity);
        assert_eq!(refused("<a><?php x?></a>"), SoapError::Instruction);
        assert_eq!(refused("<a>x<b/></a>"), SoapError::Mixed);
        assert_eq!(refused("<a><b/>x</a>"), SoapError::Mixed);
        let deep = format!("{}{}", "<a>".repeat(25), "</a>".repeat(25));
        assert_eq!(refused(&deep), SoapError::TooDeep(24));
        assert_eq!(refused(&"<a>".repeat(30_000)), SoapError::TooDeep(24));
        assert_eq!(refused(&format!("<a>{}</a>", "<b/>".repeat(2_000))), SoapError::TooMany(2_000));
        assert_eq!(refused(&format!("<a>{}</a>", "b".repeat(200_000))), SoapError::TooLarge(128 * 1024));
        for text in [
            "",
            "x",
            "<a>",
            "</a>",
            "<a></b>",
            "<a/><b/>",
            "<a/>x",
            "<a b=1/>",
            "<a b='' b=''/>",
            "<p:a/>",
            "<a>&#0;</a>",
            "<a>&#xD800;</a>",
            "<a><é/></a>",
            "<a",
            "<a type='x y'/>",
        ] {
            assert_eq!(refused(text), SoapError::Malformed, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_ends_within_the_limits(text in ".{0,400}") {
            let _ = parse(&text, Limits::REQUEST);
        }

        #[test]
        fn any_markup_ends_within_the_limits(parts in prop::collection::vec(prop::sample::select(vec![
            "<a>", "</a>", "<b x='1'/>", "<!--", "-->", "<![CDATA[", "]]>", "&amp;", "&x;", "<?p?>", "<!DOCTYPE a>", "t", "\"", ">", "<",
            "xmlns:p='q'", "<p:c ", "xsi:type='p:q'",
        ]), 0..60)) {
            let _ = parse(&parts.concat(), Limits::REQUEST);
        }

        #[test]
        fn what_is_written_is_what_is_read(texts in prop::collection::vec("[^\u{0}-\u{8}\u{b}-\u{1f}\u{fffe}\u{ffff}\r]{0,30}", 1..6)) {
            let mut tree = Element::new("top");
            for text in &texts {
                tree = tree.has("leaf", text.clone());
            }
            let mut out = String::new();
            tree.write_top(&mut out);
            prop_assert_eq!(parse(&out, Limits::REQUEST).unwrap(), tree);
        }
    }
}
