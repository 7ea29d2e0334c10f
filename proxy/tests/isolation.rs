//! Whatever a tenant's people and programs ask, with whatever tickets they got: no call reaches a machine of another tenant, at the
//! vCenter or at the host. Generated orgs, machines, tickets and requests, through the real binary.

mod support;
mod vcenter_rig;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use mksgate::ticket::TargetKind;
use mksgate_bench::sim::{Esxi, EsxiConfig, EventKind, Screen, Ticket, Vm};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};
use serde_json::json;
use support::{Appliance, Setup, client};
use vcenter_rig::fake::{Answer, Call, Console, FakeVcenter, between, envelope};
use vcenter_rig::http::ask;

/// Machines at the vCenter: vm-1 to vm-12.
const MACHINES: usize = 12;
/// Names of machines that orgs use: few, so that two orgs mean two machines by one name.
const NAMES: usize = 5;
const ORGS: usize = 3;
/// Stands for the ticket's machine in a generated request.
const OWN: &str = "OWN";

/// Which machine each org calls what. Machine `m` belongs to org `m % ORGS` if to any.
type Table = Vec<BTreeMap<usize, usize>>;

#[derive(Clone, Debug)]
enum Act {
    /// A portal orders a ticket for an org, and a client uses it at a door, naming some machine.
    Console { name: usize, door: usize, asked: usize },
    /// A vSphere client with a ticket of the org's asks this.
    Sdk { machine: usize, asked: Vec<Asked> },
}

#[derive(Clone, Debug)]
struct Asked {
    method: &'static str,
    kind: &'static str,
    object: String,
    inner: String,
    trick: u8,
}

fn table() -> impl Strategy<Value = Table> {
    let org = |org: usize| {
        proptest::collection::btree_map(
            0..NAMES,
            (0..MACHINES / ORGS).prop_map(move |n| n * ORGS + org),
            1..NAMES,
        )
    };
    (org(0), org(1), org(2)).prop_map(|(a, b, c)| vec![a, b, c])
}

fn id(machine: usize) -> String {
    format!("vm-{}", machine + 1)
}

fn objects() -> impl Strategy<Value = String> {
    prop_oneof![
        5 => Just(OWN.to_owned()),
        6 => (0..MACHINES).prop_map(id),
        1 => select(vec!["group-d1", "group-v3", "ServiceInstance", "SessionManager", "propertyCollector", "task-1", "task-9", "host-1", ""])
            .prop_map(str::to_owned),
    ]
}

fn asked() -> impl Strategy<Value = Asked> {
    let methods = vec![
        "PowerOnVM_Task",
        "PowerOffVM_Task",
        "ResetVM_Task",
        "SuspendVM_Task",
        "AcquireTicket",
        "AcquireMksTicket",
        "AnswerVM",
        "ReconfigVM_Task",
        "RetrieveProperties",
        "RetrievePropertiesEx",
        "CreateFilter",
        "WaitForUpdatesEx",
        "Fetch",
        "Destroy_Task",
        "CloneVM_Task",
        "FindByUuid",
        "AcquireCloneTicket",
        "Login",
        "MoveIntoFolder_Task",
        "DestroyPropertyFilter",
        "QueryOptions",
        "RegisterVM_Task",
    ];
    let kinds = vec![
        "VirtualMachine",
        "VirtualMachine",
        "VirtualMachine",
        "PropertyCollector",
        "Folder",
        "Task",
        "SessionManager",
        "ServiceInstance",
        "PropertyFilter",
        "ManagedEntity",
    ];
    (select(methods), select(kinds), objects(), objects(), 0..16u8)
        .prop_map(|(method, kind, object, inner, trick)| Asked { method, kind, object, inner, trick })
}

fn acts() -> impl Strategy<Value = Vec<(usize, Act)>> {
    let act = prop_oneof![
        (0..NAMES, 0..3usize, 0..NAMES).prop_map(|(name, door, asked)| Act::Console { name, door, asked }),
        (0..MACHINES, proptest::collection::vec(asked(), 1..7))
            .prop_map(|(machine, asked)| Act::Sdk { machine, asked }),
    ];
    proptest::collection::vec((0..ORGS, act), 20..40)
}

