//! docs/ticket-format.md is true: its example opens here, its Python program and this library open each other's tickets.

mod jose;

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mksgate::ticket::{Claims, KeyRing, TicketPolicy, Tickets, create_key_file};

const DOCUMENT: &str = include_str!("../../docs/ticket-format.md");
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The fenced block with this info string.
fn block(info: &str) -> &'static str {
    let (_, rest) = DOCUMENT.split_once(&format!("```{info}\n")).expect(info);
    rest.split_once("\n```").expect("an end").0
}

fn put(dir: &Path, name: &str, text: &str) {
    use std::io::Write;
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(dir.join(name)).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

#[test]
fn the_worked_example_opens() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "example-1.jwk", block("json key"));
    let ring = KeyRing::load(dir.path()).unwrap();
    let (claims, kid) = ring.inspect(block("text ticket")).unwrap();
    assert_eq!(kid, "example-1");
    assert_eq!(claims, Claims::from_json(block("json claims").as_bytes()).unwrap());
    let tickets = Tickets::new(TicketPolicy::default(), ring);
    let soon = UNIX_EPOCH + Duration::from_secs(claims.iat + 5);
    assert_eq!(tickets.open(block("text ticket"), HERE, soon).unwrap().tenant(), "acme");
}

#[test]
fn another_jose_library_agrees() {
    let Some(python) = jose::python() else { return };
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "ticket.py", block("python"));
    let (kid, key) = create_key_file(dir.path(), None, SystemTime::now()).unwrap();
    let ring = KeyRing::load(dir.path()).unwrap();
    let run = |verb: &str, input: &str| {
        let args = [dir.path().join("ticket.py").into(), verb.into(), key.clone().into_os_string()];
        jose::run(&python, &args, input)
    };

    // Theirs, opened here. The program fills in jti and the times.
    let mut claims: serde_json::Value = serde_json::from_str(block("json claims")).unwrap();
    for name in ["jti", "iat", "nbf", "exp"] {
        claims.as_object_mut().unwrap().remove(name);
    }
    let theirs = run("seal", &claims.to_string()).unwrap();
    assert_eq!(ring.inspect(theirs.trim()).unwrap().1, kid);
    let tickets = Tickets::new(TicketPolicy::default(), ring.clone());
    let permit = tickets.open(theirs.trim(), HERE, SystemTime::now()).unwrap();
    assert_eq!((permit.user(), permit.vm()), ("ada@acme", "vm-61"));
    assert_eq!(permit.target().cfg_file.as_deref(), Some("/vmfs/volumes/ds1/web/web.vmx"));

    // Ours, opened there, also with claims beyond ASCII.
    let mut claims = Claims::from_json(block("json claims").as_bytes()).unwrap();
    claims.user = "ådå \"quoted\" 漢字".into();
    let ours = ring.seal(&claims).unwrap();
    let opened: Claims = serde_json::from_str(&run("open", &ours).unwrap()).unwrap();
    assert_eq!(opened, claims);

    // And it is no parrot: what is forged fails there as here.
    let forged = format!("{}A", &ours[..ours.len() - 1]);
    if forged != ours {
        assert!(run("open", &forged).is_err() && ring.inspect(&forged).is_err());
    }
}
