//! The real binary, a simulated host behind it, and a client in front: what the tests of the doors share.
#![allow(dead_code, missing_docs, clippy::allow_attributes, reason = "each test binary uses its part of it")]

pub mod client;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mksgate::ticket::{Claims, KeyRing, Target, TargetKind};
use mksgate_bench::sim::Esxi;
use tempfile::TempDir;

/// How long anything is awaited before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// The VM of most tests.
pub const VM: &str = "/vmfs/volumes/datastore 1/web (1)/web.vmx";
/// The host's own ticket for it.
pub const HOST_TICKET: &str = "52f1c2d3-host-ticket";

/// A configuration to be written: defaults of the tests, changed by each.
pub struct Setup {
    pub dir: TempDir,
    pub top: String,
    pub tenants: String,
}

/// The running appliance.
pub struct Appliance {
    pub dir: TempDir,
    pub authd: SocketAddr,
    pub tls: SocketAddr,
    pub keys: KeyRing,
    child: Child,
    log: mpsc::Receiver<serde_json::Value>,
    seen: Vec<serde_json::Value>,
}

static JTI: AtomicU64 = AtomicU64::new(1);

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

pub fn mksgate() -> Command {
    Command::new(env!("CARGO_BIN_EXE_mksgate"))
}

/// A fresh directory with a key and a self-signed certificate.
impl Setup {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_certificate(dir.path());
        let keys = dir.path().join("keys");
        let made = mksgate().args(["ticket", "keygen"]).arg(&keys).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let tenants =
            "[tenants.acme]\nmax_sessions = 1000\ntargets = [\"127.0.0.0/8\", \"::1/128\"]\n".into();
        Self { dir, top: String::new(), tenants }
    }

    /// More sections; `{dir}` is the directory.
    pub fn with(mut self, text: &str) -> Self {
        self.top.push_str(text);
        self.top.push('\n');
        self
    }

    /// Other tenants than the one that may do everything on loopback.
    pub fn tenants(mut self, text: &str) -> Self {
        self.tenants = text.into();
        self
    }

    pub fn config_path(&self) -> PathBuf {
        self.dir.path().join("mksgate.toml")
    }

    pub fn write(&self) -> PathBuf {
        let has = |section: &str| self.top.contains(&format!("[{section}]"));
        let mut text = self.top.clone();
        for (section, default) in [
            ("listen", "tls = [\"127.0.0.1:0\"]\nauthd = [\"127.0.0.1:0\"]"),
            ("tls", "certificate = \"cert.pem\"\nkey = \"key.pem\""),
            ("tickets", "keys = \"keys\""),
            ("admin", "socket = \"admin.sock\""),
            ("audit", "file = \"audit.jsonl\""),
            ("log", "format = \"json\"\nfilter = \"mksgate=debug\""),
        ] {
            if !has(section) {
                text.push_str(&format!("[{section}]\n{default}\n"));
            }
        }
        text.push_str(&self.tenants);
        fs::write(self.config_path(), text).unwrap();
        self.config_path()
    }

    pub fn start(self) -> Appliance {
        self.start_by(mksgate())
    }

    /// The same by a command that runs the binary in its own way.
    pub fn start_by(self, command: Command) -> Appliance {
        let (child, log) = serve(command, &self.write());
        let keys = KeyRing::load(&self.dir.path().join("keys")).unwrap();
        let none = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut appliance =
            Appliance { dir: self.dir, authd: none, tls: none, keys, child, log, seen: vec![] };
        appliance.until_serving();
        appliance
    }
}

/// The binary, and its log.
fn serve(mut command: Command, config: &Path) -> (Child, mpsc::Receiver<serde_json::Value>) {
    let mut child = command
        .args(["serve", "--config"])
        .arg(config)
        .stderr(Stdio::piped())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let (sender, log) = mpsc::channel();
    let stderr = BufReader::new(child.stderr.take().unwrap());
    std::thread::spawn(move || {
        for line in stderr.lines().map_while(Result::ok) {
            match serde_json::from_str(&line) {
                Ok(value) => drop(sender.send(value)),
                Err(_) => eprintln!("mksgate: {line}"),
            }
        }
    });
    (child, log)
}

pub fn write_certificate(dir: &Path) {
    let key = rcgen::KeyPair::generate().unwrap();
    let cert =
        rcgen::CertificateParams::new(vec!["console.example".into()]).unwrap().self_signed(&key).unwrap();
    fs::write(dir.join("cert.pem"), cert.pem()).unwrap();
    fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
    fs::set_permissions(dir.join("key.pem"), fs::Permissions::from_mode(0o600)).unwrap();
}

impl Appliance {
    fn until_serving(&mut self) {
        let mut listening = Vec::new();
        self.wait_log(|line| {
            if line["fields"]["message"] == "listening" {
                listening.push((
                    line["fields"]["door"].to_string(),
                    line["fields"]["address"].as_str().unwrap().to_owned(),
                ));
            }
            line["fields"]["message"] == "serving"
        });
        for (door, address) in listening {
            let address = address.parse().unwrap();
            if door.contains("authd") { self.authd = address } else { self.tls = address }
        }
    }

