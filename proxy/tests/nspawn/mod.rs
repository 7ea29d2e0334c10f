//! A Debian root, booted by systemd-nspawn with a network of its own: a host for the package.

use std::fs;
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mksgate_bench::netns::Namespace;
use nix::sched::{CloneFlags, setns};

/// How long anything of the machine is awaited.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is missing for such a machine here.
pub fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("root boots machines, and this is not root".into());
    }
    for (program, package) in [
        ("debootstrap", "debootstrap"),
        ("systemd-nspawn", "systemd-container"),
        ("nsenter", "util-linux"),
        ("cargo-deb", "cargo install cargo-deb"),
        ("ss", "iproute2"),
    ] {
        let found =
            Command::new("sh").args(["-c", &format!("command -v {program}")]).stdout(Stdio::null()).status();
        if !found.is_ok_and(|status| status.success()) {
            return Some(format!("{program} is missing; {package} brings it (`cargo xtask setup`)"));
        }
    }
    None
}

/// What takes the machine away: it starts before the machine, and works when this end of its input closes.
const BROOM: &str = include_str!("broom.sh");
/// Starts the rest of its arguments in control groups of the name `$0`, so that machines do not meet in one.
const IN_A_GROUP: &str = r#"
for mounted in /sys/fs/cgroup /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; do
    [ -e "$mounted/cgroup.procs" ] && mkdir "$mounted/$0" && echo $$ >"$mounted/$0/cgroup.procs"
done
exec "$@"
"#;

/// A running machine; dropped, it is gone with its files, its control groups and its processes. That holds as well when
/// the test panics or is killed: see `broom.sh`.
pub struct Machine {
    root: PathBuf,
    nspawn: Child,
    leader: i32,
    broom: Child,
}

impl Machine {
    /// Boots a fresh root with these files in `/root`.
    pub fn boot(files: &[&Path]) -> Self {
        let base = base();
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        let name = format!("mksgate-{}-{started:x}", std::process::id());
        let root = base.with_file_name(&name);
        let mut broom = Command::new("sh");
        broom.args(["-c", BROOM, "broom"]).arg(&root).arg(&name).stdin(Stdio::piped());
        // A group of its own: a signal to the test's is not for it.
        let mut broom = broom.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn().unwrap();
        succeed(Command::new("cp").args(["-a", "--reflink=auto"]).arg(&base).arg(&root));
        for file in files {
            fs::copy(file, root.join("root").join(file.file_name().unwrap())).unwrap();
        }
        let heard = root.with_extension("notify");
        let socket = UnixDatagram::bind(&heard).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let options = [
            "--quiet",
            "--boot",
            "--register=no",
            "--keep-unit",
            "--private-network",
            "--notify-ready=yes",
            // What a host has and a container does not: for the XDP gate's keeper.
            "--capability=CAP_BPF,CAP_PERFMON",
            "--system-call-filter=bpf",
        ];
        let nspawn = Command::new("sh")
            .args(["-c", IN_A_GROUP, &name, "systemd-nspawn"])
            .args(options)
            .arg(format!("--machine={name}"))
            .arg("-D")
            .arg(&root)
            .env("NOTIFY_SOCKET", &heard)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        tell(&mut broom, nspawn.id());
        let mut machine = Self { root, nspawn, leader: 0, broom };
        machine.await_boot(&socket).unwrap_or_else(|error| panic!("the machine did not boot: {error}"));
        fs::remove_file(heard).unwrap();
        machine
    }

    fn await_boot(&mut self, socket: &UnixDatagram) -> io::Result<()> {
        let mut buffer = [0; 4096];
        loop {
            let n = socket.recv(&mut buffer)?;
            let said = String::from_utf8_lossy(&buffer[..n]);
            if let Some(leader) = said.lines().find_map(|line| line.strip_prefix("X_NSPAWN_LEADER_PID=")) {
                self.leader = leader.parse().map_err(io::Error::other)?;
                tell(&mut self.broom, self.leader as u32);
            }
            if said.lines().any(|line| line == "READY=1") {
                return Ok(());
            }
        }
    }

    /// A shell command inside.
    pub fn run(&self, command: &str) -> Output {
        let leader = self.leader.to_string();
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["-t", &leader, "-m", "-u", "-i", "-n", "-p", "-C", "sh", "-c", command]);
        nsenter.stdin(Stdio::null()).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        nsenter.output().unwrap()
    }

    /// One that has to succeed; what it printed.
    pub fn ok(&self, command: &str) -> String {
        let output = self.run(command);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if !output.status.success() {
            let journal =
                self.run("journalctl -u mksgate --no-pager -n 30; systemctl status mksgate --no-pager");
            panic!("{command}: {}\n{out}{err}\n{}", output.status, String::from_utf8_lossy(&journal.stdout));
        }
        out.trim().to_owned()
    }

    /// Puts text into a file inside.
    pub fn write(&self, path: &str, text: &str) {
        fs::write(self.inside(path), text).unwrap();
    }

    /// A path inside, as seen from here, mounts included.
    pub fn inside(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.leader))
    }

    /// Moves this thread, and what it starts from now on, into the machine's network.
    pub fn enter_network(&self) {
        let network = fs::File::open(format!("/proc/{}/ns/net", self.leader)).unwrap();
        setns(network, CloneFlags::CLONE_NEWNET).unwrap();
    }

    /// One end of a wire into the machine's network, named `name` there and `peer` in `outside`.
    pub fn wire(&self, name: &str, outside: &Namespace, peer: &str) {
        let leader = self.leader;
        outside.ip(&format!("link add {peer} type veth peer name {name} netns {leader}")).unwrap();
        outside.ip(&format!("link set {peer} up")).unwrap();
    }

    /// The number out here of the process `pid` in there.
    pub fn outside(&self, pid: &str) -> i32 {
        let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let ours = namespace(self.leader);
        let all = fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let is_it = |candidate: &i32| {
            let status = fs::read_to_string(format!("/proc/{candidate}/status")).unwrap_or_default();
            let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
            numbers.split_whitespace().last() == Some(pid) && namespace(*candidate) == ours
        };
        all.into_iter().find(is_it).unwrap_or_else(|| panic!("no process {pid} in the machine"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.broom.stdin.take());
        // The broom has ended nspawn; only its parent can bury it.
        let _ = self.nspawn.wait();
        let swept = self.broom.wait();
        if !std::thread::panicking() {
            assert!(swept.is_ok_and(|status| status.success()), "{} is still there", self.root.display());
        }
    }
}

fn tell(broom: &mut Child, pid: u32) {
    writeln!(broom.stdin.as_mut().unwrap(), "{pid}").unwrap();
}

/// The root that every machine is a copy of; made once.
fn base() -> PathBuf {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let field = |name: &str| release.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
    // The binary wants the C library that it was built with.
    let suite = field("VERSION_CODENAME=")
        .filter(|_| field("ID=").as_deref() == Some("debian"))
        .unwrap_or("bookworm".into());
    let base = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("debian-{suite}"));
    if !base.exists() {
        let new = base.with_extension("new");
        let _ = fs::remove_dir_all(&new);
        let include = "--include=systemd,systemd-sysv,dbus";
        succeed(Command::new("debootstrap").args(["--variant=minbase", include, &suite]).arg(&new));
        fs::rename(new, &base).unwrap();
    }
    base
}

/// Runs it; a failure shows what it said.
pub fn succeed(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&said));
}
