//! What a console user may ask of the appliance's `/sdk`: one table, everything else is refused (docs/vcenter.md shows it).
//!
//! A checked request is built anew: only the parameters that the table names, addressed to the very objects that the Permit
//! stands for. No id that a client wrote reaches a vCenter, except of tasks and filters that its own session got from there.

use super::element::{Element, Moref};
use super::fault::Fault;
use super::request::service_instance;

/// The object an operation is asked of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The server itself.
    ServiceInstance,
    /// The session manager.
    SessionManager,
    /// The property collector.
    PropertyCollector,
    /// A filter that this session made.
    OwnFilter,
    /// The Permit's VM.
    Vm,
    /// The Permit's VM, or a task that this session started.
    VmOrOwnTask,
}

/// What is done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handling {
    /// Answered by the appliance, also without a session.
    Open,
    /// Answered by the appliance.
    Local,
    /// A read, forwarded.
    Read,
    /// A power operation, forwarded where `console_power` is not `none`.
    Power,
    /// An operation on the VM, forwarded.
    Operate,
    /// Forwarded, and the answer's ticket sealed.
    Ticket,
}

/// A line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// The operation.
    pub method: &'static str,
    /// Of what.
    pub subject: Subject,
    /// And then.
    pub handling: Handling,
    /// Its parameters; one more and it is refused.
    pub parameters: &'static [&'static str],
}

const fn line(
    method: &'static str,
    subject: Subject,
    handling: Handling,
    parameters: &'static [&'static str],
) -> Allowed {
    Allowed { method, subject, handling, parameters }
}

/// The table.
pub const TABLE: &[Allowed] = &[
    line("RetrieveServiceContent", Subject::ServiceInstance, Handling::Open, &[]),
    line("CurrentTime", Subject::ServiceInstance, Handling::Open, &[]),
    line("CloneSession", Subject::SessionManager, Handling::Open, &["cloneTicket"]),
    line("SessionIsActive", Subject::SessionManager, Handling::Local, &["sessionID", "userName"]),
    line("Logout", Subject::SessionManager, Handling::Local, &[]),
    line("RetrieveProperties", Subject::PropertyCollector, Handling::Read, &["specSet"]),
    line("RetrievePropertiesEx", Subject::PropertyCollector, Handling::Read, &["specSet", "options"]),
    line("ContinueRetrievePropertiesEx", Subject::PropertyCollector, Handling::Read, &["token"]),
    line("CancelRetrievePropertiesEx", Subject::PropertyCollector, Handling::Read, &["token"]),
    line("CreateFilter", Subject::PropertyCollector, Handling::Read, &["spec", "partialUpdates"]),
    line("DestroyPropertyFilter", Subject::OwnFilter, Handling::Read, &[]),
    line("CheckForUpdates", Subject::PropertyCollector, Handling::Read, &["version"]),
    line("WaitForUpdatesEx", Subject::PropertyCollector, Handling::Read, &["version", "options"]),
    line("CancelWaitForUpdates", Subject::PropertyCollector, Handling::Read, &[]),
    line("Fetch", Subject::VmOrOwnTask, Handling::Read, &["prop"]),
    line("PowerOnVM_Task", Subject::Vm, Handling::Power, &[]),
    line("PowerOffVM_Task", Subject::Vm, Handling::Power, &[]),
    line("ResetVM_Task", Subject::Vm, Handling::Power, &[]),
    line("SuspendVM_Task", Subject::Vm, Handling::Power, &[]),
    line("AnswerVM", Subject::Vm, Handling::Operate, &["questionId", "answerChoice"]),
    line("ReconfigVM_Task", Subject::Vm, Handling::Operate, &["spec"]),
    line("AcquireTicket", Subject::Vm, Handling::Ticket, &["ticketType"]),
    line("AcquireMksTicket", Subject::Vm, Handling::Ticket, &[]),
];

/// What a session may reach.
#[derive(Clone, Copy)]
pub struct Scope<'a> {
    /// The Permit's VM.
    pub vm: &'a Moref,
    /// The real property collector.
    pub collector: &'a Moref,
    /// Tasks and filters that this session got from its vCenter.
    pub own: &'a [Moref],
    /// Whether power operations are allowed.
    pub power: bool,
}

/// A request that was checked, as it goes to the vCenter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approved {
    /// The table's line.
    pub line: &'static Allowed,
    /// The request, built anew.
    pub operation: Element,
}

/// The line of an operation that needs no session.
pub fn open(operation: &Element) -> Option<&'static Allowed> {
    let line = TABLE.iter().find(|line| line.method == operation.name)?;
    let addressed = match line.subject {
        Subject::ServiceInstance => subject(operation) == Some(service_instance()),
        Subject::SessionManager => subject(operation).is_some_and(|object| object.kind == "SessionManager"),
        _ => false,
    };
    (line.handling == Handling::Open && addressed).then_some(line)
}

