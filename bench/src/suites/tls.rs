//! TLS and WebSocket on the client's side, plain TCP behind, beside those who do the same: same certificate, same suite, one
//! proxy thread. Bulk runs from the backend to the client, as a screen does.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::json;

use crate::load::appliance::Appliance;
use crate::load::bulk::Bulk;
use crate::load::cost::cores;
use crate::load::goals::{Goal, geometric_mean};
use crate::load::handshake::{self, HandshakeRound, Server};
use crate::load::pingpong::PingPong;
use crate::load::sealed::Sealed;
use crate::load::terminator::{Identity, KeyKind, Terminating, Terminator};
use crate::load::{idle, sealed, wire};
use crate::run::facts::fitting;
use crate::run::rounds::of;
use crate::run::{Context, Outcome, Series, Spread, Table};

const SUITE: &str = "tls";
/// Size of a write, bytes.
const WRITE: usize = 64 << 10;
/// Tickets per second of a round: more than any core opens.
const TICKETS: f64 = 6000.0;

/// Measures everything of the table bulk, ping-pong, idle sessions, handshakes.
pub fn run(context: &Context, out: &mut Outcome) -> Result<()> {
    let identity = Identity::make(KeyKind::Ecdsa, context.dir())?;
    let (listener, backend) = wire::listen()?;
    out.note("every connection: TLS 1.3, TLS_AES_128_GCM_SHA256, P-256; the clients offer nothing else");
    let mut start = |terminator: Terminator, out: &mut Outcome| {
        let start = || terminator.start(backend, &identity, context.dir());
        let running = context.peer(terminator.peer_name(), out, start)?;
        out.version(terminator.to_string(), terminator.version());
        Some(running)
    };
    let tls = [Terminator::Mksgate, Terminator::Haproxy, Terminator::Nginx, Terminator::Stunnel];
    let mut tls: Vec<_> = tls.into_iter().filter_map(|t| start(t, out)).collect();
    let web = [Terminator::MksgateWeb, Terminator::Websockify];
    let mut web: Vec<_> = web.into_iter().filter_map(|t| start(t, out)).collect();
    speed(context, out, &listener, &mut tls, context.pick(&[1, 64, 512], &[64]))?;
    // websockify has a process for each connection, with two descriptors of every earlier one, and waits by select(2), which
    // knows 1,024: it breaks connections before the 512th.
    speed(context, out, &listener, &mut web, context.pick(&[1, 64, 448], &[64]))?;
    drop((tls, web));
    idle_sessions(context, out, &listener, &mut start)?;
    for kind in [KeyKind::Ecdsa, KeyKind::Rsa] {
        handshakes(context, out, kind)?;
    }
    Ok(())
}

