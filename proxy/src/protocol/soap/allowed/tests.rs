use proptest::prelude::*;

use super::*;
use crate::protocol::soap::{call, envelope};

fn vm() -> Moref {
    Moref::vm("vm-61")
}

fn ask(operation: &Element, own: &[Moref], power: bool) -> Result<Approved, Fault> {
    let (vm, collector) = (vm(), Moref::new("PropertyCollector", "pc-real"));
    check(operation, Scope { vm: &vm, collector: &collector, own, power })
}

fn of(method: &str, object: &Moref) -> Element {
    Element::new(method).with(Element::of("_this", object))
}

fn read(object: Element, kind: &str) -> Element {
    let set = Element::new("propSet").has("type", kind).has("pathSet", "runtime.powerState");
    of("RetrievePropertiesEx", &Moref::new("PropertyCollector", "propertyCollector"))
        .with(Element::new("specSet").with(set).with(Element::new("objectSet").with(object)))
        .with(Element::new("options"))
}

#[test]
fn the_vm_may_be_operated_and_no_other() {
    let other = Moref::vm("vm-62");
    for method in ["PowerOnVM_Task", "PowerOffVM_Task", "ResetVM_Task", "SuspendVM_Task", "AcquireMksTicket"]
    {
        assert_eq!(ask(&of(method, &vm()), &[], true).unwrap().operation, of(method, &vm()));
        assert_eq!(ask(&of(method, &other), &[], true), Err(Fault::no_permission()));
        assert_eq!(ask(&of(method, &Moref::new("Folder", "vm-61")), &[], true), Err(Fault::no_permission()));
    }
    for method in
        ["Destroy_Task", "CloneVM_Task", "AcquireCloneTicket", "Login", "FindByUuid", "powerOnVM_Task", ""]
    {
        assert_eq!(ask(&of(method, &vm()), &[], true), Err(Fault::no_permission()), "{method}");
    }
}

#[test]
fn power_needs_the_tenants_policy() {
    assert!(ask(&of("PowerOnVM_Task", &vm()), &[], false).is_err());
    assert!(ask(&of("AcquireTicket", &vm()).has("ticketType", "mks"), &[], false).is_ok());
}

#[test]
fn a_parameter_that_the_table_does_not_name_is_refused() {
    let host = Element::of("host", &Moref::new("HostSystem", "host-9"));
    assert!(ask(&of("PowerOnVM_Task", &vm()).with(host), &[], true).is_err());
    let twice = of("PowerOnVM_Task", &vm()).with(Element::of("_this", &Moref::vm("vm-62")));
    assert!(ask(&twice, &[], true).is_err());
    assert!(ask(&Element::new("PowerOnVM_Task"), &[], true).is_err());
}

#[test]
fn properties_of_the_vm_and_of_own_tasks_are_read_and_nothing_behind_them() {
    let task = Moref::new("Task", "task-1");
    let approved = ask(&read(Element::of("obj", &vm()), "VirtualMachine"), &[], false).unwrap();
    assert_eq!(approved.operation.child("_this").unwrap().text, "pc-real");
    assert!(ask(&read(Element::of("obj", &task), "Task"), &[], false).is_err());
    assert!(ask(&read(Element::of("obj", &task), "Task"), std::slice::from_ref(&task), false).is_ok());
    assert!(ask(&read(Element::of("obj", &Moref::vm("vm-62")), "VirtualMachine"), &[], false).is_err());
    assert!(ask(&read(Element::text("obj", "vm-62"), "VirtualMachine"), &[], false).is_err());
    assert!(ask(&read(Element::of("obj", &vm()), "HostSystem"), &[], false).is_err());
    let mut walks = read(Element::of("obj", &vm()), "VirtualMachine");
    walks.children[1].children[1].children.push(Element::new("selectSet").has("path", "runtime.host"));
    assert!(ask(&walks, &[], false).is_err());
}

#[test]
fn a_device_is_connected_and_not_changed() {
    let edit = |device: Element| {
        let change = Element::new("deviceChange").has("operation", "edit").with(device);
        of("ReconfigVM_Task", &vm()).with(Element::new("spec").with(change))
    };
    let cdrom = Element::new("device").typed("VirtualCdrom").has("key", "3000").with(
        Element::new("connectable")
            .has("startConnected", "true")
            .has("allowGuestControl", "true")
            .has("connected", "true"),
    );
    assert!(ask(&edit(cdrom.clone()), &[], false).is_ok());
    let labelled = cdrom.clone().with(Element::new("deviceInfo").has("label", "CD"));
    assert_eq!(ask(&edit(labelled), &[], false), ask(&edit(cdrom.clone()), &[], false));
    let backed = cdrom
        .clone()
        .with(Element::new("backing").typed("VirtualCdromIsoBackingInfo").has("fileName", "[other] x.iso"));
    assert!(ask(&edit(backed), &[], false).is_err());
    let mut added = edit(cdrom.clone());
    added.children[1].children[0].children[0].text = "add".into();
    assert!(ask(&added, &[], false).is_err());
    let mut more = edit(cdrom);
    more.children[1].children.push(Element::text("numCPUs", "64"));
    assert!(ask(&more, &[], false).is_err());
}

