//! The benchmark as a command: what it refuses, what it leaves out and says so, what an interruption keeps.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use mksgate_bench::run::Process;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// How long anything is awaited before a test gives up.
const PATIENCE: Duration = Duration::from_secs(60);

fn bench(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
    command.args(args).stdin(Stdio::null());
    command
}

fn run(command: &mut Command) -> (Output, String) {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned();
    (output, text)
}

fn json(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

/// The programs that a run has started.
fn children(of: &Child) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{}/task", of.id())).unwrap();
    let list = |task: fs::DirEntry| fs::read_to_string(task.path().join("children")).unwrap_or_default();
    let lists: Vec<String> = tasks.flatten().map(list).collect();
    lists.iter().flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap())).collect()
}

/// Whether a process is there and not merely waited for.
fn lives(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let limit = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < limit, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn an_unknown_suite_or_peer_is_refused_with_the_names_that_there_are() {
    let (output, text) = run(&mut bench(&["--suite", "flow", "--suite", "speed"]));
    assert!(!output.status.success());
    assert!(text.contains("no suite is called \"speed\"; there are flow, idle, tls"), "{text}");
    let (output, text) = run(&mut bench(&["--peers", "haproxy,envoy"]));
    assert!(!output.status.success());
    assert!(text.contains("no peer is called \"envoy\"; there are") && text.contains("nginx"), "{text}");
    let (output, text) = run(&mut bench(&["--suite", "flow", "--json", "/dev/null/x.json"]));
    assert!(!output.status.success() && text.contains("cannot write /dev/null/x.json"), "{text}");
}

#[test]
fn a_run_ends_with_its_goals_and_leaves_every_round_in_json() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.json");
    let args = ["--suite", "idle", "--sessions", "50", "--peers", "direct", "--json"];
    let (output, text) = run(bench(&args).arg(&file));
    assert!(output.status.success(), "{text}");
    assert!(text.contains("idle: KiB resident per idle raw session") && text.contains("<= 2"), "{text}");
    let found = json(&file);
    let goal = &found["goals"][0];
    assert_eq!((&goal["suite"], &goal["goal"]), (&"idle".into(), &"<= 2".into()));
    assert_eq!(goal["ok"].as_bool(), Some(goal["measured"].as_f64().unwrap() <= 2.0));
    assert_eq!(found["suites"]["idle"]["ended"], "complete");
    assert_eq!(found["suites"]["idle"]["raw"]["sessions"][0]["round"]["sessions"], 50);
    assert!(found["host"]["kernel"].as_str().unwrap().len() > 3);
    assert!(found["host"]["sysctls"]["net.core.somaxconn"].is_string());
    assert!(found["suites"]["idle"]["steal"][0].is_number());
}

#[test]
fn strict_fails_where_there_is_no_result() {
    // Alone in a directory, it finds no mksgate to measure.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let alone = dir.path().join("bench");
    fs::hard_link(env!("CARGO_BIN_EXE_bench"), &alone).unwrap();
    let args = ["--suite", "idle", "--sessions", "1", "--peers", "direct"];
    let (output, text) = run(Command::new(&alone).args(args));
    assert!(output.status.success() && text.contains("idle failed: mksgate does not start"), "{text}");
    let (output, text) = run(Command::new(&alone).args(args).arg("--strict"));
    assert_eq!(output.status.code(), Some(1), "{text}");
}

#[test]
fn a_peer_that_does_not_start_is_named_and_the_rest_runs() {
    let dir = tempfile::tempdir().unwrap();
    let fake = dir.path().join("haproxy");
    fs::write(&fake, "#!/bin/sh\necho 'no licence for this' >&2\nexit 7\n").unwrap();
    fs::set_permissions(&fake, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    let args = ["--suite", "idle", "--sessions", "20", "--peers", "haproxy"];
    let (output, text) = run(bench(&args).env("PATH", path));
    assert!(output.status.success(), "{text}");
    assert!(
        text.contains("haproxy does not start; left out") && text.contains("no licence for this"),
        "{text}"
    );
    assert!(text.contains("KiB resident per idle raw session"), "{text}");
}

#[test]
fn too_few_files_are_said_and_fewer_sessions_run() {
    let args = ["--suite", "idle", "--sessions", "5000", "--peers", "direct"];
    let mut limited = Command::new("prlimit");
    limited.arg("--nofile=600:600").arg(env!("CARGO_BIN_EXE_bench")).args(args).stdin(Stdio::null());
    let (output, text) = run(&mut limited);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("5000 sessions asked for; the limit of open files lets 200 fit"), "{text}");
    assert!(text.contains("200 idle raw sessions"), "{text}");
}