/// Bulk and ping-pong with so many flows each.
fn speed(
    context: &Context,
    out: &mut Outcome,
    listener: &TcpListener,
    contenders: &mut [Terminating],
    flows: &[usize],
) -> Result<()> {
    let config = sealed::config()?;
    let (rounds, seconds) = (context.rounds(3, 1), context.seconds(1.5, 1.0));
    let connect =
        |c: &Terminating, flows| sealed::connect(c.address, listener, flows, c.terminator.is_web(), &config);
    let mut bulk = Vec::new();
    // `--bulk` and `--ping-pong` name cases as they do for the suite `flow`; 0: none.
    let named = |only: &[usize], flows: &&usize| only.is_empty() || only.contains(flows);
    for &flows in flows.iter().filter(|flows| named(&context.options.bulk, flows)) {
        let case = Bulk { flows, write: WRITE };
        let series = context.alternate(out, rounds, contenders, |c| {
            let ends =
                connect(c, flows)?.into_iter().map(|(client, backend)| (client.into_socket(), backend));
            case.flood(Some(c.pid()), ends.collect(), seconds)
        })?;
        out.table(case.table(&series));
        out.raw("bulk", json!({ "case": case, "series": series }));
        bulk.push(series);
    }
    let mut ping_pong = Vec::new();
    for &flows in flows.iter().filter(|flows| named(&context.options.ping_pong, flows)) {
        let case = PingPong { flows };
        let series = context.alternate(out, rounds, contenders, |c| {
            PingPong::play(Some(c.pid()), connect(c, flows)?, seconds)
        })?;
        out.table(case.table(&series));
        out.raw("ping_pong", json!({ "case": case, "series": series }));
        ping_pong.push(series);
    }
    let goals = [
        (means(&bulk, "mksgate", "haproxy", |r| r.proxy), "bulk: proxy CPU per GB / HAProxy's, mean", 0.5),
        (means(&bulk, "mksgate", "stunnel", |r| r.proxy), "bulk: proxy CPU per GB / stunnel's, mean", 0.65),
        (
            means(&ping_pong, "mksgate", "haproxy", |r| r.proxy),
            "ping-pong: proxy CPU per round trip / HAProxy's, mean",
            0.7,
        ),
    ];
    for (ratio, name, bound) in goals {
        out.goals.extend(ratio.map(|ratio| Goal::at_most(SUITE, name, ratio, bound)));
    }
    let more = [
        (means(&bulk, "websockify", "mksgate wss", |r| r.proxy), "bulk"),
        (means(&ping_pong, "websockify", "mksgate wss", |r| r.proxy), "ping-pong"),
    ];
    for (more, what) in more {
        let name = format!("WebSocket, {what}: throughput per CPU second / websockify's, mean");
        out.goals.extend(more.map(|more| Goal::at_least(SUITE, name, more, 10.0)));
    }
    Ok(())
}

/// One figure of `ours` over that of `theirs`: the geometric mean of all cases, round by round.
fn means<R>(
    cases: &[Vec<Series<R>>],
    ours: &str,
    theirs: &str,
    figure: impl Fn(&R) -> f64,
) -> Option<Spread> {
    let pairs: Option<Vec<_>> = cases.iter().map(|case| Some((of(case, ours)?, of(case, theirs)?))).collect();
    let pairs = pairs.filter(|pairs| !pairs.is_empty())?;
    let rounds = pairs.iter().map(|(a, b)| a.rounds.len().min(b.rounds.len())).min()?;
    let round =
        |n: usize| geometric_mean(pairs.iter().map(|(a, b)| figure(&a.rounds[n]) / figure(&b.rounds[n])));
    Some(Spread::of((0..rounds).map(round)))
}

/// Sessions that were used once and are silent.
fn idle_sessions(
    context: &Context,
    out: &mut Outcome,
    listener: &TcpListener,
    start: &mut impl FnMut(Terminator, &mut Outcome) -> Option<Terminating>,
) -> Result<()> {
    let config = sealed::config()?;
    let wanted = context.options.sessions.unwrap_or(context.pick(2000, 500));
    // Both ends of a session are this process's.
    let sessions = wanted.min(fitting(2));
    if sessions == 0 {
        return Ok(());
    }
    if sessions < wanted {
        out.note(format!("{wanted} sessions asked for; the limit of open files lets {sessions} fit"));
    }
    let mut table = Table::new(format!("{sessions} idle sessions"), ["", "KiB resident per session"]);
    let mut found: Vec<(String, f64)> = Vec::new();
    for terminator in [
        Terminator::Mksgate,
        Terminator::MksgateWeb,
        Terminator::Haproxy,
        Terminator::Nginx,
        Terminator::Stunnel,
    ] {
        context.stop.check()?;
        // A fresh one each: what it needed for other measurements is not counted as free room.
        let Some(running) = start(terminator, out) else { continue };
        let open = || sealed::connect(running.address, listener, sessions, terminator.is_web(), &config);
        match context.watch(|| idle::measure(running.pid(), open)) {
            Ok(round) => {
                out.raw("idle", json!({ "contender": terminator.to_string(), "round": round }));
                found.push((terminator.to_string(), round.per_session / 1024.0));
            }
            Err(error) => out.note(format!("{terminator} failed: {error:#}")),
        }
    }
    if let Some(kib) = idle_consoles(context, out, sessions)? {
        found.push(("mksgate serve".to_owned(), kib));
    }
    for (name, kib) in &found {
        table.row([name.clone(), format!("{kib:.2}")]);
    }
    out.table(table);
    let kib = |who: &str| found.iter().find(|(name, _)| name == who).map(|(_, kib)| *kib);
    for ours in ["mksgate", "mksgate serve"] {
        let Some(mine) = kib(ours) else { continue };
        out.goals.push(Goal::at_most(SUITE, format!("{ours}: KiB resident per idle session"), mine, 12.0));
        if let Some(theirs) = kib("haproxy") {
            let name = format!("{ours}: resident per idle session / HAProxy's");
            out.goals.push(Goal::at_most(SUITE, name, mine / theirs, 0.6));
        }
    }
    Ok(())
}

