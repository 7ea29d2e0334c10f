//! Who asks the keeper without being the proxy, or in words that are none.

#[path = "xdp_support/keeper.rs"]
mod keeper;
#[path = "xdp_support/site.rs"]
mod site;
mod support;
mod xdp_support;

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Command;

use keeper::{Place, kept, program, start};
use serde_json::{Value, json};
use site::Site;
use support::PATIENCE;
use xdp_support::wire::{GATE, Wire, until};

const XDP: &str = "enabled = \"required\"\nsource_per_second = 0\nshared_per_second = 0";
const ACME: &str =
    "[tenants.acme]\nmax_sessions = 5\nsources = [\"10.77.1.0/24\"]\ntargets = [\"127.0.0.0/8\"]\n";
/// The head of a message: version and length, little-endian.
const HEAD: usize = 5;

fn connect(place: &Place) -> UnixStream {
    let stream = UnixStream::connect(place.socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn message(text: &str) -> Vec<u8> {
    [&[1][..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

/// Everything that is answered until the connection ends.
fn rest(mut stream: UnixStream) -> String {
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        // Closed with bytes that nobody has read.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("it is still open: {error}"),
    }
    String::from_utf8_lossy(answer.get(HEAD..).unwrap_or_default()).into_owned()
}

/// One answer to one question.
fn ask(stream: &mut UnixStream, question: &str) -> Value {
    stream.write_all(&message(question)).unwrap();
    let mut head = [0; HEAD];
    stream.read_exact(&mut head).unwrap();
    let mut text = vec![0; u32::from_le_bytes(head[1..].try_into().unwrap()) as usize];
    stream.read_exact(&mut text).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// The gate is where it was and an appliance can use it.
fn is_unharmed(site: &Site, before: Option<u32>) {
    assert_eq!(program(site, GATE), before);
    site.echoes();
    assert_eq!(site.appliance.metric("mksgate_xdp_attached", &[&format!("interface=\"{GATE}\"")]), 1.0);
}

#[test]
fn garbage_and_too_much_are_refused_and_harm_nothing() {
    let place = Place::new();
    let Some((keeper, site)) = start(&place, XDP, ACME, &[]) else { return };
    let ours = program(&site, GATE);
    let config = r#"{"Lead":{"config":{},"policy":{},"active":null}}"#;
    let huge = r#"{"Lead":{"config":{"enabled":"auto","interfaces":[],"mode":"auto","max_sources":4000000000,"tenant_headroom":4,"limits":{"on_limit":"drop","source":{"interval":0,"tolerance":0},"global":{"interval":0,"tolerance":0},"shared":{"interval":0,"tolerance":0},"resets":{"interval":0,"tolerance":0},"events":{"interval":0,"tolerance":0},"learned":{"secs":1,"nanos":0}}},"policy":{"limits":{"on_limit":"drop","source":{"interval":0,"tolerance":0},"global":{"interval":0,"tolerance":0},"shared":{"interval":0,"tolerance":0},"resets":{"interval":0,"tolerance":0},"events":{"interval":0,"tolerance":0},"learned":{"secs":1,"nanos":0}},"listen":[],"tenants":[],"balancers":[]},"active":[]}}"#;
    let random: Vec<u8> = (0..4096_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for (bytes, said) in [
        (random, "version"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "version"),
        (vec![2, 0, 0, 0, 0], "version"),
        (vec![1, 0xff, 0xff, 0xff, 0xff, b'{'], "4294967295 bytes"),
        (message("{}"), "EOF while parsing|expected"),
        (message(config), "missing field"),
        (message(r#"{"Detonate":{}}"#), "unknown variant"),
        (message(r#"{"Publish":{"active":[[1,-1]],"learned":[]}}"#), "expected u32"),
    ] {
        let mut stream = connect(&place);
        // It may be refused before the last byte is sent.
        let _ = stream.write_all(&bytes);
        let answer = rest(stream);
        assert!(
            answer.starts_with("{\"Refused\"") && said.split('|').any(|s| answer.contains(s)),
            "{said}: {answer}"
        );
        keeper.says("not understood");
    }
    // Half a message, and the end.
    let mut stream = connect(&place);
    stream.write_all(&message("\"Look\"")[..8]).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(rest(stream).starts_with("{\"Refused\""));
    // Well said, and nothing that a configuration may hold.
    let mut stream = connect(&place);
    let answer = ask(&mut stream, huge);
    assert!(answer["Refused"]["why"].as_str().unwrap().contains("xdp.max_sources"), "{answer}");
    // Who does not lead, publishes nothing; looking is free.
    assert_eq!(ask(&mut stream, r#"{"Publish":{"active":[[1,5]],"learned":[]}}"#), "Replaced");
    assert!(ask(&mut stream, "\"Look\"")["Seen"][0]["program"].is_u64());
    drop(stream);
    is_unharmed(&site, ours);
}

/// No limit at all.
fn unlimited() -> Value {
    let none = json!({"interval": 0, "tolerance": 0});
    json!({
        "on_limit": "drop", "source": none, "global": none, "shared": none, "resets": none, "events": none,
        "learned": {"secs": 1, "nanos": 0},
    })
}

/// What a proxy says that wants the gate there, to protect that.
fn lead(interface: &str, listen: &str) -> Value {
    let config = json!({
        "enabled": "auto", "interfaces": [interface], "mode": "auto", "max_sources": 65536, "tenant_headroom": 4,
        "limits": unlimited(),
    });
    let policy = json!({"limits": unlimited(), "listen": [listen], "tenants": [], "balancers": []});
    json!({"Lead": {"config": config, "policy": policy, "active": []}})
}

/// Whoever has taken over the process at the network has its user, and with that the keeper's ear.
#[test]
fn the_proxys_user_gets_no_interface_address_mode_or_size_that_the_file_does_not_name() {
    let place = Place::new();
    let xdp = format!("interfaces = [\"{GATE}\"]\n{XDP}");
    let Some((keeper, site)) = start(&place, &xdp, ACME, &[]) else { return };
    let ours = program(&site, GATE);
    site.wire.inside.ip("link add other0 type veth peer name other1").unwrap();
    let with = |key: &str, value: Value| {
        let mut question = lead(GATE, "10.77.0.1:443");
        question["Lead"]["config"][key] = value;
        question
    };
    let tenant = json!({
        "number": 1, "name": "acme", "max_sessions": 0, "rate": {"interval": 0, "tolerance": 0},
        "sources": ["0.0.0.0/0"], "addresses": ["10.77.0.1:22"],
    });
    let mut a_tenants = lead(GATE, "10.77.0.1:443");
    a_tenants["Lead"]["policy"]["tenants"] = json!([tenant]);
    for (question, named) in [
        (lead("other0", "10.77.0.1:443"), "XDP on other0: not allowed"),
        (with("interfaces", json!([GATE, "lo"])), "XDP on lo: not allowed"),
        (lead(GATE, "10.77.0.1:22"), "protecting 10.77.0.1:22: not allowed"),
        (lead(GATE, "0.0.0.0:443"), "protecting 0.0.0.0:443: not allowed"),
        (a_tenants, "protecting 10.77.0.1:22: not allowed"),
        (with("mode", json!("generic")), "xdp.mode: not allowed"),
        (with("max_sources", json!(16_777_216)), "xdp.max_sources: not allowed"),
    ] {
        let answer = ask(&mut connect(&place), &question.to_string());
        let why = answer["Refused"]["why"].as_str().unwrap_or_else(|| panic!("{question}: {answer}"));
        assert!(why.contains(named) && why.contains("mksgate.toml"), "{why}");
        keeper.says(named);
    }
    assert_eq!(program(&site, "other0"), None);
    is_unharmed(&site, ours);
    // Without a file that says so, nothing new, whoever asks.
    let path = site.appliance.dir.path().join("mksgate.toml");
    fs::rename(&path, path.with_extension("away")).unwrap();
    let answer = ask(&mut connect(&place), &lead("other0", "10.77.0.1:443").to_string());
    assert!(answer["Refused"]["why"].as_str().unwrap().contains("cannot be read"), "{answer}");
    keeper.says("cannot be read");
    is_unharmed(&site, ours);
}

#[test]
fn connections_are_bounded_and_given_back() {
    let place = Place::new();
    let Some((keeper, site)) = start(&place, XDP, ACME, &[]) else { return };
    let ours = program(&site, GATE);
    let files = until("the start is over", || {
        let files = keeper.open_files();
        (ask(&mut connect(&place), "\"Look\"")["Seen"].is_array() && keeper.open_files() <= files)
            .then_some(files)
    });
    // More than there is room for; each that got in is answered, the others are closed.
    let mut held: Vec<UnixStream> = (0..32).map(|_| connect(&place)).collect();
    let served = held
        .iter_mut()
        .map(|stream| {
            let _ = stream.write_all(&message("\"Look\""));
            stream.read(&mut [0; HEAD]).is_ok_and(|n| n == HEAD)
        })
        .filter(|served| *served)
        .count();
    assert!((1..16).contains(&served), "{served} of 32");
    keeper.says("too many connections");
    assert_eq!(program(&site, GATE), ours);
    drop(held);
    until("all of it is given back", || (keeper.open_files() <= files).then_some(()));
    is_unharmed(&site, ours);
}

/// Doctor as a stranger, who asks the keeper because no appliance runs.
fn doctor(config: &std::path::Path) -> Value {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    command.arg(env!("CARGO_BIN_EXE_mksgate")).args(["doctor", "--json", "--config"]).arg(config);
    let report: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
    report["checks"].as_array().unwrap().iter().find(|line| line["check"] == "xdp").unwrap().clone()
}

#[test]
fn a_stranger_is_refused_by_the_sockets_mode_and_by_the_keeper_itself() {
    let Some(wire) = Wire::new() else { return };
    let place = Place::new();
    let setup = kept(&place, XDP, ACME);
    let open_up = |path: &std::path::Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let config = setup.write();
    for (path, mode) in
        [(config.parent().unwrap(), 0o755), (&config, 0o644), (place.socket().parent().unwrap(), 0o755)]
    {
        open_up(path, mode);
    }
    let said = doctor(&config);
    assert_eq!(said["verdict"], "fail", "no keeper yet: {said}");
    assert!(said["remedy"].as_str().unwrap().contains("systemctl start mksgate-xdp"), "{said}");

    let keeper = place.start(&wire.inside, &[]);
    let said = doctor(&config);
    assert!(said["found"].as_str().unwrap().contains("Permission denied"), "{said}");
    open_up(&place.socket(), 0o666);
    let said = doctor(&config);
    assert!(said["found"].as_str().unwrap().contains("uid 65534 may not"), "{said}");
    keeper.says("neither root nor the proxy's user");

    let root = support::mksgate().args(["doctor", "--json", "--config"]).arg(&config).output().unwrap();
    let said = String::from_utf8(root.stdout).unwrap();
    assert!(said.contains("waits for the service"), "{said}");
}