/// A long run, once it measures and its relay is there.
fn long_run(file: &Path, seconds: &str) -> (Child, u32) {
    let args = ["--suite", "flow", "--peers", "direct", "--rounds", "1000", "--seconds", seconds, "--json"];
    let mut run = bench(&args).arg(file).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(run.stdout.take().unwrap()).lines();
    assert!(lines.by_ref().map_while(Result::ok).any(|line| line.contains("== flow")));
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
    until("the relay starts", || !children(&run).is_empty());
    let relay = children(&run)[0];
    (run, relay)
}

#[test]
fn an_interruption_ends_everything_and_keeps_a_report() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.json");
    let (mut run, relay) = long_run(&file, "0.1");
    kill(Pid::from_raw(run.id().cast_signed()), Signal::SIGINT).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(130));
    assert!(!lives(relay));
    assert_eq!(json(&file)["suites"]["flow"]["ended"], "interrupted");
}

#[test]
fn a_second_interruption_ends_it_at_once_with_everything_it_started() {
    let dir = tempfile::tempdir().unwrap();
    // Rounds that nobody waits for the end of.
    let (mut run, relay) = long_run(&dir.path().join("run.json"), "3600");
    kill(Pid::from_raw(run.id().cast_signed()), Signal::SIGINT).unwrap();
    let mut said = BufReader::new(run.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(said.any(|line| line.contains("once more ends at once")));
    kill(Pid::from_raw(run.id().cast_signed()), Signal::SIGINT).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(130));
    until("the relay is gone", || !lives(relay));
}

#[test]
fn what_it_started_ends_even_when_it_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let (mut run, relay) = long_run(&dir.path().join("run.json"), "0.1");
    run.kill().unwrap();
    run.wait().unwrap();
    until("the relay is gone", || !lives(relay));
}

#[test]
fn a_port_that_is_taken_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let mut taken = Vec::new();
    let started = Process::listening("relay", &dir.path().join("log"), |address| {
        if taken.is_empty() {
            taken.push(TcpListener::bind(address).unwrap());
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_relay"));
        command.args(["--listen", &address.to_string(), "--connect", "127.0.0.1:9"]);
        Ok(command)
    });
    let (_, address) = started.unwrap();
    assert_ne!(address, taken[0].local_addr().unwrap());
}

#[test]
fn the_report_stands_by_itself_with_its_charts() {
    let dir = tempfile::tempdir().unwrap();
    let (page, text) = (dir.path().join("out/run.html"), dir.path().join("out/run.md"));
    let mut run_it = bench(&["--suite", "idle", "--sessions", "30", "--peers", "direct"]);
    let (output, said) = run(run_it.arg("--html").arg(&page).arg("--markdown").arg(&text));
    assert!(output.status.success(), "{said}");
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("<svg") && page.contains("KiB resident per idle raw session"), "{page}");
    for fetched in ["src=", "href=\"http", "url(", "@import", "<script", "<link"] {
        assert!(!page.contains(fetched), "{fetched}");
    }
    let text = fs::read_to_string(text).unwrap();
    assert!(text.contains("cargo xtask bench --suite idle") && text.contains("](run/idle-1.svg)"), "{text}");
    let chart = fs::read_to_string(dir.path().join("out/run/idle-1.svg")).unwrap();
    assert!(chart.starts_with("<svg") && chart.ends_with("</svg>"), "{chart}");
}