/// The same through the real appliance: with ticket, WebSocket, registry and audit trail.
fn idle_consoles(context: &Context, out: &mut Outcome, sessions: usize) -> Result<Option<f64>> {
    let (server, config) = (Server::start()?, sealed::config()?);
    server.keep(true);
    let mut appliance = match Appliance::start(context, (cores() > 1).then_some("0")) {
        Ok(appliance) => appliance,
        Err(error) => {
            out.note(format!("the appliance does not start; left out: {error:#}"));
            return Ok(None);
        }
    };
    let (address, pid) = (appliance.tls(), appliance.pid());
    let tickets: Result<Vec<String>> = (0..sessions).map(|_| appliance.vnc_ticket(server.address)).collect();
    let tickets = tickets?;
    let round = context.watch(|| {
        idle::held(pid, || {
            tickets.iter().map(|ticket| handshake::console(address, ticket, &config)).collect()
        })
    });
    server.keep(false);
    appliance.alive()?;
    let round = round.context("idle consoles through the appliance")?;
    out.raw("idle", json!({ "contender": "mksgate serve", "round": round }));
    Ok(Some(round.per_session / 1024.0))
}

/// HAProxy, with RFB's whole handshake carried to the server and back: as far as the appliance's consoles come, less WebSocket
/// and ticket.
const THROUGH: &str = "haproxy, to ServerInit";
/// A whole console through the appliance.
const WHOLE: &str = "mksgate serve";
/// The same as far as HAProxy's case goes.
const FIRST_LINE: &str = "mksgate serve, to the first line";

/// One whose consoles are opened.
struct Lane {
    name: &'static str,
    open: Open,
    pid: u32,
}

enum Open {
    /// Up to the server's first line.
    Plain(Terminating),
    /// Up to ServerInit.
    Through(Terminating),
    /// With a ticket, to RFB's first line.
    FirstLine(Box<Appliance>),
    /// With a ticket, up to ServerInit.
    Console(Box<Appliance>),
}

impl std::fmt::Display for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