/// The request's text, with one of the ways to say two things at once.
fn soap(asked: &Asked, own: &str) -> String {
    let Asked { method, kind, object, inner, trick } = asked;
    let named = |text: &str| if text == OWN { own.to_owned() } else { text.to_owned() };
    let (mut kind, mut object, inner) = (*kind, named(object), named(inner));
    if *trick < 4 {
        // As a client writes it, whatever it asks for.
        let collector = ["RetrieveProperties", "RetrievePropertiesEx", "CreateFilter", "WaitForUpdatesEx"];
        (kind, object) = match collector.contains(method) {
            true => ("PropertyCollector", "propertyCollector".to_owned()),
            false => ("VirtualMachine", object),
        };
    }
    let this = match trick {
        4 => format!("<_this type=\"VirtualMachine\">{own}</_this><_this type=\"{kind}\">{object}</_this>"),
        5 => format!(
            "<_this xmlns=\"urn:other\" type=\"VirtualMachine\">{own}</_this><_this type=\"{kind}\">{object}</_this>"
        ),
        6 => format!("<_this type=\"{kind}\"><![CDATA[{object}]]></_this>"),
        7 => format!("<_this type=\"{kind}\">{}</_this>", object.replace('-', "<!-- -->-")),
        8 => format!("<_this type=\"{kind}\">{}</_this>", object.replace('-', "&#45;")),
        9 => format!("<_this type=\"{kind}\"> {object} </_this>"),
        10 => format!("<_this type=\"{kind}\" serverGuid=\"x\">{own}<x>{object}</x></_this>"),
        _ => format!("<_this type=\"{kind}\">{object}</_this>"),
    };
    let reference = format!("<obj type=\"VirtualMachine\">{inner}</obj>");
    let walk = "<selectSet xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" xsi:type=\"TraversalSpec\"><type>VirtualMachine</type><path>parent</path></selectSet>";
    let walk = if *trick == 11 { walk } else { "" };
    let filter = format!(
        "<propSet><type>VirtualMachine</type><pathSet>runtime.powerState</pathSet></propSet><objectSet>{reference}{walk}</objectSet>"
    );
    let parameters = match *method {
        "AcquireTicket" => "<ticketType>mks</ticketType>".to_owned(),
        "RetrieveProperties" | "RetrievePropertiesEx" => format!("<specSet>{filter}</specSet><options/>"),
        "CreateFilter" => format!("<spec>{filter}</spec><partialUpdates>false</partialUpdates>"),
        "Fetch" => "<prop>runtime</prop>".to_owned(),
        "AnswerVM" => "<questionId>1</questionId><answerChoice>0</answerChoice>".to_owned(),
        "ReconfigVM_Task" => format!(
            "<spec><deviceChange><operation>edit</operation><device xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" xsi:type=\"VirtualCdrom\"><key>3000</key><backing><datastore type=\"Datastore\">{inner}</datastore></backing><connectable><connected>true</connected></connectable></device></deviceChange></spec>"
        ),
        "MoveIntoFolder_Task" => format!("<list type=\"VirtualMachine\">{inner}</list>"),
        _ => String::new(),
    };
    let operation = format!("<{method} xmlns=\"urn:vim25\">{this}{parameters}</{method}>");
    match trick {
        12 => envelope(&format!(
            "<PowerOnVM_Task xmlns=\"urn:vim25\"><_this type=\"VirtualMachine\">{own}</_this></PowerOnVM_Task>{operation}"
        )),
        13 => envelope(&operation).replacen(
            "<soapenv:Body>",
            &format!("<soapenv:Header>{operation}</soapenv:Header><soapenv:Body>"),
            1,
        ),
        14 => envelope(&operation).replacen("?>", &format!("?><!DOCTYPE x [<!ENTITY o \"{object}\">]>"), 1),
        15 => envelope(&operation).replacen(
            "</soapenv:Body>",
            &format!("</soapenv:Body><soapenv:Body>{operation}</soapenv:Body>"),
            1,
        ),
        _ => envelope(&operation),
    }
}

struct World {
    gate: Appliance,
    vcenter: FakeVcenter,
    host: Arc<Esxi>,
    table: Table,
    portal: u64,
}

fn path(machine: &str) -> String {
    format!("[ds] {machine}/{machine}.vmx")
}

