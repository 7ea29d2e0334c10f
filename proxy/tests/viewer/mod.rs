//! `mksgate connect` as a process, and a VNC viewer that speaks RFB 3.8.
#![allow(dead_code, clippy::allow_attributes, reason = "each test binary uses its part of it")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A running `mksgate connect`; killed with the test.
pub struct Client {
    child: Child,
    pub listens: SocketAddr,
}

impl Client {
    pub fn start(url: &str, args: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::run("connect", url, args, environment)
    }

    /// A subcommand that serves viewers, its URL on standard input.
    pub fn run(subcommand: &str, url: &str, args: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mksgate"));
        for name in ["https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY", "SSL_CERT_FILE"] {
            command.env_remove(name);
        }
        let mut child = command
            .args([subcommand, "-", "--listen", "127.0.0.1:0"])
            .args(args)
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(url.as_bytes()).unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let address = line.split_whitespace().nth(3).map(|a| a.replace("::", ":"));
        let Some(address) = address else {
            let mut said = String::new();
            child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            panic!("no address in {line:?}: {said}");
        };
        Self { child, listens: address.parse().unwrap() }
    }

    pub fn viewer(&self) -> TcpStream {
        let viewer = TcpStream::connect(self.listens).unwrap();
        viewer.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        viewer
    }

    /// Its exit status and what it said.
    pub fn end(mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(!said.contains("sealed-and-secret"), "{said}");
        (self.child.wait().unwrap().code(), said)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn read(stream: &mut TcpStream, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// The viewer's handshake, RFC 6143 7.1 and 7.3.1, up to ServerInit, which the virtual machine sends.
pub fn shake_hands(viewer: &mut TcpStream) {
    assert_eq!(read(viewer, 12), b"RFB 003.008\n");
    viewer.write_all(b"RFB 003.008\n").unwrap();
    assert_eq!(read(viewer, 2), [1, 1]);
    viewer.write_all(&[1]).unwrap();
    assert_eq!(read(viewer, 4), [0; 4]);
    viewer.write_all(&[1]).unwrap();
}

/// The reason of a refusal in RFB's own form.
pub fn refusal(viewer: &mut TcpStream) -> String {
    assert_eq!(read(viewer, 12), b"RFB 003.008\n");
    viewer.write_all(b"RFB 003.008\n").unwrap();
    assert_eq!(read(viewer, 1), [0]);
    let len = u32::from_be_bytes(read(viewer, 4).try_into().unwrap());
    String::from_utf8(read(viewer, len as usize)).unwrap()
}

pub fn echo(viewer: &mut TcpStream, bytes: &[u8]) {
    let mut sending = viewer.try_clone().unwrap();
    let back = std::thread::scope(|scope| {
        scope.spawn(move || sending.write_all(bytes).unwrap());
        read(viewer, bytes.len())
    });
    assert!(back == bytes, "what went in came out otherwise");
}

/// Waits for the end of the stream; a reset is one too, silence is not.
pub fn ends(viewer: &mut TcpStream) -> bool {
    match viewer.read(&mut [0; 16]) {
        Ok(n) => n == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}
