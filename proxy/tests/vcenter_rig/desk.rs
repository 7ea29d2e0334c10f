//! The ticket desk from outside: its users' file, and somebody who logs in and acquires.

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::fake::between;
use super::http::ask;
use crate::support::mksgate;

pub const PASSWORD: &str = "open sesame";

/// A file that nobody else may read, as the desk and the accounts want theirs.
pub fn secret(path: &Path, text: impl AsRef<[u8]>) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// A user's section, by the real command.
pub fn user(name: &str, password: &str) -> String {
    let mut child = mksgate()
        .args(["desk", "password", name])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(password.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

/// ann@blue logs in with `PASSWORD` and acquires a ticket for vm-61: an `mks://` URL.
pub fn acquire(desk: SocketAddr) -> String {
    let basic = STANDARD.encode(format!("ann@blue:{PASSWORD}"));
    let accept = "Accept: application/*+xml;version=5.5\r\n";
    let login =
        ask(desk, &format!("POST /api/sessions HTTP/1.1\r\nAuthorization: Basic {basic}\r\n{accept}"), "");
    let token = login.header("x-vcloud-authorization").expect("a login").to_owned();
    let line = format!(
        "POST /api/vApp/vm-61/screen/action/acquireTicket HTTP/1.1\r\nx-vcloud-authorization: {token}\r\n{accept}"
    );
    let acquired = ask(desk, &line, "");
    assert_eq!(acquired.status, 200, "{acquired:?}");
    between(&acquired.body, "v1.5\">", "</ScreenTicket>").expect("a ticket").to_owned()
}
