//! govmomi's vCenter simulator: built once from Debian's packages, started for a test, asked what reached it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, mpsc};

use mksgate::tls::Thumbprint;
use mksgate_bench::sim::{Esxi, EsxiConfig, Screen, Ticket, Vm};

use super::desk::secret;
use super::http::ask;
use crate::support::client::{self, Tls};
use crate::support::{PATIENCE, VM};

pub const USER: &str = "svc-console";
pub const PASSWORD: &str = "a pass & a <word>";

/// A running vCenter.
pub struct Vcsim {
    pub address: SocketAddr,
    pub vms: Vec<String>,
    seen: Arc<Seen>,
    child: Child,
}

#[derive(Default)]
struct Seen {
    lines: Mutex<Lines>,
    came: Condvar,
}

#[derive(Default)]
struct Lines {
    calls: Vec<(String, String)>,
    mark: u64,
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
        let seen = Arc::<Seen>::default();
        let (sender, started) = mpsc::channel();
        let (noting, stdout) = (seen.clone(), BufReader::new(child.stdout.take().unwrap()));
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let mut words = line.split(' ').map(str::to_owned);
                match (words.next().as_deref(), words.next(), words.next()) {
                    (Some("call"), Some(method), Some(object)) => {
                        noting.lines.lock().unwrap().calls.push((method, object))
                    }
                    (Some("mark"), Some(n), _) => noting.lines.lock().unwrap().mark = n.parse().unwrap(),
                    (Some("vm"), Some(id), _) => drop(sender.send((Some(id), None))),
                    (Some("listening"), Some(address), _) => drop(sender.send((None, Some(address)))),
                    _ => {}
                }
                noting.came.notify_all();
            }
        });
        let mut vms = Vec::new();
        loop {
            match started.recv_timeout(PATIENCE).expect("vcsim starts") {
                (Some(id), _) => vms.push(id),
                (_, Some(address)) => {
                    vms.sort();
                    return Some(Self { address: address.parse().unwrap(), vms, seen, child });
                }
                _ => {}
            }
        }
    }

    /// What it was asked since the last time: methods and objects.
    pub fn calls(&self) -> Vec<(String, String)> {
        static MARKS: AtomicU64 = AtomicU64::new(1);
        let mark = MARKS.fetch_add(1, Ordering::SeqCst);
        ask(self.address, &format!("GET /mark/{mark} HTTP/1.1\r\n"), "");
        let mut lines = self.wait(|lines| lines.mark >= mark);
        std::mem::take(&mut lines.calls)
    }

    /// Waits until a method was called so often, and leaves the calls to be read.
    pub fn wait_calls(&self, method: &str, count: usize) {
        drop(self.wait(|lines| lines.calls.iter().filter(|(name, _)| name == method).count() >= count));
    }

    fn wait(&self, enough: impl Fn(&Lines) -> bool) -> MutexGuard<'_, Lines> {
        let lines = self.seen.lines.lock().unwrap();
        let waited = self.seen.came.wait_timeout_while(lines, PATIENCE, |lines| !enough(lines));
        let (lines, timeout) = waited.unwrap();
        assert!(!timeout.timed_out(), "the vCenter was asked {:?}", lines.calls);
        lines
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
        secret(&dir.join("vcenter.secret"), format!("{PASSWORD}\n"));
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

/// Built from Debian's packages, once for these sources; whoever comes meanwhile waits.
fn binary() -> Option<PathBuf> {
    let mut hash = DefaultHasher::new();
    [&include_bytes!("../vcsim/main.go")[..], include_bytes!("../vcsim/ticket.go")].hash(&mut hash);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../vcsim");
    let built = folder.join(format!("vcsim-{:016x}", hash.finish()));
    if built.is_file() {
        return Some(built);
    }
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vcsim/build.sh");
    let govmomi = Path::new("/usr/share/gocode/src/github.com/vmware/govmomi/simulator").is_dir();
    if govmomi && Path::new("/usr/lib/go-1.19/bin/go").is_file() {
        std::fs::create_dir_all(&folder).unwrap();
        let lock = std::fs::File::create(folder.join("lock")).unwrap();
        lock.lock().unwrap();
        if !built.is_file() {
            let done = Command::new(sources).arg(&built).output().unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        }
        return Some(built);
    }
    let lacking = "govmomi's simulator (Debian packages golang-1.19-go golang-github-vmware-govmomi-dev golang-github-google-uuid-dev)";
    let full = std::env::var_os("MKSGATE_FULL_TESTS").is_some_and(|value| value == "1");
    assert!(!full, "missing: {lacking}; `cargo xtask setup` installs it");
    eprintln!("skipped, missing: {lacking}");
    None
}
