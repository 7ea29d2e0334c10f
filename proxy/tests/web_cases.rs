//! The WebSocket doors keep to RFC 6455: every class of what a client may send and may not, by two clients of other makes.

mod browser;
mod rfc6455;
mod support;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use mksgate_bench::sim::{Esxi, EsxiConfig, Screen, Ticket, Vm};
use serde_json::{Value, json};
use support::{HOST_TICKET, Setup, VM};

#[test]
fn the_client_ws_of_node_sees_every_rule_kept() {
    if browser::is_there() {
        let mut node = Command::new("node");
        node.arg(browser::folder().join("cases.mjs"));
        run(node);
    }
}

#[test]
fn the_client_websockets_of_python_sees_every_rule_kept() {
    let python = PathBuf::from(std::env::var_os("MKSGATE_PYTHON").unwrap_or_default());
    let has = Command::new(&python).args(["-c", "import websockets"]).status().is_ok_and(|s| s.success());
    if has || browser::skip("MKSGATE_PYTHON, a Python with websockets (PyPI)") {
        let mut command = Command::new(python);
        command.arg(browser::folder().join("cases.py"));
        run(command);
    }
}

fn run(mut client: Command) {
    let gate = Setup::new().start();
    let host = Esxi::start(
        EsxiConfig::default().vm(Vm::new(VM, Screen::echo())).ticket(Ticket::new(HOST_TICKET, VM)),
    )
    .unwrap();
    // One ticket for all: the end of a console may be counted after the next has begun.
    let ticket = gate.ticket_with(&host, |claims| claims.max_connections = Some(100));
    let cases = rfc6455::all();
    let job = json!({"url": format!("wss://{}/ticket/{ticket}", gate.tls), "cases": cases});
    let mut client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    client.stdin.take().unwrap().write_all(job.to_string().as_bytes()).unwrap();
    let output = client.wait_with_output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let results: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(results.len(), cases.as_array().unwrap().len(), "cases were left out");
    let bad: Vec<String> = results.iter().filter(|r| r["ok"] != true).map(Value::to_string).collect();
    assert!(bad.is_empty(), "{} of {} cases:\n{}", bad.len(), results.len(), bad.join("\n"));
}
