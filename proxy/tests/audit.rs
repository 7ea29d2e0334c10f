//! The audit trail from outside: what stands in the file and the journal, and what happens when it cannot be written.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mksgate::audit::{Audit, Refusal};
use mksgate::flow::FlowEnd;
use mksgate::metrics::{Door, Metrics};
use mksgate::session::{CloseReason, Session};
use serde_json::Value;

const DOCS: &str = include_str!("../../docs/admin-api.md");
const PATIENCE: Duration = Duration::from_secs(10);

fn session(id: u64) -> Arc<Session> {
    Arc::new(Session {
        id,
        door: Door::Authd,
        tenant: "acme".into(),
        user: "ann \"the\nadmin\"".into(),
        vm: "[ds] web/web.vmx".into(),
        jti: "t-1".into(),
        mark: 7,
        source: "203.0.113.5:50000".parse().unwrap(),
        peer: "192.0.2.200:50001".parse().unwrap(),
        local: "192.0.2.1:902".parse().unwrap(),
        backend_local: "[2001:db8::1]:40000".parse().unwrap(),
        backend: "[2001:db8::9]:902".parse().unwrap(),
        started: SystemTime::now(),
        since: Instant::now(),
        counters: Arc::default(),
    })
}

fn end() -> FlowEnd {
    FlowEnd { reason: CloseReason::BackendReset, up: 10, down: 2000, rtt_us: [Some(1500), None] }
}

fn refusal(reason: &'static str) -> Refusal<'static> {
    let source = "203.0.113.5:50000".parse().unwrap();
    Refusal { door: Door::Mks, source, tenant: "", user: "", jti: "", reason }
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn metrics(audit: &Arc<Audit>) -> String {
    let metrics = Metrics::new();
    let audit = audit.clone();
    metrics.add_source(move |out| audit.sample(out));
    metrics.encode()
}

#[test]
fn open_close_and_refusal_are_one_line_each() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let audit = Audit::open(Some(&path), false).unwrap();
    let session = session(1);
    audit.opened(&session);
    audit.closed(&session, &end());
    audit.refused(&refusal("ticket_expired"), Instant::now());
    assert!(audit.flush(PATIENCE));
    let [open, close, refused] = &lines(&path)[..] else { panic!("not three lines") };
    for (key, value) in [
        ("event", "open"),
        ("door", "authd"),
        ("tenant", "acme"),
        ("user", "ann \"the\nadmin\""),
        ("vm", "[ds] web/web.vmx"),
        ("jti", "t-1"),
        ("source", "203.0.113.5:50000"),
    ] {
        assert_eq!(open[key], value);
    }
    assert_eq!(open["client"]["peer"], "192.0.2.200:50001");
    assert_eq!(open["backend"]["local"], "[2001:db8::1]:40000");
    assert_eq!((&close["event"], &close["jti"]), (&"close".into(), &"t-1".into()));
    assert_eq!((&close["reason"], &close["fault"]), (&"backend_reset".into(), &"backend".into()));
    assert_eq!((&close["up_bytes"], &close["down_bytes"]), (&10.into(), &2000.into()));
    assert_eq!((&close["client_rtt_us"], &close["backend_rtt_us"]), (&1500.into(), &Value::Null));
    assert!(close["seconds"].is_number() && close["started"] == open["started"]);
    assert_eq!((&refused["event"], &refused["reason"]), (&"refused".into(), &"ticket_expired".into()));
    assert!(refused["time"].as_str().unwrap().ends_with('Z'));
    for record in [open, close, refused] {
        for field in record.as_object().unwrap().keys() {
            assert!(DOCS.contains(&format!("`{field}`")), "{field} is not in docs/admin-api.md");
        }
    }
    assert_eq!(audit.lost(), 0);
    assert!(metrics(&audit).contains("mksgate_audit_records_total 3"));
}

#[test]
fn a_rotated_file_is_opened_again_and_no_line_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (path, old) = (dir.path().join("audit.jsonl"), dir.path().join("audit.jsonl.1"));
    let audit = Audit::open(Some(&path), false).unwrap();
    audit.opened(&session(1));
    assert!(audit.flush(PATIENCE));
    fs::rename(&path, &old).unwrap();
    audit.opened(&session(2));
    assert!(audit.flush(PATIENCE));
    audit.reopen();
    audit.opened(&session(3));
    assert!(audit.flush(PATIENCE));
    let numbers = |path| lines(path).iter().map(|l| l["session"].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!(numbers(&old), [1, 2]);
    assert_eq!(numbers(&path), [3]);
}

#[test]
fn a_full_disk_loses_records_and_counts_them() {
    let audit = Audit::open(Some(Path::new("/dev/full")), false).unwrap();
    for id in 0..100 {
        audit.opened(&session(id));
    }
    assert!(audit.flush(PATIENCE));
    assert_eq!(audit.lost(), 100);
    assert!(metrics(&audit).contains("mksgate_audit_lost_total{cause=\"file\"} 100"));
}

#[test]
fn a_path_that_becomes_writable_is_used_from_then_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("not-yet").join("audit.jsonl");
    let audit = Audit::open(Some(&path), false).unwrap();
    audit.opened(&session(1));
    assert!(audit.flush(PATIENCE));
    assert_eq!(audit.lost(), 1);
    fs::create_dir(path.parent().unwrap()).unwrap();
    audit.reopen();
    audit.opened(&session(2));
    assert!(audit.flush(PATIENCE));
    assert_eq!(audit.lost(), 1);
    assert_eq!(lines(&path).len(), 1);
}

#[test]
fn the_journal_gets_the_line_and_fields_to_filter_by() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let journal = UnixDatagram::bind(&path).unwrap();
    journal.set_read_timeout(Some(PATIENCE)).unwrap();
    let audit = Audit::start(None, Some(&path)).unwrap();
    audit.opened(&session(9));
    let mut datagram = [0; 4096];
    let n = journal.recv(&mut datagram).unwrap();
    let text = String::from_utf8(datagram[..n].to_vec()).unwrap();
    let field = |name| text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let message: Value = serde_json::from_str(field("MESSAGE=")).unwrap();
    assert_eq!(message["session"], 9);
    assert_eq!(field("MKSGATE_TENANT="), "acme");
    assert_eq!(field("SYSLOG_IDENTIFIER="), "mksgate-audit");
}

#[test]
fn an_absent_journal_is_counted_and_the_file_is_written_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let audit = Audit::start(Some(&path), Some(&dir.path().join("no-journal"))).unwrap();
    audit.opened(&session(1));
    audit.opened(&session(2));
    assert!(audit.flush(PATIENCE));
    assert_eq!(lines(&path).len(), 2);
    assert!(metrics(&audit).contains("mksgate_audit_lost_total{cause=\"journal\"} 2"));
}

#[test]
fn what_was_recorded_is_written_before_the_trail_closes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let audit = Audit::open(Some(&path), false).unwrap();
    for id in 0..1000 {
        audit.opened(&session(id));
    }
    let lost = audit.lost();
    drop(audit);
    assert_eq!(lines(&path).len() as u64 + lost, 1000);
}
