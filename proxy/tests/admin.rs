//! The admin API from outside: over its Unix socket and its loopback port, as an operator's program meets it.

mod admin_rig;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use admin_rig::{Gate, Running, runtime};
use mksgate::admin::client::{Client, ClientError, with_query};
use mksgate::admin::{
    Admin, AdminConfig, AdminError, Closed, Drained, Failure, HistView, OPENAPI, Reloaded, RevokeRequest,
    Routes, Server, SessionList, StatusView, TenantList,
};
use mksgate::metrics::{Door, Metrics, Stage};
use mksgate::session::{Registry, Session};
use serde_json::{Value, json};

/// Status and JSON body of a request that need not succeed.
fn send(client: &Client, method: &str, path: &str, body: &str) -> (u16, String) {
    let (status, body) = runtime()
        .block_on(client.request(method.parse().unwrap(), path, body.to_owned().into()))
        .unwrap_or_else(|error| panic!("{method} {path}: {error}"));
    (status.as_u16(), String::from_utf8(body.to_vec()).unwrap())
}

fn refused(error: ClientError) -> (u16, Failure) {
    match error {
        ClientError::Refused { status, failure } => (status, failure),
        other => panic!("{other}"),
    }
}

mod described {
    use super::*;

    fn openapi() -> Value {
        serde_json::from_str(OPENAPI).unwrap()
    }