impl World {
    fn start(table: Table) -> Self {
        let mut config = EsxiConfig::default();
        for machine in 0..MACHINES {
            config = config.vm(Vm::plain(&path(&id(machine)), Screen::echo()));
        }
        let host = Arc::new(Esxi::start(config).unwrap());
        let console = Console { host: host.addr(), thumbprint: host.thumbprint_sha1(), path: String::new() };
        // Each machine's ticket is for that machine alone, as at a real host.
        let (tickets, giving, number) = (host.clone(), console.clone(), AtomicU64::new(0));
        let vcenter = FakeVcenter::start(console, move |call: &Call| {
            if !matches!(call.method.as_str(), "AcquireTicket" | "AcquireMksTicket") {
                return Answer::Usual;
            }
            let (ticket, path) = (format!("t-{}", number.fetch_add(1, Ordering::SeqCst)), path(&call.object));
            tickets.add_ticket(Ticket::new(&ticket, &path).one_time());
            Answer::Inside(format!(
                "<{0}Response xmlns=\"urn:vim25\"><returnval><ticket>{ticket}</ticket><cfgFile>{path}</cfgFile><host>{1}</host><port>{2}</port><sslThumbprint>{3}</sslThumbprint></returnval></{0}Response>",
                call.method,
                giving.host.ip(),
                giving.host.port(),
                giving.thumbprint
            ))
        });
        let setup = Setup::new();
        let dir = setup.dir.path().to_owned();
        std::fs::write(dir.join("portal"), "portal-secret").unwrap();
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(dir.join("portal"), std::fs::Permissions::from_mode(0o600)).unwrap();
        let mut desk = "[limits]\nper_source = 10000\nsource_rate = 100000\nsource_burst = 100000\n[desk]\ntoken_file = \"portal\"\nattempts_per_source = 1000000\n".to_owned();
        let mut tenants = String::new();
        for (org, machines) in table.iter().enumerate() {
            desk.push_str(&format!("[desk.orgs.org-{org}]\ntenant = \"tenant-{org}\"\n"));
            for (name, machine) in machines {
                desk.push_str(&format!(
                    "vms.vm-{name} = {{ vcenter = \"lab\", moref = \"{}\" }}\n",
                    id(*machine)
                ));
            }
            tenants.push_str(&format!(
                "[tenants.tenant-{org}]\nmax_sessions = 1000\nconsole_power = \"operations\"\ntargets = [\"127.0.0.0/8\"]\n"
            ));
        }
        let gate = setup.with(&vcenter.account("lab", &dir)).with(&desk).tenants(&tenants).start();
        Self { gate, vcenter, host, table, portal: 0 }
    }

    /// Waits until nobody is on the way any more: what an act caused is its own.
    fn settle(&self) {
        let began = Instant::now();
        // The host's books are complete when its last connection is over.
        while self.gate.metric("mksgate_preauth_connections", &[]) > 0.0 || self.host.open_connections() > 0 {
            assert!(began.elapsed() < support::PATIENCE, "a connection neither came through nor was refused");
            std::thread::yield_now();
        }
    }