    /// Ends it with these signals, and starts it again at the same addresses; `between` runs while it is gone.
    pub fn restart(&mut self, signals: &[nix::sys::signal::Signal], between: impl FnOnce()) {
        for signal in signals {
            self.signal(*signal);
        }
        self.child.wait().unwrap();
        between();
        let config = self.dir.path().join("mksgate.toml");
        let text = fs::read_to_string(&config).unwrap();
        let same = text
            .replace("tls = [\"127.0.0.1:0\"]", &format!("tls = [\"{}\"]", self.tls))
            .replace("authd = [\"127.0.0.1:0\"]", &format!("authd = [\"{}\"]", self.authd));
        fs::write(&config, same).unwrap();
        (self.child, self.log) = serve(mksgate(), &config);
        self.until_serving();
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid() as i32), signal).unwrap();
    }

    /// The log as far as it was waited for.
    pub fn seen(&self) -> &[serde_json::Value] {
        &self.seen
    }

    /// Waits for a log line.
    pub fn wait_log(&mut self, mut wanted: impl FnMut(&serde_json::Value) -> bool) -> serde_json::Value {
        loop {
            match self.log.recv_timeout(PATIENCE) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if wanted(&line) {
                        return line;
                    }
                }
                Err(error) => {
                    let tail: Vec<_> =
                        self.seen.iter().rev().take(20).rev().map(ToString::to_string).collect();
                    panic!("no such log line ({error}); the last ones:\n{}", tail.join("\n"));
                }
            }
        }
    }

    /// Waits until a connection was refused for this reason.
    pub fn wait_refused(&mut self, reason: &str) -> serde_json::Value {
        self.wait_log(|line| line["fields"]["message"] == "refused" && line["fields"]["reason"] == reason)
    }

    /// Waits for the end of a console and returns its reason.
    pub fn wait_closed(&mut self) -> String {
        let line = self.wait_log(|line| line["fields"]["message"] == "console closed");
        line["fields"]["reason"].as_str().unwrap().to_owned()
    }

    /// A ticket for a host, good right now.
    pub fn ticket(&self, host: &Esxi) -> String {
        self.ticket_with(host, |_| {})
    }

    pub fn ticket_with(&self, host: &Esxi, change: impl FnOnce(&mut Claims)) -> String {
        let mut claims = claims(host.addr(), &host.thumbprint_sha256());
        change(&mut claims);
        self.keys.seal(&claims).unwrap()
    }

    pub fn command(&self, args: &[&str]) -> std::process::Output {
        let socket = self.dir.path().join("admin.sock");
        mksgate().args(args).env("MKSGATE_ADMIN_SOCKET", socket).output().unwrap()
    }

    pub fn metrics(&self) -> String {
        use std::io::{Read, Write};
        let mut socket = std::os::unix::net::UnixStream::connect(self.dir.path().join("admin.sock")).unwrap();
        socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        socket.read_to_string(&mut text).unwrap();
        text
    }

    /// Sum of a metric's samples whose line holds all of `with`.
    pub fn metric(&self, name: &str, with: &[&str]) -> f64 {
        let samples = self.metrics();
        let mine = |line: &&str| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']))
                && with.iter().all(|w| line.contains(w))
        };
        samples.lines().filter(mine).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    pub fn audit(&self) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(self.dir.path().join("audit.jsonl")).unwrap_or_default();
        // The last line may be under way.
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole.map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The same once it has so many records of an event: its writer is a thread of its own, and a log line says nothing of it.
    pub fn audit_with(&self, event: &str, count: usize) -> Vec<serde_json::Value> {
        let began = Instant::now();
        loop {
            let audit = self.audit();
            if audit.iter().filter(|record| record["event"] == event).count() >= count {
                return audit;
            }
            assert!(began.elapsed() < PATIENCE, "waited for {count} of {event}: {audit:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// Waits for its own end.
    pub fn wait_end(&mut self) -> std::process::ExitStatus {
        self.child.wait().unwrap()
    }

    /// SIGTERM twice, then waits for the end.
    pub fn stop(mut self) -> std::process::ExitStatus {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        self.signal(nix::sys::signal::Signal::SIGINT);
        self.child.wait().unwrap()
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn claims(host: SocketAddr, thumbprint: &str) -> Claims {
    let now = now();
    Claims {
        iss: None,
        aud: None,
        jti: format!("jti-{}-{}", std::process::id(), JTI.fetch_add(1, Ordering::Relaxed)),
        iat: now,
        nbf: now,
        exp: now + 3600,
        tenant: "acme".into(),
        user: "ann".into(),
        vm: VM.into(),
        target: Target {
            kind: TargetKind::EsxiMks,
            host: host.ip().to_string(),
            port: Some(host.port()),
            ticket: Some(HOST_TICKET.into()),
            cfg_file: None,
            thumbprints: vec![thumbprint.into()],
            tls: None,
        },
        source: None,
        max_connections: None,
        session_seconds: None,
        view_only: false,
    }
}
