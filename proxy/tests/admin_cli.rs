//! The operator's commands against a running admin API: what they ask for and what they print.

mod admin_rig;

use std::fs;
use std::sync::atomic::Ordering;
use std::time::Duration;

use admin_rig::Running;
use clap::{CommandFactory, Parser};
use mksgate::admin::{Failure, HistView, RevokeRequest, SessionList, TenantList};
use mksgate::cli::hist::HistCommand;
use mksgate::cli::revoke::RevokeCommand;
use mksgate::cli::service::{DrainCommand, ReloadCommand, StatusCommand};
use mksgate::cli::sessions::SessionsCommand;
use mksgate::cli::tenants::TenantsCommand;
use mksgate::metrics::{Stage, read_log};

#[derive(Parser)]
enum Cli {
    Sessions(SessionsCommand),
    Tenants(TenantsCommand),
    Hist(HistCommand),
    Revoke(RevokeCommand),
    Status(StatusCommand),
    Reload(ReloadCommand),
    Drain(DrainCommand),
}

fn parse(line: &[&str]) -> Result<Cli, clap::Error> {
    Cli::try_parse_from([&["mksgate"], line].concat())
}

/// What the command prints, or its error.
fn mksgate(running: &Running, line: &[&str]) -> Result<String, String> {
    let socket = running.client.socket().to_str().unwrap();
    let line = [line, &["--socket", socket]].concat();
    let cli = parse(&line).map_err(|error| error.to_string())?;
    match cli {
        Cli::Sessions(command) => command.report(),
        Cli::Tenants(command) => command.report(),
        Cli::Hist(command) => command.report(),
        Cli::Revoke(command) => command.report(),
        Cli::Status(command) => command.report(),
        Cli::Reload(command) => command.report(),
        Cli::Drain(command) => command.report(),
    }
    .map_err(|error| error.to_string())
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn sessions_are_listed_with_both_sockets() {
    let running = Running::new();
    let id = running.add("acme", "ann\u{1b}[2J");
    running.add("globex", "bob");
    running.registry.get(id).unwrap().counters.up.store(1536, Ordering::Relaxed);
    let all = mksgate(&running, &["sessions", "list"]).unwrap();
    assert_eq!(all.lines().count(), 4, "{all}");
    assert_eq!(all.lines().last(), Some("failing: 10.0.0.9:902 (refused\\u{1b})"));
    assert!(!all.contains('\u{1b}'), "{all}");
    let line = all.lines().nth(1).unwrap();
    for part in ["acme", "ann\\u{1b}[2J", "1.5 KiB", "192.0.2.1:443", "198.51.100.1:50000", "10.0.0.9:902"] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    assert!(!all.contains("SOURCE"), "{all}");
    let some = mksgate(&running, &["sessions", "list", "--user", "bob", "--tenant", "globex"]).unwrap();
    assert_eq!(some.lines().count(), 3, "{some}");
    let json = mksgate(&running, &["sessions", "list", "--json", "--source", "198.51.100.2"]).unwrap();
    let list: SessionList = serde_json::from_str(&json).unwrap();
    assert_eq!(list.sessions.len(), 1);
    let end = mksgate(&running, &["sessions", "list", "--end", "198.51.100.1:50000"]).unwrap();
    assert!(end.contains("acme") && !end.contains("globex"), "{end}");
}

#[test]
fn hosts_and_vcenters_are_shown_with_how_they_do() {
    let shown = mksgate(&Running::new(), &["sessions", "backends"]).unwrap();
    let lines: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines.len(), 4, "{shown}");
    assert_eq!(lines[1][..5], ["vcenter", "vc.example:443", "ok", "3", "0"]);
    assert_eq!(lines[3][..5], ["host", "10.0.0.9:902", "failing", "3", "2"]);
    let json = mksgate(&Running::new(), &["sessions", "backends", "--json"]).unwrap();
    let list: mksgate::admin::BackendList = serde_json::from_str(&json).unwrap();
    assert_eq!((list.hosts.len(), list.vcenters.len()), (2, 1));
}

#[test]
fn sessions_are_closed_by_number_or_by_what_they_have_in_common() {
    let running = Running::new();
    let (ann, bob, eve) =
        (running.add("acme", "ann"), running.add("acme", "bob"), running.add("globex", "eve"));
    let (a, e) = (ann.to_string(), eve.to_string());
    assert_eq!(
        mksgate(&running, &["sessions", "close", &a, &e]).unwrap(),
        format!("closed 2: {ann} {eve}\n")
    );
    let closed = mksgate(&running, &["sessions", "close", "--tenant", "acme"]).unwrap();
    assert_eq!(closed, format!("closed 2: {ann} {bob}\n"));
    assert_eq!(*running.gate.closed.lock().unwrap(), [ann, eve, ann, bob]);
    let none = mksgate(&running, &["sessions", "close", "--jti", "nobody"]).unwrap_err();
    assert!(none.contains("no session matches"), "{none}");
    let gone = mksgate(&running, &["sessions", "close", "77"]).unwrap_err();
    assert!(gone.contains("77"), "{gone}");
    assert!(parse(&["sessions", "close"]).is_err());
    assert!(parse(&["sessions", "close", "1", "--tenant", "acme"]).is_err());
}