    fn operations() -> Vec<(String, String, Value)> {
        let doc = openapi();
        let mut all = Vec::new();
        for (path, item) in doc["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                all.push((method.to_uppercase(), path.clone(), operation.clone()));
            }
        }
        all
    }

    #[test]
    fn every_route_is_described_and_every_description_is_served() {
        let served: BTreeSet<_> =
            Routes::all().iter().map(|(method, path)| (method.to_string(), path.to_string())).collect();
        let described: BTreeSet<_> =
            operations().into_iter().map(|(method, path, _)| (method, path)).collect();
        assert_eq!(served, described);
        let running = Running::new();
        for path in described.iter().map(|(_, path)| path) {
            for method in ["GET", "POST", "PUT", "DELETE", "PATCH"] {
                let (status, _) = send(&running.client, method, &path.replace("{id}", "1"), "");
                let known = described.contains(&(method.to_owned(), path.clone()));
                assert_eq!(status != 405, known, "{method} {path}: {status}");
            }
        }
    }

    #[test]
    fn every_answer_is_as_described() {
        let running = Running::new();
        running.add("acme", "ann");
        running.metrics.record(Stage::Ticket, Duration::from_micros(50));
        let bodies = |path: &str| match path {
            "/v1/sessions/close" => r#"{"tenant":"acme"}"#,
            "/v1/tickets/revoke" => r#"{"jti":"t-1"}"#,
            _ => "",
        };
        for (method, path, operation) in operations() {
            let id = if method == "DELETE" { "1" } else { "" };
            let (status, body) = send(&running.client, &method, &path.replace("{id}", id), bodies(&path));
            let answer = &operation["responses"][status.to_string()];
            assert!((200..300).contains(&status) && answer.is_object(), "{method} {path}: {status} {body}");
            if let Some(content) = answer["content"].get("application/json") {
                let value: Value = serde_json::from_str(&body).unwrap();
                check(&openapi(), &content["schema"], &value, &format!("{method} {path}"));
            }
        }
    }

    #[test]
    fn every_refusal_is_as_described() {
        let running = Running::new();
        *running.gate.not_ready.lock().unwrap() = Some("draining".into());
        *running.gate.bad_config.lock().unwrap() = Some(Failure::new("a", "b"));
        let long = "x".repeat(20_000);
        for (method, path, body, status) in [
            ("GET", "/ready", "", 503),
            ("GET", "/v1/sessions?who=ann", "", 400),
            ("GET", "/v1/hist?format=xml", "", 400),
            ("DELETE", "/v1/sessions/{id}", "", 404),
            ("POST", "/v1/sessions/close", "{}", 400),
            ("POST", "/v1/sessions/close", "{\"tenant\":", 400),
            ("POST", "/v1/sessions/close", r#"{"all":true}"#, 400),
            ("POST", "/v1/sessions/close", &long, 413),
            ("POST", "/v1/tickets/revoke", r#"{"jti":"t-1","tenant":"acme"}"#, 400),
            ("POST", "/v1/tickets/revoke", &long, 413),
            ("POST", "/v1/reload", "", 422),
            ("POST", "/v1/upgrade", "", 409),
            ("POST", "/v1/drain", r#"{"seconds":-1}"#, 400),
            ("POST", "/v1/drain", &long, 413),
        ] {
            let (got, answer) = send(&running.client, method, &path.replace("{id}", "99"), body);
            assert_eq!(got, status, "{method} {path}: {answer}");
            let failure: Failure = serde_json::from_str(&answer).unwrap();
            assert!(!failure.error.is_empty() && !failure.remedy.is_empty());
            let bare = path.split('?').next().unwrap();
            let operation = operations().into_iter().find(|(m, p, _)| m == method && p == bare).unwrap().2;
            assert!(operation["responses"][status.to_string()].is_object(), "{method} {path}: {status}");
        }
        assert!(running.gate.closed.lock().unwrap().is_empty());
        assert!(running.gate.revoked.lock().unwrap().is_empty());
        assert!(running.gate.drained.lock().unwrap().is_empty());
    }

    /// JSON Schema as far as the description uses it; a field that is not described is an error.
    fn check(doc: &Value, schema: &Value, value: &Value, at: &str) {
        if let Some(name) = schema["$ref"].as_str() {
            let target = doc.pointer(name.strip_prefix('#').unwrap());
            return check(doc, target.unwrap_or_else(|| panic!("{name}")), value, at);
        }
        let types: Vec<&str> = match &schema["type"] {
            Value::String(one) => vec![one],
            many => many.as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect(),
        };
        let is = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(n) if n.is_u64() => "integer",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        assert!(
            types.contains(&is) || (is == "integer" && types.contains(&"number")),
            "{at}: {is}, not {types:?}"
        );
        if let Some(values) = schema["enum"].as_array() {
            assert!(values.contains(value), "{at}: {value}");
        }
        if let Some(items) = value.as_array() {
            items.iter().for_each(|item| check(doc, &schema["items"], item, &format!("{at}[]")));
        }
        if let (Some(fields), Some(described)) = (value.as_object(), schema["properties"].as_object()) {
            for (name, field) in fields {
                let schema = described.get(name).unwrap_or_else(|| panic!("{at}.{name} is not described"));
                check(doc, schema, field, &format!("{at}.{name}"));
            }
            for name in schema["required"].as_array().unwrap() {
                assert!(fields.contains_key(name.as_str().unwrap()), "{at}.{name} is missing");
            }
        }
    }
}

#[test]
fn sessions_are_listed_filtered_and_closed() {
    let running = Running::new();
    let (ann, bob, eve) =
        (running.add("acme", "ann"), running.add("acme", "bob"), running.add("globex", "eve"));
    let ids = |path: &str| {
        let list: SessionList = running.client.get(path).unwrap();
        list.sessions.iter().map(|session| session.id).collect::<Vec<_>>()
    };
    assert_eq!(ids("/v1/sessions"), [ann, bob, eve]);
    assert_eq!(ids("/v1/sessions?tenant=acme"), [ann, bob]);
    assert_eq!(ids(&with_query("/v1/sessions", [("source", "198.51.100.3".into())])), [eve]);
    assert_eq!(ids(&with_query("/v1/sessions", [("socket", "198.51.100.2:50000".into())])), [bob]);
    assert!(ids("/v1/sessions?tenant=none").is_empty());

    let closed: Closed = running.client.delete(&format!("/v1/sessions/{bob}")).unwrap();
    assert_eq!(closed.closed, [bob]);
    let closed: Closed = running.client.post("/v1/sessions/close", &json!({"tenant": "acme"})).unwrap();
    assert_eq!(closed.closed, [ann, bob]);
    assert_eq!(*running.gate.closed.lock().unwrap(), [bob, ann, bob]);
    let (status, _) = refused(running.client.delete::<Closed>("/v1/sessions/77").unwrap_err());
    assert_eq!(status, 404);
}

#[test]
fn what_the_operator_asks_for_reaches_the_appliance() {
    let running = Running::new();
    running.add("acme", "ann");
    let person = RevokeRequest { user: Some("ann".into()), tenant: Some("acme".into()), jti: None };
    let closed: Closed = running.client.post("/v1/tickets/revoke", &person).unwrap();
    assert_eq!((closed.closed, running.gate.revoked.lock().unwrap().pop()), (vec![1], Some(person)));

    let drained: Drained = running.client.post("/v1/drain", &json!({"seconds": 90})).unwrap();
    assert_eq!(drained.sessions, 1);
    assert_eq!(send(&running.client, "POST", "/v1/drain", "").0, 202);
    assert_eq!(*running.gate.drained.lock().unwrap(), [Some(Duration::from_secs(90)), None]);

    let reloaded: Reloaded = running.client.post("/v1/reload", &json!({})).unwrap();
    assert_eq!(reloaded.changed, ["tenants.acme"]);
    let bad = Failure::new("mksgate.toml:7: tenants.acme.max_session: unknown key", "write max_sessions");
    *running.gate.bad_config.lock().unwrap() = Some(bad.clone());
    let (status, failure) = refused(running.client.post::<Reloaded>("/v1/reload", &json!({})).unwrap_err());
    assert_eq!((status, failure), (422, bad));
}

#[test]
fn status_tenants_and_latencies_are_told() {
    let running = Running::new();
    running.add("acme", "ann");
    running.add("acme", "ann");
    let status: StatusView = running.client.get("/v1/status").unwrap();
    assert_eq!((status.pid, status.sessions, status.ready), (std::process::id(), 2, true));
    assert_eq!(status.service.flow_driver, "io_uring");
    *running.gate.not_ready.lock().unwrap() = Some("draining".into());
    let status: StatusView = running.client.get("/v1/status").unwrap();
    assert_eq!(status.not_ready.as_deref(), Some("draining"));

    let tenants: TenantList = running.client.get("/v1/tenants").unwrap();
    let rows: Vec<_> =
        tenants.tenants.iter().map(|t| (t.limits.name.as_str(), t.sessions, t.users)).collect();
    assert_eq!(rows, [("acme", 2, 1), ("globex", 0, 0)]);

    for ms in 1..=100 {
        running.metrics.record(Stage::BackendConnect, Duration::from_millis(ms));
    }
    let hist: HistView = running.client.get("/v1/hist").unwrap();
    let connect = hist.stages.iter().find(|s| s.stage == Stage::BackendConnect).unwrap();
    assert_eq!(connect.count, 100);
    assert!((0.0495..=0.0505).contains(&connect.p50), "{connect:?}");
    let log = running.client.get_text("/v1/hist?format=log").unwrap();
    assert!(log.lines().any(|line| line.starts_with("Tag=backend_connect,")), "{log}");
}

#[test]
fn the_loopback_port_has_metrics_and_health_and_nothing_else() {
    let running = Running::new();
    let metrics = running.over_tcp("/metrics");
    assert!(metrics.starts_with("HTTP/1.1 200") && metrics.contains("application/openmetrics-text"));
    assert!(metrics.ends_with("# EOF\n"));
    assert!(running.over_tcp("/live").starts_with("HTTP/1.1 200"));
    *running.gate.not_ready.lock().unwrap() = Some("draining".into());
    assert!(running.over_tcp("/ready").starts_with("HTTP/1.1 503"));
    let on_loopback = Routes::on_loopback();
    for (_, path) in Routes::all().into_iter().filter(|route| !on_loopback.contains(route)) {
        assert!(running.over_tcp(&path.replace("{id}", "1")).starts_with("HTTP/1.1 404"), "{path}");
    }
}

#[test]
fn a_stalled_request_is_given_up() {
    let running = Running::with(|config| {
        config.head_timeout = Duration::from_millis(100);
        config.request_timeout = Duration::from_millis(100);
    });
    assert_eq!(running.raw(""), "");
    assert!(!running.raw("GET /live HTTP/1.1\r\nHo").contains(" 200 "));
    let stalled = "POST /v1/sessions/close HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{";
    let answer = running.raw(stalled);
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("remedy"), "{answer}");
    assert!(running.gate.closed.lock().unwrap().is_empty());
}

#[test]
fn a_head_without_end_is_refused() {
    let running = Running::new();
    let mut stream = UnixStream::connect(running.client.socket()).unwrap();
    let mut head = "GET /live HTTP/1.1\r\nX: ".to_owned();
    head.push_str(&"x".repeat(64 * 1024));
    // The other side may close before everything is written.
    let _ = stream.write_all(head.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(send(&running.client, "GET", "/live", "").0, 200);
}

#[test]
fn idle_connections_do_not_keep_others_out() {
    let running = Running::with(|config| config.head_timeout = Duration::from_millis(100));
    let idle: Vec<_> = (0..100).map(|_| UnixStream::connect(running.client.socket()).unwrap()).collect();
    assert_eq!(send(&running.client, "GET", "/live", "").0, 200);
    drop(idle);
}

#[test]
fn the_socket_is_private_and_goes_with_the_server() {
    let mut running = Running::new();
    let path = running.client.socket().to_owned();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    drop(running.stop.take());
    running.thread.take().unwrap().join().unwrap();
    assert!(!path.exists());
}

#[test]
fn a_stale_socket_is_replaced_but_nothing_that_lives() {
    let gate = Arc::new(Gate::default());
    let admin = Admin { control: gate, metrics: Metrics::new(), registry: Registry::new(Instant::now()) };
    let dir = tempfile::tempdir().unwrap();
    let bind = |socket| {
        let config = AdminConfig { socket, ..Default::default() };
        let admin = admin.clone();
        runtime().block_on(async { Server::bind(config, admin).await.map(drop) })
    };
    let stale = dir.path().join("stale");
    drop(UnixListener::bind(&stale).unwrap());
    bind(stale).unwrap();

    let live = dir.path().join("live");
    let listener = UnixListener::bind(&live).unwrap();
    assert!(matches!(bind(live.clone()), Err(AdminError::InUse(path)) if path == live));
    drop(listener);

    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(matches!(bind(file.clone()), Err(AdminError::NotASocket(_))));
    assert_eq!(std::fs::read_to_string(file).unwrap(), "precious");
}

#[test]
fn metrics_are_not_for_the_network() {
    let gate = Arc::new(Gate::default());
    let admin = Admin { control: gate, metrics: Metrics::new(), registry: Registry::new(Instant::now()) };
    let dir = tempfile::tempdir().unwrap();
    let metrics = Some("0.0.0.0:0".parse().unwrap());
    let config = AdminConfig { socket: dir.path().join("s"), metrics, ..Default::default() };
    let bound = runtime().block_on(Server::bind(config, admin));
    assert!(matches!(bound, Err(AdminError::NotLoopback(_))));
}

/// Not a test of its own: what another user runs below, in this same binary.
#[test]
fn as_another_user() {
    let Ok(socket) = std::env::var("MKSGATE_TEST_SOCKET") else { return };
    let (status, body) = send(&Client::new(socket), "GET", "/v1/status", "");
    println!("status={status} body={body}");
}

#[test]
fn only_listed_users_and_groups_get_in() {
    const NOBODY: u32 = 65_534;
    if !nix::unistd::geteuid().is_root() {
        println!("not run: only root can connect as another user");
        return;
    }
    let ask = |uids: &[u32], gids: &[u32]| {
        let running = Running::with(|config| (config.uids, config.gids) = (uids.to_vec(), gids.to_vec()));
        std::fs::set_permissions(running.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let output = Command::new("/proc/self/exe")
            .args(["--exact", "as_another_user", "--nocapture"])
            .env("MKSGATE_TEST_SOCKET", running.client.socket())
            .uid(NOBODY)
            .gid(NOBODY)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    let (listed, group) = (ask(&[NOBODY], &[]), ask(&[], &[NOBODY]));
    assert!(listed.contains("status=200"), "{listed}");
    assert!(group.contains("status=200"), "{group}");
    let other = ask(&[NOBODY - 1], &[]);
    assert!(other.contains("status=403") && other.contains("admin.uids"), "{other}");
    let nobody = ask(&[], &[]);
    assert!(nobody.contains("Permission denied") && nobody.contains("admin.uids"), "{nobody}");
}

#[test]
fn a_line_of_ss_leads_to_its_session_and_back() {
    let Ok(output) = Command::new("ss").arg("-V").output() else {
        println!("not run: ss is not installed (apt-get install iproute2)");
        return;
    };
    assert!(output.status.success());
    let running = Running::new();
    let mut sockets = Vec::new();
    for listen in ["127.0.0.1:0", "[::1]:0"] {
        let Ok(listener) = TcpListener::bind(listen) else {
            println!("not run for {listen}: this host has no such address");
            continue;
        };
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, peer) = listener.accept().unwrap();
        let backend_listener = TcpListener::bind(listen).unwrap();
        let backend = TcpStream::connect(backend_listener.local_addr().unwrap()).unwrap();
        running.registry.insert(Arc::new(Session {
            id: running.registry.next_id(),
            door: Door::Authd,
            tenant: "acme".into(),
            user: "ann".into(),
            vm: "a.vmx".into(),
            jti: "t".into(),
            mark: 1,
            source: "203.0.113.9:1".parse().unwrap(),
            peer,
            local: accepted.local_addr().unwrap(),
            backend_local: backend.local_addr().unwrap(),
            backend: backend.peer_addr().unwrap(),
            started: SystemTime::now(),
            since: Instant::now(),
            counters: Arc::default(),
        }));
        sockets.push((listener, client, accepted, backend_listener, backend));
    }
    let text = String::from_utf8(Command::new("ss").args(["-Htn"]).output().unwrap().stdout).unwrap();
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    let list: SessionList = running.client.get("/v1/sessions").unwrap();
    assert_eq!(list.sessions.len(), sockets.len());
    for session in &list.sessions {
        for ends in [&session.client, &session.backend] {
            let line = lines.iter().find(|line| line[3] == ends.local && line[4] == ends.peer);
            assert!(line.is_some(), "{ends:?} is not in\n{text}");
        }
        let path = with_query("/v1/sessions", [("socket", session.client.peer.clone())]);
        let found: SessionList = running.client.get(&path).unwrap();
        assert_eq!(found.sessions.iter().map(|s| s.id).collect::<Vec<_>>(), [session.id]);
    }
}

#[test]
fn the_documentation_lists_every_request() {
    const DOCS: &str = include_str!("../../docs/admin-api.md");
    for (method, path) in Routes::all() {
        assert!(DOCS.contains(&format!("| `{method} {path}` |")), "{method} {path}");
    }
    assert_eq!(
        DOCS.lines()
            .filter(|line| line.starts_with("| `GET ")
                || line.starts_with("| `POST ")
                || line.starts_with("| `DELETE "))
            .count(),
        Routes::all().len()
    );
}

#[test]
fn the_xdp_gate_is_told() {
    let running = Running::new();
    let status: mksgate::xdp::ShedStatus = running.client.get("/v1/xdp").unwrap();
    assert_eq!(status.off.as_deref(), Some("not here"));
    let list: mksgate::admin::SourceList = running.client.get("/v1/xdp/sources?count=3").unwrap();
    assert_eq!((list.sources[0].source.as_str(), list.sources[0].shed), ("192.0.2.1", 3));
    for bad in ["count=0", "count=10001", "count=x", "sort=name"] {
        assert!(
            running.client.get::<mksgate::admin::SourceList>(&format!("/v1/xdp/sources?{bad}")).is_err(),
            "{bad}"
        );
    }
}
