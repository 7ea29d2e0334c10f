//! /metrics from outside: read by parsers of another make, named as docs/metrics.md says.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use mksgate::audit::Audit;
use mksgate::backend::Hosts;
use mksgate::backend::vcenter::config::VcenterFile;
use mksgate::backend::vcenter::{self, Vcenters};
use mksgate::metrics::{Door, EngineSample, Metrics, ModeBytes, Stage, TicketSample};
use mksgate::session::CloseReason;
use mksgate::ticket::journal::Start;
use mksgate::ticket::{KeyRing, TicketPolicy, Tickets, create_key_file};
use mksgate::tls::Policy;

const DOCS: &str = include_str!("../../docs/metrics.md");

/// Metrics with every source plugged in and some life in them.
fn busy() -> Arc<Metrics> {
    let metrics = Metrics::new();
    metrics.set_tenants(&["acme".to_owned(), "a \"quoted\\\" name\n".to_owned()]);
    metrics.add_engines("epoll", || {
        let bytes = ModeBytes { spliced: 950, interactive: 50, ..Default::default() };
        vec![EngineSample { flows: 3, bytes, pipes_in_use: 2, ..Default::default() }; 2]
    });
    metrics.add_tickets(|| TicketSample { tracked: 5, capacity: 100, ..Default::default() });
    let dir = tempfile::tempdir().unwrap();
    create_key_file(&dir.path().join("keys"), None, SystemTime::now()).unwrap();
    let keys = KeyRing::load(&dir.path().join("keys")).unwrap();
    let tickets = Tickets::new(TicketPolicy::default(), keys);
    tickets.keep_journal(&dir.path().join("journal"), Start::of_this_process(false)).unwrap();
    metrics.add_source(move |out| tickets.sample_journal(out));
    let audit = Audit::open(None, false).unwrap();
    metrics.add_source(move |out| audit.sample(out));
    let settings = vcenter::config::check(&VcenterFile::default(), BTreeMap::new(), |path| path).unwrap();
    let vcenters = Vcenters::new(settings, Policy::Modern.provider());
    metrics.add_source(move |out| vcenters.sample(out));
    let hosts = Hosts::default();
    metrics.add_source(move |out| hosts.sample(out));
    for door in Door::ALL {
        metrics.accepted(door);
        metrics.refused(door, "", "source_rate");
        metrics.refused(door, "acme", "tenant_full");
        metrics.opened("acme", door);
    }
    for reason in CloseReason::ALL {
        metrics.opened("acme", Door::Authd);
        metrics.closed("acme", reason, 10, 1000, Duration::from_secs(90));
    }
    for stage in Stage::ALL {
        for i in 0..14 {
            metrics.record(stage, Duration::from_nanos(3_u64.pow(2 * i)));
        }
    }
    metrics.preauth().fetch_add(4, Ordering::Relaxed);
    metrics.handshakes().fetch_add(2, Ordering::Relaxed);
    metrics
}

