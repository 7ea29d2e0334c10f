//! Chromium, driven by `web/browser.mjs`: what a person in front of a browser does and sees.
#![allow(dead_code, clippy::allow_attributes, reason = "each test binary uses its part of it")]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use base64::Engine;
use serde_json::{Value, json};

/// How long anything in a browser is waited for: a busy machine starts one in half a minute.
const PATIENCE: Duration = Duration::from_secs(90);

/// A browser with one page; ended with the test.
pub struct Browser {
    node: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

/// The folder of the browser's driver and the Node packages.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/web")
}

/// Whether everything is there that a browser takes; a failure where everything has to be (`cargo xtask test`).
pub fn is_there() -> bool {
    let runs =
        |program: &str| Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success());
    let lacking = if !runs("node") {
        "node (Debian package nodejs)"
    } else if !folder().join("node_modules/playwright-core").exists() {
        "the Node packages of proxy/tests/web (`npm ci` there)"
    } else if !runs("chromium") {
        "chromium (Debian package chromium)"
    } else {
        return true;
    };
    skip(lacking)
}

/// Says what is missing; false, or a failure where everything has to be there.
pub fn skip(lacking: &str) -> bool {
    let full = std::env::var_os("MKSGATE_FULL_TESTS").is_some_and(|value| value == "1");
    assert!(!full, "missing: {lacking}; `cargo xtask setup` installs it");
    eprintln!("skipped, missing: {lacking}");
    false
}

impl Browser {
    /// Starts one, unless something is missing.
    pub fn start() -> Option<Self> {
        if !is_there() {
            return None;
        }
        let mut node = Command::new("node")
            .arg(folder().join("browser.mjs"))
            .env("MKSGATE_PATIENCE_MS", PATIENCE.as_millis().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let commands = node.stdin.take();
        let answers = BufReader::new(node.stdout.take().unwrap());
        Some(Self { node, commands, answers })
    }

    fn tell(&mut self, command: &Value) -> Value {
        let commands = self.commands.as_mut().unwrap();
        writeln!(commands, "{command}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let mut answer: Value =
            serde_json::from_str(&line).unwrap_or_else(|_| panic!("the browser ended: {line:?}"));
        if answer["error"].is_string() {
            let seen = self.seen();
            panic!("{command}: {}\n{seen}", answer["error"]);
        }
        answer["ok"].take()
    }

    /// What is on the page when something went wrong.
    fn seen(&mut self) -> String {
        let commands = self.commands.as_mut().unwrap();
        writeln!(commands, "{}", json!({"do": "eval", "js": "document.body.innerText"})).unwrap();
        writeln!(commands, "{}", json!({"do": "log"})).unwrap();
        let mut lines = String::new();
        let _ = self.answers.read_line(&mut lines);
        let mut log = String::new();
        let _ = self.answers.read_line(&mut log);
        let log: Value = serde_json::from_str(&log).unwrap_or_default();
        format!("page: {lines}console: {}\nerrors: {}", log["ok"]["console"], log["ok"]["errors"])
    }

    pub fn open(&mut self, url: &str) {
        self.tell(&json!({"do": "open", "url": url}));
    }

    /// The value of a JavaScript expression; a promise is waited for.
    pub fn eval(&mut self, js: &str) -> Value {
        self.tell(&json!({"do": "eval", "js": js}))
    }

    /// Waits until an expression is true; it is looked at with each picture the browser draws.
    pub fn until(&mut self, js: &str) {
        let limit = PATIENCE.as_millis();
        let seen = self.eval(&format!(
            "new Promise((done) => {{ const end = Date.now() + {limit}; \
             const look = () => ({js}) ? done(true) : Date.now() > end ? done(false) : setTimeout(look, 20); look(); }})"
        ));
        if seen != true {
            let page = self.seen();
            panic!("never: {js}\n{page}");
        }
    }

    /// Waits until such an element is seen.
    pub fn wait(&mut self, selector: &str) {
        self.tell(&json!({"do": "wait", "selector": selector}));
    }

    /// Waits until no such element is seen.
    pub fn wait_gone(&mut self, selector: &str) {
        self.tell(&json!({"do": "wait", "selector": selector, "state": "hidden"}));
    }

    pub fn text(&mut self, selector: &str) -> String {
        self.tell(&json!({"do": "text", "selector": selector})).as_str().unwrap_or_default().to_owned()
    }

    pub fn click(&mut self, selector: &str) {
        self.tell(&json!({"do": "click", "selector": selector}));
    }

    pub fn click_at(&mut self, selector: &str, x: u32, y: u32) {
        self.tell(&json!({"do": "click", "selector": selector, "x": x, "y": y}));
    }

    pub fn press(&mut self, key: &str) {
        self.tell(&json!({"do": "press", "key": key}));
    }

    /// A key of any keyboard: its character, and the name of the place where the American one has another
    /// (`KeyboardEvent.code`).
    pub fn key(&mut self, character: &str, code: &str) {
        self.tell(&json!({"do": "key", "key": character, "code": code}));
    }

    pub fn type_text(&mut self, text: &str) {
        self.tell(&json!({"do": "type", "text": text}));
    }

    pub fn viewport(&mut self, width: u32, height: u32) {
        self.tell(&json!({"do": "viewport", "width": width, "height": height}));
    }

    /// Requests to `origin` are answered with these files.
    pub fn portal(&mut self, origin: &str, files: &[(&str, &Path)]) {
        let files: serde_json::Map<String, Value> =
            files.iter().map(|(at, file)| ((*at).to_owned(), json!(file))).collect();
        self.tell(&json!({"do": "portal", "origin": origin, "files": files}));
    }

    /// A picture of the page, kept where `MKSGATE_SCREENSHOTS` names a folder.
    pub fn screenshot(&mut self, name: &str) {
        if let Some(folder) = std::env::var_os("MKSGATE_SCREENSHOTS") {
            let path = Path::new(&folder).join(format!("{name}.png"));
            self.tell(&json!({"do": "screenshot", "path": path}));
        }
    }

    /// The pixels of the first canvas, as the machine sent them, into a PNG file.
    pub fn canvas(&mut self, into: &Path) {
        let url = self.eval("document.querySelector('canvas').toDataURL('image/png')");
        let base64 = url.as_str().unwrap().strip_prefix("data:image/png;base64,").unwrap();
        let png = base64::engine::general_purpose::STANDARD.decode(base64).unwrap();
        std::fs::write(into, png).unwrap();
    }

    /// One pixel of the first canvas, `0x00RRGGBB`.
    pub fn pixel(x: u32, y: u32) -> String {
        format!(
            "(() => {{ const c = document.querySelector('canvas'); if (!c) return -1; \
             const d = c.getContext('2d').getImageData({x}, {y}, 1, 1).data; return d[0] << 16 | d[1] << 8 | d[2]; }})()"
        )
    }

    /// Everything the pages did.
    pub fn log(&mut self) -> Value {
        self.tell(&json!({"do": "log"}))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The end of its input ends the driver, and with it the browser. A driver that hangs is killed, and its browser
        // with it, since that hangs on a pipe of the driver's.
        drop(self.commands.take());
        for _ in 0..100 {
            if !matches!(self.node.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.node.kill();
        let _ = self.node.wait();
    }
}
