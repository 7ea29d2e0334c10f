//! The operations that the appliance itself asks of a vCenter (PowerOn and AcquireTicket are also asked for clients).

use super::element::{Element, Moref};
use super::parse::SoapError;

/// `ServiceInstance`, which every server has under this id.
pub fn service_instance() -> Moref {
    Moref::new("ServiceInstance", "ServiceInstance")
}

/// What the service offers, the session manager's id first of all.
pub fn retrieve_service_content() -> Element {
    operation("RetrieveServiceContent", &service_instance())
}

/// Log in with a name and a password.
pub fn login(manager: &Moref, user: &str, password: &str) -> Element {
    operation("Login", manager).has("userName", user).has("password", password)
}

/// Take over a session that somebody else opened.
pub fn clone_session(manager: &Moref, ticket: &str) -> Element {
    operation("CloneSession", manager).has("cloneTicket", ticket)
}

/// A ticket with which somebody else may take a copy of this session over.
pub fn acquire_clone_ticket(manager: &Moref) -> Element {
    operation("AcquireCloneTicket", manager)
}

/// End the session.
pub fn logout(manager: &Moref) -> Element {
    operation("Logout", manager)
}

/// The cheapest question that keeps a session alive.
pub fn current_time() -> Element {
    operation("CurrentTime", &service_instance())
}

/// A console ticket of this type (`mks`, `webmks`).
pub fn acquire_ticket(vm: &Moref, kind: &str) -> Element {
    operation("AcquireTicket", vm).has("ticketType", kind)
}

/// A console ticket as servers before 4.1 gave it.
pub fn acquire_mks_ticket(vm: &Moref) -> Element {
    operation("AcquireMksTicket", vm)
}

/// Power on, or resume.
pub fn power_on(vm: &Moref) -> Element {
    operation("PowerOnVM_Task", vm)
}

/// The state of a task.
pub fn task_state(collector: &Moref, task: &Moref) -> Element {
    let properties = Element::new("propSet")
        .has("type", task.kind.as_str())
        .has("pathSet", "info.state")
        .has("pathSet", "info.error");
    let object = Element::new("objectSet").with(Element::of("obj", task)).has("skip", "false");
    operation("RetrieveProperties", collector).with(Element::new("specSet").with(properties).with(object))
}

/// An operation on an object.
pub fn operation(name: &str, object: &Moref) -> Element {
    Element::new(name).with(Element::of("_this", object))
}

/// The `returnval` of an operation's answer; `None` where it returns nothing.
pub fn returned<'a>(operation: &str, answer: &'a Element) -> Result<Option<&'a Element>, SoapError> {
    if answer.name.strip_suffix("Response") != Some(operation) {
        return Err(SoapError::Missing("response element"));
    }
    Ok(answer.child("returnval"))
}

/// Ids of the objects that a session needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Whom to log in at.
    pub session_manager: Moref,
    /// Whom to ask for properties.
    pub property_collector: Moref,
    /// The API's version, `8.0.2.0` for one.
    pub version: String,
}

impl Service {
    /// From the answer to [`retrieve_service_content`].
    pub fn from_answer(answer: &Element) -> Result<Self, SoapError> {
        let content = returned("RetrieveServiceContent", answer)?.ok_or(SoapError::Missing("returnval"))?;
        let object = |name: &'static str| {
            content.child(name).and_then(Element::as_moref).ok_or(SoapError::Missing(name))
        };
        Ok(Self {
            session_manager: object("sessionManager")?,
            property_collector: object("propertyCollector")?,
            version: content
                .child("about")
                .and_then(|about| about.child_text("apiVersion"))
                .unwrap_or_default()
                .into(),
        })
    }
}

/// How far a task is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// Queued or running.
    Busy,
    /// Done.
    Success,
    /// Failed, with the server's sentence.
    Error(String),
}

impl TaskState {
    /// From the answer to [`task_state`].
    pub fn from_answer(answer: &Element) -> Result<Self, SoapError> {
        let object = returned("RetrieveProperties", answer)?.ok_or(SoapError::Missing("returnval"))?;
        let value = |name: &str| {
            object
                .all("propSet")
                .find(|set| set.child_text("name") == Some(name))
                .and_then(|set| set.child("val"))
        };
        let state = value("info.state").ok_or(SoapError::Missing("info.state"))?;
        Ok(match state.text.as_str() {
            "success" => Self::Success,
            "error" => {
                let text = value("info.error").and_then(|error| error.child_text("localizedMessage"));
                Self::Error(text.unwrap_or("no reason given").chars().take(300).collect())
            }
            _ => Self::Busy,
        })
    }
}
