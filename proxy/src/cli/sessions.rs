//! `mksgate sessions`: who is on which console now, and ending it.

use std::net::IpAddr;

use clap::{Args, Subcommand};

use super::output::{Align, Outcome, Report, SocketArg, age, bytes, print, printable, table, to_json};
use crate::admin::client::{Client, with_query};
use crate::admin::{BackendList, BackendView, Closed, SessionList};
use crate::session::{Selector, SessionView};

/// `mksgate sessions …`
#[derive(Args, Debug)]
pub struct SessionsCommand {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the live consoles with both sockets of each, as `ss -tn` prints them
    List(List),
    /// Show how the hosts and vCenters behind do
    Backends(Backends),
    /// End consoles at once
    Close(Close),
}

#[derive(Args, Debug)]
struct List {
    #[command(flatten)]
    socket: SocketArg,
    #[command(flatten)]
    filter: Filter,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct Backends {
    #[command(flatten)]
    socket: SocketArg,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct Close {
    #[command(flatten)]
    socket: SocketArg,
    /// Numbers of the first column of the list
    #[arg(required_unless_present = "filter", conflicts_with = "filter")]
    ids: Vec<u64>,
    #[command(flatten)]
    filter: Filter,
}

/// All given options must match.
#[derive(Args, Clone, Debug, Default)]
#[group(id = "filter", multiple = true)]
struct Filter {
    /// Of this tenant
    #[arg(long)]
    tenant: Option<String>,
    /// Of this person
    #[arg(long)]
    user: Option<String>,
    /// Of this VM
    #[arg(long)]
    vm: Option<String>,
    /// Opened by this ticket
    #[arg(long)]
    jti: Option<String>,
    /// From this client address
    #[arg(long, value_name = "IP")]
    source: Option<IpAddr>,
    /// To this hypervisor address
    #[arg(long, value_name = "IP")]
    backend: Option<IpAddr>,
    /// With this end of either socket, as `ss -tn` prints it
    #[arg(long, value_name = "ADDRESS:PORT")]
    end: Option<String>,
}

impl SessionsCommand {
    /// Runs it.
    ///
    /// # Errors
    /// The appliance does not answer, refuses, or nothing was there to close.
    pub fn run(&self) -> Outcome {
        print(&self.report()?)
    }

    /// What [`SessionsCommand::run`] prints.
    ///
    /// # Errors
    /// As there.
    pub fn report(&self) -> Report {
        match &self.verb {
            Verb::List(list) => list.report(),
            Verb::Backends(backends) => backends.report(),
            Verb::Close(close) => close.report(),
        }
    }
}

impl List {
    fn report(&self) -> Report {
        let list = fetch(&self.socket.client(), &self.filter.selector())?;
        if self.json {
            return to_json(&list);
        }
        let backends: BackendList = self.socket.client().get("/v1/backends")?;
        Ok(render(&list.sessions) + &trouble(&backends))
    }
}

impl Backends {
    fn report(&self) -> Report {
        let list: BackendList = self.socket.client().get("/v1/backends")?;
        if self.json { to_json(&list) } else { Ok(render_backends(&list)) }
    }
}

/// A line for each backend that fails just now; nothing where all are well.
fn trouble(list: &BackendList) -> String {
    let failing = list.hosts.iter().chain(&list.vcenters).filter(|backend| backend.failing);
    failing
        .map(|backend| {
            let why = backend.last_error.as_deref().unwrap_or("no reason known");
            printable(&format!("failing: {} ({why})", backend.address)) + "\n"
        })
        .collect()
}

fn render_backends(list: &BackendList) -> String {
    const HEAD: [(&str, Align); 6] = [
        ("KIND", Align::Left),
        ("ADDRESS", Align::Left),
        ("STATE", Align::Left),
        ("ANSWERED", Align::Right),
        ("FAILED", Align::Right),
        ("LAST ERROR", Align::Left),
    ];
    let row = |kind: &str, backend: &BackendView| {
        let error = backend.last_error.clone().zip(backend.last_error_at.clone());
        vec![
            kind.to_owned(),
            backend.address.clone(),
            if backend.failing { "failing" } else { "ok" }.to_owned(),
            backend.answered.to_string(),
            backend.failed.to_string(),
            error.map_or(String::new(), |(why, at)| format!("{at} {why}")),
        ]
    };
    let vcenters = list.vcenters.iter().map(|vcenter| row("vcenter", vcenter));
    let rows: Vec<_> = vcenters.chain(list.hosts.iter().map(|host| row("host", host))).collect();
    table(&HEAD, &rows)
}

impl Close {
    fn report(&self) -> Report {
        let client = self.socket.client();
        let mut closed = Vec::new();
        for id in &self.ids {
            closed.extend(client.delete::<Closed>(&format!("/v1/sessions/{id}"))?.closed);
        }
        if self.ids.is_empty() {
            closed = client.post::<Closed>("/v1/sessions/close", &self.filter.selector())?.closed;
        }
        if closed.is_empty() {
            return Err("no session matches; `mksgate sessions list` shows the live ones".into());
        }
        Ok(format!("closed {}: {}\n", closed.len(), numbers(&closed)))
    }
}

impl Filter {
    fn selector(&self) -> Selector {
        let Self { tenant, user, vm, jti, source, backend, end } = self.clone();
        Selector { id: None, jti, tenant, user, vm, source, backend, socket: end }
    }
}

/// The live sessions that match; all with an empty selector.
pub(super) fn fetch(
    client: &Client,
    selector: &Selector,
) -> Result<SessionList, crate::admin::client::ClientError> {
    let text = |field: &Option<String>| field.clone();
    let ip = |field: Option<IpAddr>| field.map(|ip| ip.to_string());
    let pairs = [
        ("tenant", text(&selector.tenant)),
        ("user", text(&selector.user)),
        ("vm", text(&selector.vm)),
        ("jti", text(&selector.jti)),
        ("source", ip(selector.source)),
        ("backend", ip(selector.backend)),
        ("socket", text(&selector.socket)),
        ("id", selector.id.map(|id| id.to_string())),
    ];
    client.get(&with_query("/v1/sessions", pairs.into_iter().filter_map(|(k, v)| Some((k, v?)))))
}

pub(super) fn numbers(ids: &[u64]) -> String {
    ids.iter().map(u64::to_string).collect::<Vec<_>>().join(" ")
}

fn render(sessions: &[SessionView]) -> String {
    const HEAD: [(&str, Align); 13] = [
        ("ID", Align::Right),
        ("TENANT", Align::Left),
        ("USER", Align::Left),
        ("VM", Align::Left),
        ("DOOR", Align::Left),
        ("AGE", Align::Right),
        ("IDLE", Align::Right),
        ("UP", Align::Right),
        ("DOWN", Align::Right),
        ("CLIENT LOCAL", Align::Left),
        ("CLIENT PEER", Align::Left),
        ("BACKEND LOCAL", Align::Left),
        ("BACKEND PEER", Align::Left),
    ];
    let row = |s: &SessionView| {
        vec![
            s.id.to_string(),
            s.tenant.clone(),
            s.user.clone(),
            s.vm.clone(),
            s.door.as_str().to_owned(),
            age(s.age_seconds),
            age(s.idle_seconds),
            bytes(s.up_bytes),
            bytes(s.down_bytes),
            s.client.local.clone(),
            s.client.peer.clone(),
            s.backend.local.clone(),
            s.backend.peer.clone(),
        ]
    };
    let mut head = HEAD.to_vec();
    let mut rows: Vec<Vec<String>> = sessions.iter().map(row).collect();
    // Behind a load balancer the socket's peer is not who it is.
    if sessions.iter().any(|s| s.source != s.client.peer) {
        head.push(("SOURCE", Align::Left));
        for (row, session) in rows.iter_mut().zip(sessions) {
            row.push(session.source.clone());
        }
    }
    table(&head, &rows)
}
