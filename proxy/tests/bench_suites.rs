//! The benchmark's suites of whole consoles, in small, against the real binary: nothing is lost, and what they report adds up.

use std::path::PathBuf;
use std::time::Duration;

use mksgate::xdp::{OBJECT, missing_capabilities};
use mksgate_bench::run::{Context, Options, Outcome, Stop};
use mksgate_bench::suites;
use serde_json::Value;

fn run(suite: &str, options: Options) -> Outcome {
    let mksgate = Some(PathBuf::from(env!("CARGO_BIN_EXE_mksgate")));
    let options = Options { quick: true, rounds: Some(1), mksgate, seed: 1, ..options };
    let context = Context::new(options, Stop::default()).unwrap();
    let mut out = Outcome::default();
    suites::find(suite).unwrap().run.unwrap()(&context, &mut out).unwrap();
    assert_eq!(out.broken, None);
    out
}

/// Goals that nothing is lost hold on the slowest machine; those of speed are not asked here.
fn nothing_lost(out: &Outcome) {
    let lossless: Vec<_> = out.goals.iter().filter(|goal| goal.goal == "<= 0").collect();
    assert!(!lossless.is_empty());
    assert!(lossless.iter().all(|goal| goal.ok), "{lossless:#?}");
}

fn rounds(of: &Value) -> impl Iterator<Item = &Value> {
    let series = of["series"].as_array().unwrap();
    series.iter().flat_map(|s| s["rounds"].as_array().unwrap())
}

#[test]
fn every_console_that_is_due_comes_to_its_first_byte() {
    let out = run("sessions", Options { seconds: Some(0.3), ..Options::default() });
    nothing_lost(&out);
    let rates = out.raw["rates"].as_array().unwrap();
    assert_eq!(rates.len(), 2);
    for rate in rates {
        assert_eq!(rate["series"].as_array().unwrap().len(), 4, "three doors, and the host itself");
        for round in rounds(rate) {
            assert!(round["due"].as_u64().unwrap() > 0);
            let total = round["total"][0].as_f64().unwrap();
            let steps: Vec<f64> =
                round["steps"].as_array().unwrap().iter().map(|s| s.as_f64().unwrap()).collect();
            assert!(steps.iter().all(|step| *step > 0.0 && *step < total), "{round}");
        }
    }
    let due: u64 = rates.iter().flat_map(rounds).map(|r| r["due"].as_u64().unwrap()).sum();
    let stages = out.raw["inside"][0]["stages"].as_array().unwrap();
    let opened = stages.iter().find(|s| s["stage"] == "ticket").unwrap()["count"].as_u64().unwrap();
    // A quarter of them went to the host without us.
    assert!(opened > due / 2 && opened < due, "{opened} of {due}");
    assert!(out.histograms.iter().all(|(_, histogram)| !histogram.is_empty()));
}

#[test]
fn every_key_comes_back_beside_consoles_that_play() {
    let options = Options { seconds: Some(0.5), sessions: Some(12), ..Options::default() };
    let out = run("latency", Options { peers: vec!["direct".into()], ..options });
    nothing_lost(&out);
    let cases = out.raw["others"].as_array().unwrap();
    assert_eq!((&cases[0]["others"], &cases[1]["others"]), (&0.into(), &12.into()));
    for round in cases.iter().flat_map(rounds) {
        let echo: Vec<f64> = round["echo"].as_array().unwrap().iter().map(|e| e.as_f64().unwrap()).collect();
        assert!(round["echoed"].as_u64().unwrap() > 50, "{round}");
        assert!(echo[0] > 0.0 && echo.is_sorted(), "{round}");
    }
}

#[test]
fn a_console_that_plays_takes_two_sockets_and_loses_nothing() {
    let options = Options { seconds: Some(0.5), sessions: Some(20), ..Options::default() };
    let out = run("scale", Options { peers: vec!["direct".into()], ..options });
    nothing_lost(&out);
    let sizes = out.raw["sizes"].as_array().unwrap();
    let consoles: Vec<u64> = sizes.iter().map(|s| s["consoles"].as_u64().unwrap()).collect();
    assert_eq!(consoles, [1, 20]);
    for round in rounds(&sizes[1]) {
        let files = round["files"].as_f64().unwrap();
        assert!((1.9..4.1).contains(&files), "two sockets, and at most a pipe: {files}");
    }
    assert!(out.notes.iter().any(|note| note.starts_with("100 consoles wanted; 20 fit")), "{:?}", out.notes);
}

#[test]
fn heavy_consoles_at_full_rate_lose_nothing_to_an_upgrade() {
    let out = run("upgrade", Options { seconds: Some(0.5), ..Options::default() });
    nothing_lost(&out);
    for round in rounds(&out.raw["spans"][0]) {
        let pause: Vec<f64> =
            round["pause"].as_array().unwrap().iter().map(|p| p.as_f64().unwrap()).collect();
        assert!(pause[0] > 0.0 && pause.is_sorted() && round["megabytes"].as_f64().unwrap() > 0.0, "{round}");
    }
}

#[test]
fn heavy_churn_with_faults_leaves_nothing_behind() {
    let out = run("soak", Options { soak: Some(Duration::from_secs(4)), ..Options::default() });
    nothing_lost(&out);
    let soak = &out.raw["soak"][0];
    let fates = &soak["fates"];
    let count = |what: &str| fates[what].as_u64().unwrap();
    let all = ["whole", "left_early", "left_in_a_burst", "refused_as_they_should", "wrong"];
    assert_eq!(count("begun"), all.map(count).iter().sum::<u64>(), "{fates}");
    assert!(count("whole") > 50 && count("refused_as_they_should") > 5, "{fates}");
    assert_eq!(soak["after"]["sessions"], 0.0);
}

#[test]
fn heavy_attacks_on_one_tenant_take_no_console_of_another() {
    if OBJECT.is_none() || !missing_capabilities().is_empty() {
        assert!(std::env::var_os("MKSGATE_FULL_TESTS").is_none(), "needs root and the XDP program");
        println!("left out: needs root and a build with the XDP program (`cargo xtask ebpf`)");
        return;
    }
    let out = run("flood", Options { seconds: Some(0.5), ..Options::default() });
    nothing_lost(&out);
    let limits: Vec<_> = out.goals.iter().filter(|goal| goal.name.contains("attacker's tenant")).collect();
    assert!(limits.len() >= 2 && limits.iter().all(|goal| goal.ok && goal.measured == 3.0), "{limits:#?}");
    let series = out.raw["spans"][0].as_array().unwrap();
    for s in series {
        assert!(s["failed"].is_null(), "{s}");
        let attacked = s["contender"] != "quiet";
        for span in s["rounds"].as_array().unwrap() {
            assert!(span["opened"].as_u64().unwrap() > 0, "{span}");
            assert_eq!(span["syns"].as_u64().unwrap() > 0, attacked, "{span}");
        }
    }
    let others = out.raw["others"][0].as_array().unwrap();
    for kind in ["stream", "round_trips", "datagrams", "echoes", "arp", "solicitations"] {
        let mut windows = others.iter().flat_map(|s| s["rounds"].as_array().unwrap()).map(|r| &r[kind]);
        assert!(windows.any(|w| w["answered"].as_u64().unwrap() > 0), "no {kind} in {others:?}");
    }
    let goals = out.goals.iter().filter(|goal| goal.name.contains("answered with the flood"));
    assert_eq!(goals.count(), 6);
}
