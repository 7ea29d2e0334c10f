//! govmomi's vCenter simulator: built once from Debian's packages, started for a test, asked what reached it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};

use mksgate::tls::Thumbprint;
use mksgate_bench::sim::{Esxi, EsxiConfig, Screen, Ticket, Vm};

use crate::support::client::{self, Tls};
use crate::support::{PATIENCE, VM};

pub const USER: &str = "svc-console";
pub const PASSWORD: &str = "a pass & a <word>";

/// A running vCenter.
pub struct Vcsim {
    pub address: SocketAddr,
    pub vms: Vec<String>,
    calls: Arc<Mutex<Vec<(String, String)>>>,
    child: Child,
}

impl Vcsim {
    /// With these options beside the usual; `None`, and why is said, where it cannot be built.
    pub fn start(host: &Esxi, options: &[&str]) -> Option<Self> {
        let mut child = Command::new(binary()?)
            .args(["-username", USER, "-password", PASSWORD, "-console-path", VM, "-vm", "2"])
            .args([
                "-console-host",
                &host.addr().ip().to_string(),
                "-console-port",
                &host.addr().port().to_string(),
            ])
            .args(["-console-thumbprint", &host.thumbprint_sha1()])
            .args(options)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let (sender, started) = mpsc::channel();
        let (seen, stdout) = (calls.clone(), BufReader::new(child.stdout.take().unwrap()));
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let mut words = line.split(' ').map(str::to_owned);
                match (words.next().as_deref(), words.next(), words.next()) {
                    (Some("call"), Some(method), Some(object)) => seen.lock().unwrap().push((method, object)),
                    (Some("vm"), Some(id), _) => drop(sender.send((Some(id), None))),
                    (Some("listening"), Some(address), _) => drop(sender.send((None, Some(address)))),
                    _ => {}
                }
            }
        });
        let mut vms = Vec::new();
        loop {
            match started.recv_timeout(PATIENCE).expect("vcsim starts") {
                (Some(id), _) => vms.push(id),
                (_, Some(address)) => {
                    vms.sort();
                    return Some(Self { address: address.parse().unwrap(), vms, calls, child });
                }
                _ => {}
            }
        }
    }

    /// What it was asked since the last time: methods and objects.
    pub fn calls(&self) -> Vec<(String, String)> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }

    /// Just the methods.
    pub fn methods(&self) -> Vec<String> {
        self.calls().into_iter().map(|(method, _)| method).collect()
    }

    pub fn thumbprint(&self) -> String {
        Thumbprint::sha256(&Tls::start(client::connect(self.address)).unwrap().leaf()).to_string()
    }

    /// `[vcenters.lab]` for the configuration; the password's file goes into `dir`.
    pub fn account(&self, dir: &Path) -> String {
        use std::os::unix::fs::PermissionsExt;
        let secret = dir.join("vcenter.secret");
        std::fs::write(&secret, format!("{PASSWORD}\n")).unwrap();
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
        format!(
            "[vcenters.lab]\nhost = \"{}\"\nport = {}\nthumbprints = [\"{}\"]\nuser = \"{USER}\"\npassword_file = \"vcenter.secret\"",
            self.address.ip(),
            self.address.port(),
            self.thumbprint()
        )
    }
}

impl Drop for Vcsim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A host that takes the tickets a vCenter of the tests gives out, each once, from the given number on.
pub fn host(from: u32) -> Esxi {
    let mut config = EsxiConfig::default().vm(Vm::plain(VM, Screen::echo()));
    for n in from..200 {
        config = config.ticket(Ticket::new(&format!("console-ticket-{n}"), VM).one_time());
    }
    Esxi::start(config).unwrap()
}

/// Debian's packages and two minutes of compiling, once.
fn binary() -> Option<PathBuf> {
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../vcsim/vcsim");
    if built.is_file() {
        return Some(built);
    }
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vcsim/build.sh");
    let govmomi = Path::new("/usr/share/gocode/src/github.com/vmware/govmomi/simulator").is_dir();
    if govmomi && Path::new("/usr/lib/go-1.19/bin/go").is_file() {
        std::fs::create_dir_all(built.parent().unwrap()).unwrap();
        let done = Command::new(sources).arg(&built).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        return Some(built);
    }
    let lacking = "govmomi's simulator (Debian packages golang-1.19-go golang-github-vmware-govmomi-dev golang-github-google-uuid-dev)";
    let full = std::env::var_os("MKSGATE_FULL_TESTS").is_some_and(|value| value == "1");
    assert!(!full, "missing: {lacking}; `cargo xtask setup` installs it");
    eprintln!("skipped, missing: {lacking}");
    None
}
