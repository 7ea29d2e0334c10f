//! The Grafana dashboard and the Prometheus rules: they parse, and name only metrics and labels that docs/metrics.md has.

#![allow(missing_docs, clippy::allow_attributes, reason = "a test")]

use std::collections::BTreeMap;
use std::process::Command;

use yaml_rust2::{Yaml, YamlLoader};

const DOCS: &str = include_str!("../../docs/metrics.md");
const DASHBOARD: &str = include_str!("../../systemd/grafana-dashboard.json");
const RULES: &str = include_str!("../../systemd/prometheus-rules.yml");
const RULES_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../systemd/prometheus-rules.yml");

/// Documented metrics and whether each is a histogram.
fn documented() -> BTreeMap<String, bool> {
    let row = |line: &str| {
        let (name, rest) = line.strip_prefix("| `")?.split_once("` | ")?;
        let kind = rest.split(" |").next()?;
        matches!(kind, "counter" | "gauge" | "histogram").then(|| (name.to_owned(), kind == "histogram"))
    };
    DOCS.lines().filter_map(row).collect()
}

/// The metric names of a PromQL expression.
fn names(expression: &str) -> Vec<&str> {
    expression
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("mksgate_") || word.starts_with("process_"))
        .collect()
}

fn exists(name: &str, documented: &BTreeMap<String, bool>) -> bool {
    let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
    match base.and_then(|base| documented.get(base)) {
        Some(histogram) => *histogram,
        None => documented.get(name) == Some(&false),
    }
}

fn check(place: &str, expression: &str) {
    let documented = documented();
    let names = names(expression);
    assert!(!names.is_empty() || expression.contains("up{"), "{place}: {expression}");
    for name in names {
        assert!(exists(name, &documented), "{place}: {name} is not in docs/metrics.md");
    }
    for (open, close) in [('(', ')'), ('{', '}'), ('[', ']')] {
        assert_eq!(
            expression.matches(open).count(),
            expression.matches(close).count(),
            "{place}: {expression}"
        );
    }
}

#[test]
fn the_dashboard_shows_only_what_there_is() {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut expressions = 0;
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{}", panel["title"]);
        for target in targets {
            check(panel["title"].as_str().unwrap(), target["expr"].as_str().unwrap());
            expressions += 1;
        }
    }
    assert!(expressions > 20);
    let mut numbers: Vec<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    numbers.dedup();
    assert_eq!(numbers.len(), panels.len(), "each panel has a number of its own");
}

#[test]
fn the_rules_alert_on_what_there_is_and_say_what_to_do() {
    let documents = YamlLoader::load_from_str(RULES).unwrap();
    let rules: Vec<&Yaml> = documents[0]["groups"]
        .as_vec()
        .unwrap()
        .iter()
        .flat_map(|group| group["rules"].as_vec().unwrap())
        .collect();
    assert!(rules.len() > 10);
    for rule in rules {
        let name = rule["alert"].as_str().unwrap();
        check(name, rule["expr"].as_str().unwrap());
        for said in ["summary", "remedy"] {
            assert!(
                rule["annotations"][said].as_str().is_some_and(|text| !text.is_empty()),
                "{name}: {said}"
            );
        }
        assert!(matches!(rule["labels"]["severity"].as_str(), Some("page" | "warn")), "{name}");
    }
    // Prometheus' own judgement, where it is installed.
    if let Ok(judged) = Command::new("promtool").args(["check", "rules", RULES_FILE]).output() {
        assert!(judged.status.success(), "{}", String::from_utf8_lossy(&judged.stderr));
    }
}

#[test]
fn an_unknown_name_would_be_found() {
    let documented = documented();
    assert!(documented.len() > 30 && exists("mksgate_sessions", &documented));
    assert!(exists("mksgate_session_seconds_bucket", &documented));
    for name in ["mksgate_sessionss", "mksgate_session_seconds", "mksgate_sessions_bucket"] {
        assert!(!exists(name, &documented), "{name}");
    }
}