#[test]
fn tickets_are_revoked() {
    let running = Running::new();
    assert_eq!(mksgate(&running, &["revoke", "t-1"]).unwrap(), "revoked; closed 1: 1\n");
    mksgate(&running, &["revoke", "--user", "ann", "--tenant", "acme"]).unwrap();
    let text = |text: &str| Some(text.to_owned());
    let expected = [
        RevokeRequest { jti: text("t-1"), ..Default::default() },
        RevokeRequest { user: text("ann"), tenant: text("acme"), jti: None },
    ];
    assert_eq!(*running.gate.revoked.lock().unwrap(), expected);
    assert!(parse(&["revoke"]).is_err());
    assert!(parse(&["revoke", "t-1", "--tenant", "acme"]).is_err());
}

#[test]
fn tenants_are_shown_with_what_they_use() {
    let running = Running::new();
    running.add("acme", "ann");
    let table = mksgate(&running, &["tenants"]).unwrap();
    let acme: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(acme[..5], ["acme", "1", "1", "5", "1"], "{table}");
    let list: TenantList = serde_json::from_str(&mksgate(&running, &["tenants", "--json"]).unwrap()).unwrap();
    assert_eq!(list.tenants.len(), 2);
}

#[test]
fn latencies_are_shown_saved_and_read_back() {
    let running = Running::new();
    for ms in 1..=1000 {
        running.metrics.record(Stage::BackendConnect, Duration::from_millis(ms));
    }
    let live = mksgate(&running, &["hist"]).unwrap();
    let row = live.lines().find(|line| line.starts_with("backend_connect")).unwrap();
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(cells[1], "1000", "{live}");
    let p50: f64 = cells[4].parse().unwrap();
    assert!((495.0..=505.0).contains(&p50) && cells[5] == "ms", "{live}");
    let json: HistView = serde_json::from_str(&mksgate(&running, &["hist", "--json"]).unwrap()).unwrap();
    assert_eq!(json.stages.len(), Stage::COUNT);

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("latency.hlog");
    let file = file.to_str().unwrap();
    assert_eq!(mksgate(&running, &["hist", "--log", file]).unwrap(), "");
    let saved = mksgate(&running, &["hist", "--from", file]).unwrap();
    let saved_row = saved.lines().find(|line| line.starts_with("backend_connect")).unwrap();
    let saved_cells: Vec<&str> = saved_row.split_whitespace().collect();
    assert_eq!(saved_cells[1..14], cells[1..14], "{saved}\n{live}");
    fs::write(file, "not a log").unwrap();
    let error = mksgate(&running, &["hist", "--from", file]).unwrap_err();
    assert!(error.contains(file) && error.contains("interval log"), "{error}");
}

#[test]
fn a_log_of_intervals_adds_up_to_what_was_recorded_in_them() {
    let running = Running::new();
    running.metrics.record(Stage::Ticket, Duration::from_secs(9));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("latency.hlog");
    let metrics = running.metrics.clone();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = std::thread::spawn({
        let stop = stop.clone();
        move || {
            while !stop.load(Ordering::Relaxed) {
                metrics.record(Stage::Ticket, Duration::from_micros(20));
                std::thread::park_timeout(Duration::from_millis(5));
            }
        }
    });
    let line = ["hist", "--log", file.to_str().unwrap(), "--every", "1", "--count", "2"];
    mksgate(&running, &line).unwrap();
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    let text = fs::read_to_string(&file).unwrap();
    assert_eq!(text.lines().filter(|line| line.starts_with("Tag=ticket,")).count(), 2, "{text}");
    assert_eq!(text.matches("StartTime:").count(), 1, "{text}");
    let added = &read_log(text.as_bytes()).unwrap()[&Stage::Ticket];
    assert!(added.len() > 2 && added.max() < 1_000_000_000, "the value from before is not in it");
}

#[test]
fn the_service_is_shown_reloaded_and_drained() {
    let running = Running::new();
    let status = mksgate(&running, &["status"]).unwrap();
    assert!(status.contains("serving, ready") && status.contains("io_uring"), "{status}");
    assert_eq!(mksgate(&running, &["reload"]).unwrap(), "changed: tenants.acme\n");
    let failure = Failure::new("mksgate.toml:7: unknown key max_session", "write max_sessions");
    *running.gate.bad_config.lock().unwrap() = Some(failure);
    let error = mksgate(&running, &["reload"]).unwrap_err();
    assert_eq!(error, "mksgate.toml:7: unknown key max_session; write max_sessions");
    mksgate(&running, &["drain", "--seconds", "9"]).unwrap();
    assert_eq!(*running.gate.drained.lock().unwrap(), [Some(Duration::from_secs(9))]);
}