/// A family of the OpenMetrics text.
#[derive(Debug, Default)]
struct Family {
    kind: String,
    help: String,
    /// Name, labels, value; in the order of the text.
    samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

/// Reads OpenMetrics text 1.0 and fails on whatever the format forbids (prometheus.io/docs/specs/om/open_metrics_spec).
fn parse(text: &str) -> BTreeMap<String, Family> {
    let body = text.strip_suffix("# EOF\n").expect("the end mark");
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    for line in body.lines() {
        assert!(!line.is_empty() && !line.contains("# EOF"));
        if let Some(comment) = line.strip_prefix("# ") {
            let (what, rest) = comment.split_once(' ').unwrap();
            let (name, text) = rest.split_once(' ').unwrap();
            is_name(name, ":_");
            match what {
                "HELP" => {
                    let help = Family { help: text.into(), ..Default::default() };
                    assert!(families.insert(name.into(), help).is_none(), "{name} comes twice");
                    current = name.into();
                }
                "TYPE" => {
                    assert_eq!(current, name);
                    families.get_mut(name).unwrap().kind = text.into();
                }
                other => panic!("{other}"),
            }
        } else {
            let sample = parse_sample(line);
            let family = families.get_mut(&current).expect("HELP and TYPE come first");
            let suffix =
                sample.0.strip_prefix(current.as_str()).unwrap_or_else(|| panic!("{line} in {current}"));
            let allowed: &[&str] = match family.kind.as_str() {
                "counter" => &["_total"],
                "gauge" => &[""],
                "histogram" => &["_sum", "_count", "_bucket"],
                other => panic!("{other}"),
            };
            assert!(allowed.contains(&suffix), "{line}");
            let twin =
                family.samples.iter().any(|(name, labels, _)| (name, labels) == (&sample.0, &sample.1));
            assert!(!twin, "{line} comes twice");
            family.samples.push(sample);
        }
    }
    families
}

fn parse_sample(line: &str) -> (String, BTreeMap<String, String>, f64) {
    let name_end = line.find(['{', ' ']).unwrap();
    let name = &line[..name_end];
    is_name(name, ":_");
    let mut labels = BTreeMap::new();
    let mut rest = &line[name_end..];
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (key, after) = rest.split_once("=\"").unwrap();
            is_name(key, "_");
            let (value, after) = quoted(after);
            assert!(labels.insert(key.to_owned(), value).is_none());
            match after.strip_prefix(',') {
                Some(next) => rest = next,
                None => {
                    rest = after.strip_prefix('}').unwrap_or_else(|| panic!("{line}"));
                    break;
                }
            }
        }
    }
    let value = rest.strip_prefix(' ').unwrap();
    assert!(!value.contains(' '), "no timestamps, no exemplars: {line}");
    (name.to_owned(), labels, value.parse().unwrap_or_else(|_| panic!("{line}")))
}

/// A label value up to its closing quote, and what follows.
fn quoted(text: &str) -> (String, &str) {
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (out, &text[at + 1..]),
            '\\' => out.push(match chars.next().unwrap().1 {
                'n' => '\n',
                c @ ('"' | '\\') => c,
                other => panic!("\\{other}"),
            }),
            c => out.push(c),
        }
    }
    panic!("no closing quote: {text}");
}

fn is_name(name: &str, extra: &str) {
    let ok = |c: char| c.is_ascii_alphanumeric() || extra.contains(c);
    assert!(
        !name.is_empty() && name.chars().all(ok) && !name.starts_with(|c: char| c.is_ascii_digit()),
        "{name}"
    );
}

fn value(families: &BTreeMap<String, Family>, family: &str, labels: &[(&str, &str)]) -> f64 {
    let wanted: BTreeMap<_, _> = labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    let found = families[family].samples.iter().find(|(_, labels, _)| *labels == wanted);
    found.unwrap_or_else(|| panic!("{family}{labels:?}")).2
}

#[test]
fn a_strict_parser_reads_everything_and_finds_what_was_counted() {
    let families = parse(&busy().encode());
    assert!(families.values().all(|family| !family.help.is_empty() && !family.kind.is_empty()));
    let odd = "a \"quoted\\\" name\n";
    for (family, labels, expected) in [
        ("mksgate_connections_accepted", &[("door", "mks")][..], 1.0),
        ("mksgate_refusals", &[("door", "mks"), ("tenant", "acme"), ("reason", "tenant_full")], 1.0),
        ("mksgate_refusals", &[("door", "authd"), ("tenant", ""), ("reason", "source_rate")], 1.0),
        ("mksgate_sessions", &[("tenant", "acme")], Door::ALL.len() as f64),
        ("mksgate_sessions", &[("tenant", odd)], 0.0),
        ("mksgate_sessions_opened", &[("tenant", "acme"), ("door", "authd")], 14.0),
        ("mksgate_sessions_closed", &[("tenant", "acme"), ("reason", "drain"), ("fault", "gate")], 1.0),
        ("mksgate_session_bytes", &[("tenant", "acme"), ("direction", "down")], 13_000.0),
        ("mksgate_preauth_connections", &[], 4.0),
        ("mksgate_handshakes", &[], 2.0),
        ("mksgate_flows", &[("engine", "1")], 3.0),
        ("mksgate_flow_bytes", &[("mode", "spliced")], 1900.0),
        ("mksgate_flow_pipes", &[("state", "in_use")], 4.0),
        ("mksgate_flow_driver_info", &[("driver", "epoll")], 1.0),
        ("mksgate_tickets_capacity", &[], 100.0),
    ] {
        assert_eq!(value(&families, family, labels), expected, "{family}{labels:?}");
    }
    assert!(value(&families, "process_open_fds", &[]) >= 3.0);
    assert!(value(&families, "process_resident_memory_bytes", &[]) > 1e6);
}

