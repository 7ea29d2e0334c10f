//! A real machine's screen is the same picture with and without the appliance: QEMU's BIOS, captured by a VNC client of another make.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use mksgate_bench::sim::{Esxi, EsxiConfig, Screen, Ticket, Vm};
use support::{Appliance, HOST_TICKET, PATIENCE, Setup, VM, mksgate};

/// How long the BIOS may take to write its last line.
const BOOT: Duration = Duration::from_secs(60);

#[test]
fn qemus_bios_screen_is_pixel_equal_directly_through_902_and_through_443() {
    let Some(tools) = Tools::find() else { return };
    let gate = Setup::new().start();
    let machine = Machine::boot(gate.dir.path());
    let direct = machine.settle(&tools, gate.dir.path());
    assert!(tools.colours(&direct) >= 2, "a blank screen proves nothing");

    let host = Esxi::start(
        EsxiConfig::default().vm(Vm::new(VM, Screen::vnc(machine.vnc))).ticket(Ticket::new(HOST_TICKET, VM)),
    )
    .unwrap();
    for (door, address) in [("authd", gate.authd), ("mks", gate.tls)] {
        let client = Connect::start(&gate, &host, door, address);
        let seen = gate.dir.path().join(format!("{door}.png"));
        tools.capture(client.listen, &seen).unwrap();
        assert_eq!(tools.differing_pixels(&direct, &seen), "0", "through {door}");
    }
}

/// Programs of other makes.
struct Tools {
    python: PathBuf,
    vncdo: PathBuf,
}

impl Tools {
    fn find() -> Option<Self> {
        let python = PathBuf::from(std::env::var_os("MKSGATE_PYTHON").unwrap_or_default());
        let vncdo = python.with_file_name("vncdo");
        let lacking = if !vncdo.is_file() {
            "MKSGATE_PYTHON, a Python with vncdotool (PyPI)"
        } else if Command::new("qemu-system-x86_64").arg("--version").output().is_err() {
            "qemu-system-x86_64 (Debian package qemu-system-x86)"
        } else {
            return Some(Self { python, vncdo });
        };
        let full = std::env::var_os("MKSGATE_FULL_TESTS").is_some_and(|value| value == "1");
        assert!(!full, "missing: {lacking}; `cargo xtask setup` installs it");
        eprintln!("skipped, missing: {lacking}");
        None
    }

    fn capture(&self, vnc: SocketAddr, picture: &Path) -> Result<(), String> {
        let server = format!("{}::{}", vnc.ip(), vnc.port());
        let output = Command::new(&self.vncdo)
            .args(["-t", "20", "-s", &server, "capture"])
            .arg(picture)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() && picture.exists() { Ok(()) } else { Err(said) }
    }

    fn colours(&self, picture: &Path) -> usize {
        let program = "import sys; from PIL import Image; \
            print(len(Image.open(sys.argv[1]).convert('RGB').getcolors(1 << 24)))";
        self.python(program, &[picture]).parse().unwrap()
    }

    /// How many pixels differ, or what else does.
    fn differing_pixels(&self, one: &Path, other: &Path) -> String {
        let program = "import sys; from PIL import Image, ImageChops; \
            a, b = (Image.open(p).convert('RGB') for p in sys.argv[1:]); \
            print('sizes' if a.size != b.size else \
            sum(n for n, c in ImageChops.difference(a, b).getcolors(1 << 24) if any(c)))";
        self.python(program, &[one, other])
    }

    fn python(&self, program: &str, args: &[&Path]) -> String {
        let output = Command::new(&self.python).args(["-c", program]).args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

/// QEMU without a disk: its BIOS says so and waits.
struct Machine {
    qemu: Child,
    vnc: SocketAddr,
    monitor: PathBuf,
}

impl Machine {
    fn boot(dir: &Path) -> Self {
        let monitor = dir.join("qmp.sock");
        let display = (100..1000)
            .find(|n| TcpListener::bind((Ipv4Addr::LOCALHOST, 5900 + n)).is_ok())
            .expect("a free VNC display");
        let qemu = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg", "-m", "64", "-nic", "none", "-display", "none", "-monitor", "none"])
            .args(["-serial", "none", "-vnc", &format!("127.0.0.1:{display}"), "-qmp"])
            .arg(format!("unix:{},server=on,wait=off", monitor.display()))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self { qemu, vnc: SocketAddr::from((Ipv4Addr::LOCALHOST, 5900 + display)), monitor }
    }

    /// Waits until the BIOS has written its last line, then stops the machine's clock: the cursor blinks by it.
    fn settle(&self, tools: &Tools, dir: &Path) -> PathBuf {
        let picture = dir.join("direct.png");
        let start = Instant::now();
        let mut before = dir.join("none.png");
        for n in 0.. {
            assert!(start.elapsed() < BOOT, "the BIOS never came to rest");
            let now = dir.join(format!("boot-{n}.png"));
            if tools.capture(self.vnc, &now).is_err() {
                continue;
            }
            let still = before.exists() && tools.colours(&now) >= 2 && {
                let differing = tools.differing_pixels(&before, &now);
                // A cursor is 9 by 2 pixels.
                differing.parse::<u32>().is_ok_and(|pixels| pixels <= 18)
            };
            if still {
                break;
            }
            before = now;
        }
        self.stop_clock();
        tools.capture(self.vnc, &picture).unwrap();
        picture
    }

    fn stop_clock(&self) {
        let mut monitor = UnixStream::connect(&self.monitor).unwrap();
        monitor.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answers = BufReader::new(monitor.try_clone().unwrap()).lines();
        for command in ["qmp_capabilities", "stop"] {
            writeln!(monitor, "{{\"execute\": \"{command}\"}}").unwrap();
            let returned = answers.any(|line| line.unwrap().contains("\"return\""));
            assert!(returned, "{command}");
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// `mksgate connect`, offering the console to a VNC viewer.
struct Connect {
    child: Child,
    /// Kept open: a program must not fail because nobody reads what else it says.
    _stdout: BufReader<ChildStdout>,
    listen: SocketAddr,
}

impl Connect {
    fn start(gate: &Appliance, host: &Esxi, door: &str, address: SocketAddr) -> Self {
        let mut child = mksgate()
            .args(["connect", "--insecure-accept-any-certificate", "--proxy", "none"])
            .args(["--door", door, "--address", &address.to_string(), "--vm", VM])
            .args(["--listen", "127.0.0.1:0"])
            .arg(gate.ticket(host))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        // "viewers connect to 127.0.0.1::40001 (…)"
        let listen = line.split_whitespace().find_map(|word| word.replace("::", ":").parse().ok());
        Self { child, _stdout: stdout, listen: listen.expect("an address") }
    }
}

impl Drop for Connect {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
