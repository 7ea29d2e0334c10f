//! A value of `urn:vim25`: an element with a text or with children, never both.

use std::fmt;

use quick_xml::escape::escape;

/// A managed object: its type and its id (`VirtualMachine`, `vm-61`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Moref {
    /// The type.
    pub kind: String,
    /// The id.
    pub id: String,
}

impl Moref {
    /// The object of this type and id.
    pub fn new(kind: impl Into<String>, id: impl Into<String>) -> Self {
        Self { kind: kind.into(), id: id.into() }
    }

    /// A virtual machine.
    pub fn vm(id: impl Into<String>) -> Self {
        Self::new("VirtualMachine", id)
    }
}

impl fmt::Display for Moref {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.id)
    }
}

/// The value of `xsi:type`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TypeName {
    /// A type of `urn:vim25`.
    Vim(String),
    /// A simple type of XML Schema.
    Xsd(String),
}

/// An element. Attributes other than `type` (of a moref) and `xsi:type` mean nothing here and are not kept.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Element {
    /// The local name; the namespace is `urn:vim25`, or SOAP's for the frame.
    pub name: String,
    /// The type of the managed object whose id the text is.
    pub moref: Option<String>,
    /// What it is, where the declared type leaves it open.
    pub xsi_type: Option<TypeName>,
    /// The text, where there are no children.
    pub text: String,
    /// The children.
    pub children: Vec<Element>,
}

impl Element {
    /// An empty one.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// One with a text.
    pub fn text(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self { name: name.into(), text: text.into(), ..Self::default() }
    }

    /// A reference to a managed object.
    pub fn of(name: impl Into<String>, object: &Moref) -> Self {
        Self { moref: Some(object.kind.clone()), ..Self::text(name, object.id.clone()) }
    }

    /// With a child more.
    pub fn with(mut self, child: Element) -> Self {
        self.children.push(child);
        self
    }

    /// With a child more, if there is one.
    pub fn with_some(mut self, child: Option<Element>) -> Self {
        self.children.extend(child);
        self
    }

    /// With a text child more.
    pub fn has(self, name: &str, text: impl Into<String>) -> Self {
        self.with(Self::text(name, text))
    }

    /// With `xsi:type` of `urn:vim25`.
    pub fn typed(mut self, name: &str) -> Self {
        self.xsi_type = Some(TypeName::Vim(name.into()));
        self
    }

    /// The first child of this name.
    pub fn child(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|child| child.name == name)
    }

    /// The text of the first child of this name, where it is not empty.
    pub fn child_text(&self, name: &str) -> Option<&str> {
        self.child(name).map(|child| child.text.as_str()).filter(|text| !text.is_empty())
    }

    /// Every child of this name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Element> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// The managed object it refers to.
    pub fn as_moref(&self) -> Option<Moref> {
        let kind = self.moref.as_ref()?;
        (!self.text.is_empty()).then(|| Moref::new(kind, &self.text))
    }

    /// The name of its `xsi:type`, of whatever namespace.
    pub fn type_name(&self) -> Option<&str> {
        self.xsi_type.as_ref().map(|name| match name {
            TypeName::Vim(name) | TypeName::Xsd(name) => name.as_str(),
        })
    }

    /// Writes it. The prefixes `xsi` and `xsd` and the default namespace are the envelope's.
    pub fn write(&self, out: &mut String) {
        self.open(out, "");
        self.close(out);
    }

    /// The same as the top of `urn:vim25`.
    pub(super) fn write_top(&self, out: &mut String) {
        self.open(out, " xmlns=\"urn:vim25\"");
        self.close(out);
    }

    fn open(&self, out: &mut String, more: &str) {
        out.push('<');
        out.push_str(&self.name);
        out.push_str(more);
        if let Some(kind) = &self.moref {
            out.push_str(&format!(" type=\"{}\"", escape(kind)));
        }
        match &self.xsi_type {
            Some(TypeName::Vim(name)) => out.push_str(&format!(" xsi:type=\"{}\"", escape(name))),
            Some(TypeName::Xsd(name)) => out.push_str(&format!(" xsi:type=\"xsd:{}\"", escape(name))),
            None => {}
        }
        out.push('>');
    }

    fn close(&self, out: &mut String) {
        if self.children.is_empty() {
            out.push_str(&escape(&self.text));
        }
        for child in &self.children {
            child.write(out);
        }
        out.push_str(&format!("</{}>", self.name));
    }
}

/// Names only: a text may be a password or a ticket.
impl fmt::Debug for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut tuple = f.debug_tuple(&self.name);
        for child in &self.children {
            tuple.field(child);
        }
        tuple.finish()
    }
}
