//! A real machine (QEMU), and programs of other makes that look at it.
#![allow(dead_code, clippy::allow_attributes, reason = "each test binary uses its part of it")]

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long the BIOS may take to write its last line, and a monitor to answer.
const BOOT: Duration = Duration::from_secs(60);

/// The boot sector of a machine that shows what reaches it: keys as they are typed, below what the BIOS wrote; `M` in the
/// top right corner once its mouse moved, `B` beside it once the mouse's left button was pressed.
#[rustfmt::skip]
const PROGRAM: [u8; 102] = [
    0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, // ds = es = ss = 0
    0xbc, 0x00, 0x7c,                               // sp = 7c00
    0xb4, 0x01, 0xb9, 0x07, 0x26, 0xcd, 0x10,       // int 10h/01: no cursor, since it would blink
    0xb8, 0x05, 0xc2, 0xb7, 0x03, 0xcd, 0x15,       // int 15h/C205: a PS/2 mouse with packets of 3 bytes,
    0xb8, 0x07, 0xc2, 0xbb, 0x40, 0x7c, 0xcd, 0x15, // int 15h/C207: its handler at 7c40,
    0xb8, 0x00, 0xc2, 0xb7, 0x01, 0xcd, 0x15,       // int 15h/C200: on
    0xbe, 0x5e, 0x7c,                               // the text at 7c5e:
    0xac, 0x84, 0xc0, 0x74, 0x06,                   //   lodsb; until a zero
    0xb4, 0x0e, 0xcd, 0x10, 0xeb, 0xf5,             //   int 10h/0e: write it
    0x30, 0xe4, 0xcd, 0x16,                         // for ever: int 16h/00: a key,
    0xb4, 0x0e, 0xcd, 0x10, 0xeb, 0xf6,             //   int 10h/0e: write it
    0x55, 0x89, 0xe5, 0x50, 0x1e,                   // the handler (7c40):
    0xb8, 0x00, 0xb8, 0x8e, 0xd8,                   //   ds = b800, the screen's text
    0xc6, 0x06, 0x9e, 0x00, b'M',                   //   row 0, column 79
    0xf6, 0x46, 0x0c, 0x01, 0x74, 0x05,             //   the status' left button?
    0xc6, 0x06, 0x9c, 0x00, b'B',                   //   row 0, column 78
    0x1f, 0x58, 0x5d, 0xcb,                         //   back
    b'r', b'e', b'a', b'd', b'y', b'\r', b'\n', 0,  // the text (7c5e)
];

/// Programs of other makes.
pub struct Tools {
    python: PathBuf,
    vncdo: PathBuf,
}