    fn act(&mut self, org: usize, act: &Act) {
        match act {
            Act::Console { name, door, asked } => {
                let order = json!({ "org": format!("org-{org}"), "user": "p", "vm": format!("vm-{name}") });
                let head = "POST /v1/tickets HTTP/1.1\r\nAuthorization: Bearer portal-secret\r\n";
                let made = ask(self.gate.tls, head, &order.to_string());
                assert_eq!(made.status, if self.table[org].contains_key(name) { 201 } else { 403 });
                let Ok(made) = serde_json::from_str::<serde_json::Value>(&made.body) else { return };
                let Some(ticket) = made["ticket"].as_str() else { return };
                let vm = format!("vm-{asked}");
                match door {
                    0 => drop(client::open(client::authd(self.gate.authd), ticket, &vm)),
                    1 => drop(client::open(client::mks(self.gate.tls), ticket, &vm)),
                    _ => {
                        let head = format!(
                            "GET /ticket/{ticket} HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
                        );
                        let mut tls = client::Tls::start(client::connect(self.gate.tls)).unwrap();
                        tls.send(&head).unwrap();
                        drop(tls.line());
                    }
                }
            }
            Act::Sdk { machine, asked } => {
                // The org's own machine; tickets of other orgs' do not come into its hands.
                let own = id(machine / ORGS * ORGS + org);
                self.portal += 1;
                let mut claims = support::claims(self.vcenter.address, "");
                claims.tenant = format!("tenant-{org}");
                (claims.vm, claims.target.kind, claims.target.ticket) =
                    (own.clone(), TargetKind::Vcenter, None);
                claims.target.thumbprints.clear();
                let sealed = self.gate.keys.seal(&claims).unwrap();
                let clone = envelope(&format!(
                    "<CloneSession xmlns=\"urn:vim25\"><_this type=\"SessionManager\">SessionManager</_this><cloneTicket>{sealed}</cloneTicket></CloneSession>"
                ));
                let head =
                    "POST /sdk HTTP/1.1\r\nContent-Type: text/xml\r\nSOAPAction: \"urn:vim25/7.0\"\r\n";
                let opened = ask(self.gate.tls, head, &clone);
                assert_eq!(opened.status, 200, "{opened:?}");
                let cookie = opened.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
                for one in asked {
                    let answer = ask(self.gate.tls, &format!("{head}Cookie: {cookie}\r\n"), &soap(one, &own));
                    let Some(ticket) = between(&answer.body, "<ticket>", "</ticket>") else { continue };
                    // A ticket that came of it is used, at whatever machine.
                    let path = path(one.inner.trim_matches(char::is_whitespace));
                    drop(client::open(client::authd(self.gate.authd), ticket, &path));
                    drop(client::open(client::authd(self.gate.authd), ticket, &self::path(&own)));
                }
            }
        }
    }
}

/// What each org may do, so that what is refused is not all there is.
fn allowed(table: &Table) -> Vec<(usize, Act)> {
    let asked = |method| Asked { method, kind: "", object: OWN.into(), inner: OWN.into(), trick: 0 };
    let mut acts = Vec::new();
    for (org, machines) in table.iter().enumerate() {
        let methods = ["PowerOffVM_Task", "RetrievePropertiesEx", "AcquireTicket"];
        acts.push((org, Act::Sdk { machine: org, asked: methods.map(asked).into() }));
        acts.extend(machines.keys().map(|&name| (org, Act::Console { name, door: 1, asked: name })));
    }
    acts
}

/// The machine of a path of ours.
fn machine(path: &str) -> &str {
    path.strip_prefix("[ds] ").and_then(|path| path.split('/').next()).unwrap_or(path)
}

#[test]
fn no_request_of_a_tenant_reaches_anothers_machine() {
    let mut seen = BTreeSet::new();
    let seen_in = std::cell::RefCell::new(&mut seen);
    let config = Config { cases: 4, max_shrink_iters: 30, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&(table(), acts()), |(table, acts)| {
            let mut world = World::start(table);
            let mut events = world.host.events();
            for (org, act) in allowed(&world.table).iter().chain(&acts) {
                world.act(*org, act);
                world.settle();
                let owned: BTreeSet<String> = (0..MACHINES).filter(|m| m % ORGS == *org).map(id).collect();
                for call in world.vcenter.calls() {
                    // Not only the object that is asked: nothing in the whole request names another's machine, or anything else.
                    let strange = (0..MACHINES).map(id).filter(|id| !owned.contains(id)).find(|id| {
                        let text = &call.body;
                        text.match_indices(id.as_str())
                            .any(|(at, _)| !text[at + id.len()..].starts_with(|c: char| c.is_ascii_digit()))
                    });
                    prop_assert!(strange.is_none(), "org {org}: {act:?} reached {strange:?}: {}", call.body);
                    let known = ["ServiceInstance", "SessionManager", "propertyCollector", "task-1"];
                    prop_assert!(
                        owned.contains(&call.object) || known.contains(&call.object.as_str()),
                        "{call:?}"
                    );
                    seen_in.borrow_mut().insert(call.method);
                }
                for event in events.drain() {
                    if let EventKind::Connected { vm } = event.kind {
                        prop_assert!(owned.contains(machine(&vm)), "org {org}: {act:?} saw {vm}");
                        seen_in.borrow_mut().insert("a console".to_owned());
                    }
                }
            }
            Ok(())
        })
        .unwrap();
    // What may get through did, or none of this says anything.
    for method in ["AcquireTicket", "PowerOffVM_Task", "RetrievePropertiesEx", "a console"] {
        assert!(seen.contains(method), "{method} never came through: {seen:?}");
    }
}
