//! `mksgate ticket` as an operator uses it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn mksgate(args: &[&str], input: &str) -> Output {
    use std::io::Write;
    let mut child = Command::new(env!("CARGO_BIN_EXE_mksgate"))
        .args(args)
        .env_remove("MKSGATE_KEYS")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn good(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

fn bad(output: Output) -> String {
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    String::from_utf8(output.stderr).unwrap()
}

fn key_dir() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys").to_str().unwrap().to_owned();
    (dir, keys)
}

const CLAIMS: [&str; 12] =
    ["--tenant", "acme", "--user", "ada", "--vm", "vm-61", "--kind", "vnc", "--host", "kvm1", "--jti", "j-1"];

#[test]
fn a_key_a_ticket_and_what_is_in_it() {
    let (_dir, keys) = key_dir();
    let kid = good(mksgate(&["ticket", "keygen", &keys], ""));
    assert!(Path::new(&keys).join(format!("{kid}.jwk")).exists());
    let args = [&["ticket", "seal", "--keys", &keys, "--target-ticket-file", "-"], &CLAIMS[..]].concat();
    let output = mksgate(&args, "vnc-password\n");
    assert!(String::from_utf8_lossy(&output.stderr).contains("j-1"));
    let ticket = good(output);
    assert_eq!(ticket.split('.').count(), 5);

    let output = mksgate(&["ticket", "open", "--keys", &keys], &format!("{ticket}\n"));
    assert!(String::from_utf8_lossy(&output.stderr).contains(&kid));
    let shown = good(output);
    assert!(shown.contains("\"jti\": \"j-1\"") && !shown.contains("vnc-password"), "{shown}");
    let shown = good(mksgate(&["ticket", "open", "--keys", &keys, "--show-secrets", &ticket], ""));
    assert!(shown.contains("vnc-password"), "{shown}");
    // The URL for `connect` carries the same.
    let url = good(mksgate(&[&args[..], &["--url", "[::1]:902"]].concat(), "vnc-password"));
    let url = mksgate::client::url::ConsoleUrl::parse(&url).unwrap();
    assert_eq!((&*url.host, url.port, &*url.vm), ("::1", Some(902), "vm-61"));
    good(mksgate(&["ticket", "open", "--keys", &keys, &url.ticket], ""));
    // What `open` prints can be sealed again.
    let again = good(mksgate(&["ticket", "seal", "--keys", &keys, "--claims", "-"], &shown));
    assert_eq!(good(mksgate(&["ticket", "open", "--keys", &keys, "--show-secrets", &again], "")), shown);
}

#[test]
fn refusals_say_what_to_do() {
    let (_dir, keys) = key_dir();
    let error = bad(mksgate(&["ticket", "open", "--keys", &keys, "x"], ""));
    assert!(error.contains(&keys), "{error}");
    let kid = good(mksgate(&["ticket", "keygen", &keys, "--kid", "k1"], ""));
    assert_eq!(kid, "k1");
    assert!(bad(mksgate(&["ticket", "keygen", &keys, "--kid", "k1"], "")).contains("k1.jwk"));
    assert!(bad(mksgate(&["ticket", "open", "--keys", &keys, "x.y"], "")).contains("not a JWE"));
    assert!(bad(mksgate(&["ticket", "open", "--keys", &keys], &"A".repeat(1 << 20))).contains("longer than"));
    let file = Path::new(&keys).join("k1.jwk");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = bad(mksgate(&[&["ticket", "seal", "--keys", &keys], &CLAIMS[..]].concat(), ""));
    assert!(error.contains(&format!("chmod 600 {}", file.display())), "{error}");
}