#[test]
fn histograms_are_cumulative_and_complete() {
    let families = parse(&busy().encode());
    let histograms: Vec<_> = families.iter().filter(|(_, family)| family.kind == "histogram").collect();
    assert_eq!(histograms.len(), Stage::COUNT);
    for (name, family) in histograms {
        assert!(name.ends_with("_seconds"), "{name}");
        let of = |suffix: &str| -> Vec<_> {
            family.samples.iter().filter(|(n, ..)| *n == format!("{name}{suffix}")).collect()
        };
        let (sum, count, buckets) = (of("_sum")[0].2, of("_count")[0].2, of("_bucket"));
        let bounds: Vec<f64> = buckets.iter().map(|(_, labels, _)| labels["le"].parse().unwrap()).collect();
        assert!(bounds.windows(2).all(|w| w[0] < w[1]), "{name}: {bounds:?}");
        assert!(bounds.last().unwrap().is_infinite(), "{name}");
        assert!(buckets.windows(2).all(|w| w[0].2 <= w[1].2), "{name}");
        assert_eq!(buckets.last().unwrap().2, count, "{name}");
        assert!(count >= 14.0 && sum > 0.0, "{name}");
    }
}

#[test]
fn the_documentation_lists_exactly_the_exported_names() {
    let exported: BTreeSet<String> = parse(&busy().encode())
        .into_iter()
        .map(|(name, family)| if family.kind == "counter" { name + "_total" } else { name })
        .collect();
    let documented: BTreeSet<String> = DOCS
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(name, _)| name.to_owned())
        .filter(|name| name.starts_with("mksgate_") || name.starts_with("process_"))
        .collect();
    assert_eq!(exported, documented);
}

#[test]
fn the_documentation_lists_every_stage_and_close_reason() {
    for stage in Stage::ALL {
        assert!(DOCS.contains(&format!("`{}`", stage.as_str())), "{stage:?}");
    }
    for reason in CloseReason::ALL {
        assert!(DOCS.contains(&format!("| `{}` |", reason.as_str())), "{reason:?}");
    }
}

#[test]
fn the_number_of_series_does_not_grow_with_what_clients_send() {
    let metrics = busy();
    let lines = metrics.encode().lines().count();
    for i in 0..1000 {
        let name = format!("tenant-{i}");
        metrics.refused(Door::Authd, &name, "unknown_tenant");
        metrics.opened(&name, Door::Mks);
        metrics.closed(&name, CloseReason::ClientClosed, 0, 0, Duration::ZERO);
    }
    // One refusal series and one close series, both of tenant "".
    assert_eq!(metrics.encode().lines().count(), lines + 2);
}

#[test]
fn the_client_library_of_prometheus_reads_it() {
    let python = match (std::env::var("MKSGATE_FULL_TESTS"), std::env::var("MKSGATE_PYTHON")) {
        (Ok(full), Ok(python)) if full == "1" => python,
        _ => {
            return println!("not run: needs MKSGATE_FULL_TESTS=1 and MKSGATE_PYTHON with prometheus_client");
        }
    };
    let program = "import sys\n\
        from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse\n\
        for family in parse(sys.stdin.read()):\n    print(family.name, family.type, len(family.samples))";
    let mut child = Command::new(python)
        .args(["-c", program])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let text = busy().encode();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let theirs: BTreeSet<String> =
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    let ours: BTreeSet<String> = parse(&text)
        .into_iter()
        .map(|(name, family)| format!("{name} {} {}", family.kind, family.samples.len()))
        .collect();
    assert_eq!(theirs, ours);
}