fn handshakes(context: &Context, out: &mut Outcome, kind: KeyKind) -> Result<()> {
    let (server, config) = (Server::start()?, sealed::config()?);
    let identity = Identity::make(kind, context.dir())?;
    let mut lanes = Vec::new();
    for (name, open) in [(WHOLE, Open::Console as fn(_) -> _), (FIRST_LINE, Open::FirstLine as fn(_) -> _)] {
        let start = || {
            let appliance = Appliance::start_with(context, (cores() > 1).then_some("0"), Some(&identity))?;
            Ok(Some(Lane { name, pid: appliance.pid(), open: open(Box::new(appliance)) }))
        };
        lanes.extend(context.peer("mksgate", out, start));
    }
    let plain =
        [Terminator::Haproxy, Terminator::Nginx].map(|t| (t, t.peer_name(), Open::Plain as fn(_) -> _));
    let through = (Terminator::Haproxy, THROUGH, Open::Through as fn(_) -> _);
    for (terminator, name, open) in plain.into_iter().chain([through]) {
        let start = || {
            let running = terminator.start(server.address, &identity, context.dir())?;
            Ok(running.map(|running| Lane { name, pid: running.pid(), open: open(running) }))
        };
        lanes.extend(context.peer(terminator.peer_name(), out, start));
    }
    let (rounds, seconds) = (context.rounds(3, 1), context.seconds(3.0, 1.5));
    let series = context.alternate(out, rounds, &mut lanes, |lane| match &mut lane.open {
        Open::Plain(running) => {
            let address = running.address;
            handshake::run(lane.pid, seconds, || handshake::plain(address, &config))
        }
        Open::Through(running) => {
            let address = running.address;
            handshake::run(lane.pid, seconds, || handshake::through(address, &config))
        }
        Open::Console(appliance) => with_tickets(lane.pid, appliance, &server, seconds, |to, ticket| {
            handshake::console(to, ticket, &config)
        }),
        Open::FirstLine(appliance) => with_tickets(lane.pid, appliance, &server, seconds, |to, ticket| {
            handshake::first_line(to, ticket, &config)
        }),
    })?;
    handshake_report(out, kind, &series);
    Ok(())
}

/// A ticket each, as in life: none is opened twice. For each the appliance has to connect to the server.
fn with_tickets(
    pid: u32,
    appliance: &mut Appliance,
    server: &Server,
    seconds: f64,
    open: impl Fn(SocketAddr, &str) -> Result<Sealed> + Sync,
) -> Result<HandshakeRound> {
    let count = (seconds * TICKETS) as usize;
    let tickets: Result<Vec<String>> = (0..count).map(|_| appliance.vnc_ticket(server.address)).collect();
    let (tickets, address, before) = (Mutex::new(tickets?), appliance.tls(), server.accepted());
    let round = handshake::run(pid, seconds, || {
        let ticket = tickets.lock().unwrap_or_else(PoisonError::into_inner).pop();
        open(address, &ticket.context("no ticket is left")?)
    })?;
    let connected = server.accepted() - before;
    ensure!(connected > round.consoles, "{} consoles, {connected} connections to the server", round.consoles);
    Ok(round)
}

fn handshake_report(out: &mut Outcome, kind: KeyKind, series: &[Series<HandshakeRound>]) {
    let head = ["", "consoles/s", "proxy µs", "per second and core", "system µs"];
    let mut table = Table::new(format!("full TLS 1.3 handshake and connect, {kind}"), head);
    for s in series {
        table.row([
            s.contender.clone(),
            format!("{:.0}", s.median(|r| r.per_s)),
            format!("{:.0}", s.median(|r| r.proxy)),
            format!("{:.0}", s.median(|r| 1e6 / r.proxy)),
            format!("{:.0}", s.median(|r| r.system)),
        ]);
    }
    out.table(table);
    out.raw("handshakes", case(kind, series));
    let bound = if kind == KeyKind::Ecdsa { 0.65 } else { 0.75 };
    let cases = [
        (FIRST_LINE, "haproxy", "TLS, ticket and connect", "HAProxy's TLS and connect"),
        (WHOLE, "haproxy", "whole console, ticket included", "HAProxy's TLS and connect"),
        (WHOLE, THROUGH, "whole console, ticket included", "HAProxy's to ServerInit"),
    ];
    for (ours, theirs, what, beside) in cases {
        if let (Some(ours), Some(theirs)) = (of(series, ours), of(series, theirs)) {
            let ratio = crate::run::ratios(ours, theirs, |r| r.proxy);
            let name = format!("proxy CPU per console, {kind}: {what} / {beside}");
            out.goals.push(Goal::at_most(SUITE, name, ratio, bound));
        }
    }
}

fn case(kind: KeyKind, series: &[Series<impl Serialize>]) -> serde_json::Value {
    json!({ "key": kind.to_string(), "series": series })
}