#[test]
fn without_a_session_there_is_little_to_ask() {
    let manager = Moref::new("SessionManager", "SessionManager");
    assert!(open(&of("RetrieveServiceContent", &service_instance())).is_some());
    assert!(open(&of("CloneSession", &manager)).is_some());
    assert!(open(&of("CloneSession", &vm())).is_none());
    for (method, object) in [("Logout", &manager), ("PowerOnVM_Task", &vm()), ("Login", &manager)] {
        assert!(open(&of(method, object)).is_none());
    }
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "_this",
            "obj",
            "host",
            "specSet",
            "spec",
            "propSet",
            "objectSet",
            "selectSet",
            "skip",
            "type",
            "pathSet",
            "options",
            "deviceChange",
            "device",
            "operation",
            "key",
            "connectable",
            "backing",
            "pool",
            "ticketType",
            "prop",
            "token",
            "version",
        ])
        .prop_map(str::to_owned),
        "[a-zA-Z_]{1,8}",
    ]
}

fn tree() -> impl Strategy<Value = Element> {
    let object = prop::option::of(prop::sample::select(vec![
        "VirtualMachine",
        "Task",
        "HostSystem",
        "PropertyCollector",
    ]));
    let text = prop_oneof![
        prop::sample::select(vec!["vm-61", "vm-62", "task-1", "task-2", "edit", "VirtualMachine", "true"])
            .prop_map(str::to_owned),
        "[ -~]{0,12}",
    ];
    let leaf = (name(), object, text).prop_map(|(name, moref, text)| Element {
        name,
        moref: moref.map(str::to_owned),
        text,
        ..Element::default()
    });
    leaf.prop_recursive(4, 24, 4, |inner| {
        (name(), prop::collection::vec(inner, 1..4)).prop_map(|(name, children)| Element {
            name,
            children,
            ..Element::default()
        })
    })
}

/// Every object that a request names, wherever.
fn objects(element: &Element, found: &mut Vec<Moref>) {
    found.extend(element.as_moref());
    element.children.iter().for_each(|child| objects(child, found));
}

proptest! {
    #[test]
    fn no_approved_request_names_another_object(
        method in prop::sample::select(TABLE.iter().map(|line| line.method).collect::<Vec<_>>()),
        this in prop::sample::select(vec![vm(), Moref::vm("vm-62"), Moref::new("Task", "task-1"), Moref::new("Task", "task-2"),
            Moref::new("PropertyCollector", "propertyCollector"), Moref::new("PropertyFilter", "filter-1"), service_instance()]),
        children in prop::collection::vec(tree(), 0..4),
    ) {
        let own = [Moref::new("Task", "task-1"), Moref::new("PropertyFilter", "filter-1")];
        let mut operation = of(method, &this);
        operation.children.extend(children);
        // As it comes over the wire.
        let Ok(operation) = call(&envelope(&operation)) else { return Ok(()) };
        if let Ok(approved) = ask(&operation, &own, true) {
            let mut named = Vec::new();
            objects(&approved.operation, &mut named);
            let fine = [vm(), own[0].clone(), own[1].clone(), Moref::new("PropertyCollector", "pc-real"), service_instance()];
            for object in named {
                prop_assert!(fine.contains(&object) || object.kind == "SessionManager", "{object}");
            }
        }
    }
}

#[test]
fn the_documented_table_is_this_one() {
    let documented = include_str!("../../../../../docs/vcenter.md");
    let rows: Vec<Vec<&str>> = documented
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split(" |").map(str::trim).collect())
        .filter(|row: &Vec<&str>| row.len() == 4)
        .collect();
    let expected: Vec<Vec<String>> = TABLE
        .iter()
        .map(|line| {
            let subject = match line.subject {
                Subject::ServiceInstance => "the service instance",
                Subject::SessionManager => "the session manager",
                Subject::PropertyCollector => "the property collector",
                Subject::OwnFilter => "a filter of this session",
                Subject::Vm => "the machine",
                Subject::VmOrOwnTask => "the machine or a task of this session",
            };
            let handling = match line.handling {
                Handling::Open => "answered here, also without a session",
                Handling::Local => "answered here",
                Handling::Read => "read",
                Handling::Power => "forwarded, unless `console_power` is `none`",
                Handling::Operate => "forwarded",
                Handling::Ticket => "forwarded, its answer sealed",
            };
            let parameters: Vec<_> = line.parameters.iter().map(|name| format!("`{name}`")).collect();
            vec![format!("`{}`", line.method), subject.into(), parameters.join(", "), handling.into()]
        })
        .collect();
    assert_eq!(rows, expected);
}