impl Tools {
    pub fn find() -> Option<Self> {
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

    /// The Python that has the packages of the tests.
    pub fn command(&self) -> Command {
        Command::new(&self.python)
    }

    pub fn capture(&self, vnc: SocketAddr, picture: &Path) -> Result<(), String> {
        self.capture_with(vnc, &[], picture)
    }

    pub fn capture_with(&self, vnc: SocketAddr, args: &[&str], picture: &Path) -> Result<(), String> {
        let server = format!("{}::{}", vnc.ip(), vnc.port());
        let output = Command::new(&self.vncdo)
            .args(["-t", "20", "-s", &server])
            .args(args)
            .arg("capture")
            .arg(picture)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() && picture.exists() { Ok(()) } else { Err(said) }
    }

    pub fn colours(&self, picture: &Path) -> usize {
        let program = "import sys; from PIL import Image; \
            print(len(Image.open(sys.argv[1]).convert('RGB').getcolors(1 << 24)))";
        self.python(program, &[picture]).parse().unwrap()
    }

    /// How many pixels differ, or what else does.
    pub fn differing_pixels(&self, one: &Path, other: &Path) -> String {
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

/// A machine; ended with the test.
pub struct Machine {
    qemu: Child,
    pub vnc: SocketAddr,
    dir: PathBuf,
}

impl Machine {
    /// Without a disk: its BIOS says so and waits.
    pub fn boot(dir: &Path) -> Self {
        Self::start(dir, &[])
    }

    /// One that shows which keys and what of the mouse reach it.
    pub fn boot_echoing(dir: &Path) -> Self {
        Self::start(dir, &["-boot", "a", "-drive", &Self::floppy(dir)])
    }

    fn floppy(dir: &Path) -> String {
        let mut floppy = PROGRAM.to_vec();
        floppy.resize(510, 0);
        floppy.extend([0x55, 0xaa]);
        floppy.resize(1_474_560, 0);
        let path = dir.join("floppy.img");
        std::fs::write(&path, floppy).unwrap();
        format!("if=floppy,format=raw,readonly=on,file={}", path.display())
    }

    /// The same, and its VNC server wants this password.
    pub fn boot_with_password(dir: &Path, password: &str) -> Self {
        let secret = format!("secret,id=vnc,data={password}");
        let floppy = Self::floppy(dir);
        Self::launch(dir, ",password-secret=vnc", &["-object", &secret, "-boot", "a", "-drive", &floppy])
    }

    fn start(dir: &Path, more: &[&str]) -> Self {
        Self::launch(dir, "", more)
    }

    fn launch(dir: &Path, vnc: &str, more: &[&str]) -> Self {
        let qemu = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg", "-m", "64", "-nic", "none", "-display", "none", "-monitor", "none"])
            // The first display that is free; which it is, the monitor says.
            .args(["-serial", "none", "-vnc", &format!("127.0.0.1:100,to=900{vnc}"), "-qmp"])
            .arg(format!("unix:{},server=on,wait=off", dir.join("qmp.sock").display()))
            .args(more)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut machine = Self { qemu, vnc: nobody, dir: dir.to_owned() };
        let port =
            machine.monitor(r#"{"execute": "query-vnc"}"#)["service"].as_str().unwrap().parse().unwrap();
        machine.vnc.set_port(port);
        machine
    }

    /// Waits until the BIOS has written its last line, then stops the machine's clock: the cursor blinks by it.
    pub fn settle(&self, tools: &Tools) -> PathBuf {
        let picture = self.dir.join("direct.png");
        let start = Instant::now();
        let mut before = self.dir.join("none.png");
        for n in 0.. {
            assert!(start.elapsed() < BOOT, "the BIOS never came to rest");
            let now = self.dir.join(format!("boot-{n}.png"));
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
        self.monitor(r#"{"execute": "stop"}"#);
        tools.capture(self.vnc, &picture).unwrap();
        picture
    }

    /// The text on the machine's screen, 25 rows of 80, as it stands in the machine's own memory.
    pub fn screen(&self) -> String {
        let memory = self.dir.join("screen.bin");
        let save = format!(
            r#"{{"execute": "pmemsave", "arguments": {{"val": 753664, "size": 4000, "filename": "{}"}}}}"#,
            memory.display()
        );
        self.monitor(&save);
        let cells = std::fs::read(&memory).unwrap();
        let text: String = cells.chunks(2).map(|cell| char::from(cell[0])).collect();
        let rows: Vec<&str> = (0..25).map(|row| text[row * 80..row * 80 + 80].trim_end()).collect();
        rows.join("\n")
    }

    /// Waits until the machine's screen says so.
    pub fn until_screen(&self, wanted: impl Fn(&str) -> bool) -> String {
        let start = Instant::now();
        loop {
            let screen = self.screen();
            if wanted(&screen) {
                return screen;
            }
            assert!(start.elapsed() < BOOT, "the machine's screen came to this:\n{screen}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What QEMU's monitor returns for a command.
    fn monitor(&self, command: &str) -> serde_json::Value {
        let start = Instant::now();
        let mut monitor = loop {
            match UnixStream::connect(self.dir.join("qmp.sock")) {
                Ok(monitor) => break monitor,
                Err(error) => assert!(start.elapsed() < BOOT, "no monitor: {error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        monitor.set_read_timeout(Some(BOOT)).unwrap();
        let mut answers = BufReader::new(monitor.try_clone().unwrap()).lines();
        let mut last = serde_json::Value::Null;
        for command in [r#"{"execute": "qmp_capabilities"}"#, command] {
            writeln!(monitor, "{command}").unwrap();
            last = loop {
                let line: serde_json::Value =
                    serde_json::from_str(&answers.next().unwrap().unwrap()).unwrap();
                assert!(line["error"].is_null(), "{command}: {line}");
                if !line["return"].is_null() {
                    break line["return"].clone();
                }
            };
        }
        last
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}