/// Checks a request of a session and builds it anew.
pub fn check(operation: &Element, scope: Scope<'_>) -> Result<Approved, Fault> {
    let line = TABLE.iter().find(|line| line.method == operation.name).ok_or_else(Fault::no_permission)?;
    let asked = subject(operation).ok_or_else(|| Fault::bad_request("_this names no object"))?;
    let object = match line.subject {
        Subject::ServiceInstance => (asked == service_instance()).then_some(asked),
        Subject::SessionManager => (asked.kind == "SessionManager").then_some(asked),
        // The client knows the collector by the appliance's name for it.
        Subject::PropertyCollector => (asked.kind == "PropertyCollector").then(|| scope.collector.clone()),
        Subject::OwnFilter => (asked.kind == "PropertyFilter" && scope.own.contains(&asked)).then_some(asked),
        Subject::Vm => (asked == *scope.vm).then_some(asked),
        Subject::VmOrOwnTask => scope.sees(&asked).then_some(asked),
    };
    let object = object.ok_or_else(Fault::no_permission)?;
    if line.handling == Handling::Power && !scope.power {
        return Err(Fault::no_permission());
    }
    let mut approved = Element::new(line.method).with(Element::of("_this", &object));
    for parameter in operation.children.iter().filter(|child| child.name != "_this") {
        if !line.parameters.contains(&parameter.name.as_str()) {
            return Err(Fault::no_permission());
        }
        approved.children.push(scope.parameter(line.method, parameter)?);
    }
    if operation.all("_this").count() != 1 {
        return Err(Fault::bad_request("_this stands there more than once"));
    }
    Ok(Approved { line, operation: approved })
}

fn subject(operation: &Element) -> Option<Moref> {
    operation.child("_this").and_then(Element::as_moref)
}

impl Scope<'_> {
    fn sees(&self, object: &Moref) -> bool {
        object == self.vm || (object.kind == "Task" && self.own.contains(object))
    }

    fn parameter(&self, method: &str, parameter: &Element) -> Result<Element, Fault> {
        match (method, parameter.name.as_str()) {
            (_, "specSet" | "spec") if method != "ReconfigVM_Task" => self.filter(parameter),
            ("ReconfigVM_Task", "spec") => reconfigure(parameter),
            (_, "options") => fields(parameter, &["maxObjects", "maxObjectUpdates", "maxWaitSeconds"]),
            _ => leaf(parameter),
        }
    }

    /// `PropertyFilterSpec`: properties of the VM and of own tasks, and no way on from there.
    fn filter(&self, spec: &Element) -> Result<Element, Fault> {
        let mut checked = Element::new(spec.name.as_str());
        for part in &spec.children {
            checked.children.push(match part.name.as_str() {
                "propSet" => properties(part)?,
                "objectSet" => self.object(part)?,
                "reportMissingObjectsInResults" => leaf(part)?,
                _ => return Err(Fault::no_permission()),
            });
        }
        Ok(checked)
    }

    fn object(&self, set: &Element) -> Result<Element, Fault> {
        let mut checked = Element::new("objectSet");
        for part in &set.children {
            checked.children.push(match part.name.as_str() {
                "obj" => {
                    let object = part
                        .as_moref()
                        .filter(|object| self.sees(object))
                        .ok_or_else(Fault::no_permission)?;
                    Element::of("obj", &object)
                }
                "skip" => leaf(part)?,
                // A selectSet walks to other objects.
                _ => return Err(Fault::no_permission()),
            });
        }
        Ok(checked)
    }
}

fn properties(set: &Element) -> Result<Element, Fault> {
    let kind = set.child_text("type").unwrap_or_default();
    if !matches!(kind, "VirtualMachine" | "ManagedEntity" | "Task") {
        return Err(Fault::no_permission());
    }
    fields(set, &["type", "all", "pathSet"])
}

/// `VirtualMachineConfigSpec`, of which only this is taken: devices that are there already are connected or disconnected.
fn reconfigure(spec: &Element) -> Result<Element, Fault> {
    let mut checked = Element::new("spec");
    for change in &spec.children {
        if change.name != "deviceChange" || change.child_text("operation") != Some("edit") {
            return Err(Fault::no_permission());
        }
        let device = change.child("device").ok_or_else(Fault::no_permission)?;
        if change.children.len() != 2 {
            return Err(Fault::no_permission());
        }
        let edit = Element::new("deviceChange").has("operation", "edit").with(connect(device)?);
        checked.children.push(edit);
    }
    Ok(checked)
}

/// A device with nothing but its key and how it is connected. What it is backed by (an image on a datastore, a network)
/// is not the console user's to say.
fn connect(device: &Element) -> Result<Element, Fault> {
    let kind =
        device.type_name().filter(|kind| kind.starts_with("Virtual")).ok_or_else(Fault::no_permission)?;
    let mut checked = Element::new("device").typed(kind);
    for field in &device.children {
        match field.name.as_str() {
            "key" | "controllerKey" | "unitNumber" => checked.children.push(leaf(field)?),
            "connectable" => checked.children.push(fields(
                field,
                &["migrateConnect", "startConnected", "allowGuestControl", "connected", "status"],
            )?),
            // A label that the server makes itself.
            "deviceInfo" => {}
            _ => return Err(Fault::no_permission()),
        }
    }
    if checked.child("key").is_none() || checked.child("connectable").is_none() {
        return Err(Fault::no_permission());
    }
    Ok(checked)
}

/// An element of these leaves, and no others.
fn fields(element: &Element, names: &[&str]) -> Result<Element, Fault> {
    let mut checked = Element::new(element.name.as_str());
    for field in &element.children {
        if !names.contains(&field.name.as_str()) {
            return Err(Fault::no_permission());
        }
        checked.children.push(leaf(field)?);
    }
    if element.children.is_empty() && !element.text.trim().is_empty() {
        return Err(Fault::no_permission());
    }
    Ok(checked)
}

/// A plain value; a reference to an object is none.
fn leaf(element: &Element) -> Result<Element, Fault> {
    if element.children.is_empty() && element.moref.is_none() {
        Ok(Element::text(element.name.as_str(), element.text.as_str()))
    } else {
        Err(Fault::no_permission())
    }
}

#[cfg(test)]
mod tests;
