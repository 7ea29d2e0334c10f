//! A person in front of the console page: chromium, the real binary, the simulated host, a machine that QEMU boots.

mod browser;
mod machine;
mod support;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Instant;

use browser::Browser;
use machine::{Machine, Tools};
use mksgate::ticket::TargetKind;
use mksgate::tls::Thumbprint;
use mksgate_bench::sim::{Desktop, Esxi, EsxiConfig, Screen, Ticket, Vm};
use nix::sys::signal::Signal;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use support::{Appliance, HOST_TICKET, PATIENCE, Setup, VM};

const OPEN: &str = "#state[data-state=open]";
const ENDED: &str = "#state[data-state=ended]";

fn host(screen: Screen) -> Esxi {
    Esxi::start(EsxiConfig::default().vm(Vm::new(VM, screen)).ticket(Ticket::new(HOST_TICKET, VM))).unwrap()
}

fn page(gate: &Appliance) -> String {
    format!("https://{}/console/", gate.tls)
}

/// The page's address as a portal hands it out.
fn link(gate: &Appliance, ticket: &str) -> String {
    format!("{}#ticket={ticket}", page(gate))
}

/// Waits for what the test cannot be woken by.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < 3 * PATIENCE, "never: {what}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn a_person_sees_and_uses_a_real_machines_console() {
    let Some(tools) = Tools::find() else { return };
    let Some(mut browser) = Browser::start() else { return };
    let gate = Setup::new().start();
    let machine = Machine::boot_echoing(gate.dir.path());
    let host = host(Screen::vnc(machine.vnc));
    let screen = machine.until_screen(|screen| screen.contains("ready"));
    assert!(screen.contains("SeaBIOS"), "{screen}");

    let ticket = gate.ticket(&host);
    browser.open(&link(&gate, &ticket));
    browser.wait(OPEN);
    same_picture(&mut browser, &tools, &machine, gate.dir.path(), "the BIOS' screen");
    browser.screenshot("bios");

    browser.press("Shift+H");
    browser.type_text("ello, mks.");
    machine.until_screen(|screen| screen.contains("Hello, mks."));
    browser.click_at("canvas", 300, 200);
    machine.until_screen(|screen| screen.lines().next().unwrap().ends_with("BM"));
    same_picture(&mut browser, &tools, &machine, gate.dir.path(), "what was typed");
    browser.screenshot("typed");

    browser.click("#cad");
    machine.until_screen(|screen| screen.contains("ready") && !screen.contains("Hello"));
    same_picture(&mut browser, &tools, &machine, gate.dir.path(), "after Ctrl+Alt+Del");
    browser.press("x");
    machine.until_screen(|screen| screen.ends_with('x') || screen.contains("\nx"));

    strict(&mut browser, &gate, &ticket);
}

#[test]
fn machines_behind_webmks_and_behind_a_vnc_password_are_seen_and_used_too() {
    let Some(tools) = Tools::find() else { return };
    let Some(mut browser) = Browser::start() else { return };
    let gate = Setup::new().start();

    // ESXi's WebMKS, played by a library of another make.
    let machine = Machine::boot_echoing(gate.dir.path());
    let (certificate, key) = (gate.dir.path().join("cert.pem"), gate.dir.path().join("key.pem"));
    let host = WebMks::start(&tools, &certificate, &key, machine.vnc);
    let mut claims = support::claims(host.address, &thumbprint(&certificate));
    claims.target.kind = TargetKind::EsxiWebmks;
    machine.until_screen(|screen| screen.contains("ready"));
    browser.open(&link(&gate, &gate.keys.seal(&claims).unwrap()));
    browser.wait(OPEN);
    same_picture(&mut browser, &tools, &machine, gate.dir.path(), "through WebMKS");
    browser.type_text("through webmks");
    machine.until_screen(|screen| screen.contains("through webmks"));
    drop((machine, host));
    browser.wait("#state:not([data-state=open])");

    // A VNC server whose password the browser never learns.
    let dir = gate.dir.path().join("vnc");
    std::fs::create_dir(&dir).unwrap();
    let machine = Machine::boot_with_password(&dir, "s3cret!");
    let mut claims = support::claims(machine.vnc, "");
    claims.target.kind = TargetKind::Vnc;
    claims.target.ticket = Some("s3cret!".into());
    claims.target.thumbprints.clear();
    machine.until_screen(|screen| screen.contains("ready"));
    browser.open("about:blank");
    browser.open(&link(&gate, &gate.keys.seal(&claims).unwrap()));
    browser.wait(OPEN);
    let (direct, seen) = (dir.join("direct.png"), dir.join("browser.png"));
    tools.capture_with(machine.vnc, &["-p", "s3cret!"], &direct).unwrap();
    until("the same picture behind a password", || {
        browser.canvas(&seen);
        tools.differing_pixels(&direct, &seen) == "0"
    });
    browser.type_text("vnc");
    machine.until_screen(|screen| screen.contains("vnc"));
}

/// A running `web/webmks.py`.
struct WebMks {
    child: Child,
    address: SocketAddr,
}

impl WebMks {
    fn start(tools: &Tools, certificate: &Path, key: &Path, vnc: SocketAddr) -> Self {
        let mut command = tools.command();
        command.arg(browser::folder().join("webmks.py")).args([certificate, key]);
        command.args([HOST_TICKET, &vnc.port().to_string()]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().parse().unwrap_or_else(|_| panic!("no port in {line:?}"));
        Self { child, address: ([127, 0, 0, 1], port).into() }
    }
}

impl Drop for WebMks {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn thumbprint(certificate: &Path) -> String {
    let pem = std::fs::read(certificate).unwrap();
    Thumbprint::sha256(&CertificateDer::from_pem_slice(&pem).unwrap()).to_string()
}

/// The canvas comes to hold exactly what a VNC viewer of another make gets from the machine itself.
fn same_picture(browser: &mut Browser, tools: &Tools, machine: &Machine, dir: &Path, what: &str) {
    let (direct, seen) = (dir.join("direct.png"), dir.join("browser.png"));
    until(what, || {
        tools.capture(machine.vnc, &direct).is_ok() && tools.colours(&direct) >= 2 && {
            browser.canvas(&seen);
            tools.differing_pixels(&direct, &seen) == "0"
        }
    });
}

/// Nothing was asked of anybody else, nothing is kept by caches, no policy was broken, the ticket stands in no address that
/// is logged or shown.
fn strict(browser: &mut Browser, gate: &Appliance, ticket: &str) {
    let log = browser.log();
    let own = page(gate);
    let list = |what: &str| log[what].as_array().unwrap().clone();
    let urls: Vec<String> =
        list("requests").iter().map(|request| request["url"].as_str().unwrap().to_owned()).collect();
    assert!(urls.len() > 20, "noVNC is many files: {urls:?}");
    for url in &urls {
        assert!(url.starts_with(&own) && !url.contains('?'), "{url}");
        assert!(!url.contains(ticket), "{url}");
    }
    for response in list("responses") {
        let headers = &response["headers"];
        assert_eq!(response["status"], 200, "{response}");
        assert_eq!(headers["cache-control"], "no-store", "{response}");
        let policy = headers["content-security-policy"].as_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{policy}");
        assert!(!policy.contains("unsafe") && policy.contains("frame-ancestors 'self'"), "{policy}");
    }
    let sockets = list("sockets");
    assert_eq!(sockets.len(), 1, "{sockets:?}");
    assert_eq!(sockets[0]["url"], format!("wss://{}/ticket/{ticket}", gate.tls));
    assert_eq!(browser.eval("location.href"), own);
    let bad: Vec<_> = list("console").into_iter().filter(|m| m["type"] == "error").collect();
    assert!(bad.is_empty() && list("errors").is_empty(), "{bad:?} {:?}", list("errors"));
}

#[test]
fn everything_works_with_the_keyboard_alone() {
    let Some(mut browser) = Browser::start() else { return };
    let (gate, desktop) = (Setup::new().start(), Desktop::still());
    let host = host(Screen::Desktop(desktop.clone()));
    browser.open(&link(&gate, &gate.ticket(&host)));
    browser.wait(OPEN);
    browser.until("document.activeElement.tagName == 'CANVAS'");
    browser.press("k");
    browser.press("Tab");
    until("k and Tab reach the machine", || desktop.keys().ends_with(&[0x6b, 0xff09]));
    browser.until(&format!("{} == {}", Browser::pixel(12, 12), Desktop::key_colour(0xff09)));

    browser.press("Control+Alt+Shift+B");
    browser.until("document.activeElement.id == 'cad'");
    browser.press("Enter");
    until("Ctrl+Alt+Del", || desktop.keys().ends_with(&[0xffe3, 0xffe9, 0xffff]));
    browser.until("document.activeElement.tagName == 'CANVAS'");

    browser.press("Control+Alt+Shift+B");
    browser.until("document.activeElement.id == 'cad'");
    browser.press("Tab");
    browser.press("Space");
    browser.wait("#scale[aria-pressed=false]");
    browser.press("Space");
    browser.wait("#scale[aria-pressed=true]");
    browser.press("Tab");
    browser.press("Enter");
    browser.wait("#clipboard-dialog[open]");
    browser.until("document.activeElement.id == 'clipboard-text'");
    browser.type_text("for the machine");
    browser.screenshot("clipboard");
    browser.press("Tab");
    browser.press("Tab");
    browser.press("Enter");
    until("the clipboard", || desktop.clipboard() == b"for the machine");
    browser.wait_gone("#clipboard-dialog");
    browser.until("document.activeElement.tagName == 'CANVAS'");

    browser.press("Control+Alt+Shift+B");
    browser.until("document.activeElement.id == 'cad'");
    for _ in 0..4 {
        browser.press("Tab");
    }
    browser.press("Enter");
    browser.wait("#help-dialog[open]");
    browser.screenshot("keys");
    browser.press("Escape");
    browser.wait_gone("#help-dialog");
    browser.until("document.activeElement.tagName == 'CANVAS'");
    browser.press("z");
    until("the machine has the keys again", || desktop.keys().ends_with(&[0x7a]));

    browser.press("Control+Alt+Shift+B");
    browser.until("document.activeElement.id == 'cad'");
    browser.press("Control+Alt+Shift+B");
    browser.until("document.activeElement.tagName == 'CANVAS'");
    browser.press("Control+Alt+Shift+B");
    browser.until("document.activeElement.id == 'cad'");
    for _ in 0..5 {
        browser.press("Tab");
    }
    browser.until("document.activeElement.id == 'disconnect'");
    browser.press("Enter");
    browser.wait(ENDED);
    browser.until("document.activeElement.id == 'again'");
    browser.screenshot("closed");
    browser.press("Enter");
    browser.wait(OPEN);
}

/// Width and height of the canvas as it is drawn, of the window's place for it, and as the machine sent it.
const SIZES: &str = "(() => { const c = document.querySelector('#screen canvas'), s = document.querySelector('#screen'); \
     const r = c.getBoundingClientRect(), p = s.getBoundingClientRect(); \
     return [r.width, r.height, p.width, p.height, c.width, c.height].map(Math.round); })()";

fn sizes(browser: &mut Browser) -> Vec<u64> {
    browser.eval(SIZES).as_array().unwrap().iter().map(|size| size.as_u64().unwrap()).collect()
}

/// From the machine's screen to a button of the bar, by keys.
fn to_button(browser: &mut Browser, id: &str, tabs: usize) {
    browser.press("Control+Alt+Shift+B");
    browser.until("document.activeElement.id == 'cad'");
    for _ in 0..tabs {
        browser.press("Tab");
    }
    browser.until(&format!("document.activeElement.id == '{id}'"));
}

#[test]
fn the_whole_screen_is_used_and_given_back_by_mouse_and_by_keys() {
    let Some(mut browser) = Browser::start() else { return };
    let (gate, desktop) = (Setup::new().start(), Desktop::still());
    let host = host(Screen::Desktop(desktop.clone()));
    browser.open(&link(&gate, &gate.ticket(&host)));
    browser.wait(OPEN);
    let full = "document.fullscreenElement === document.documentElement";
    let keys = "document.activeElement.tagName == 'CANVAS'";
    browser.click("#fullscreen");
    browser.until(full);
    browser.wait("#fullscreen[aria-pressed=true]");
    browser.until(keys);
    browser.press("f");
    until("keys reach the machine on the whole screen", || desktop.keys().ends_with(&[0x66]));
    browser.click("#fullscreen");
    browser.until("!document.fullscreenElement");
    browser.wait("#fullscreen[aria-pressed=false]");
    for (now, pressed) in [(full, "true"), ("!document.fullscreenElement", "false")] {
        to_button(&mut browser, "fullscreen", 3);
        browser.press("Enter");
        browser.until(now);
        browser.wait(&format!("#fullscreen[aria-pressed={pressed}]"));
        browser.until(keys);
    }
    browser.press("w");
    until("keys reach the machine in the window", || desktop.keys().ends_with(&[0x77]));
    assert!(!desktop.keys().contains(&0xff0d), "the button's Enter is not the machine's");
    assert_eq!(browser.log()["errors"], serde_json::json!([]));
}

#[test]
fn the_screen_fits_the_window_or_has_its_own_size() {
    let Some(mut browser) = Browser::start() else { return };
    let (gate, desktop) = (Setup::new().start(), Desktop::still());
    let host = host(Screen::Desktop(desktop.clone()));
    browser.viewport(500, 400);
    browser.open(&link(&gate, &gate.ticket(&host)));
    browser.wait(OPEN);
    let fits = format!(
        "(([w, h, pw, ph, cw, ch]) => (w === pw || h === ph) && w <= pw && h <= ph && w < cw && Math.abs(w / h - cw / ch) < 0.02)({SIZES})"
    );
    let grown = format!("(([w, h, pw, ph]) => (w === pw || h === ph) && w <= pw && h <= ph)({SIZES})");
    browser.until(&fits);
    let [w, h, .., own_w, own_h] = sizes(&mut browser)[..] else { panic!("six sizes") };
    // The pointer goes where it is seen: scaled back to the machine's own pixels.
    browser.click_at("#screen canvas", (w / 2) as u32, (h / 2) as u32);
    until("the pointer in the middle", || {
        desktop.pointer().is_some_and(|(x, y, _)| {
            u64::from(x).abs_diff(own_w / 2) <= 3 && u64::from(y).abs_diff(own_h / 2) <= 3
        })
    });
    browser.click("#scale");
    browser.wait("#scale[aria-pressed=false]");
    // One of the machine's pixels is one of the window's, and what has no room is reached by scrolling.
    browser.until(&format!("(([w, h, pw, ph, cw, ch]) => w === cw && h === ch && w > pw)({SIZES})"));
    assert_eq!(sizes(&mut browser)[4..], [own_w, own_h]);
    for (x, y) in [(40, 50), (own_w - 9, own_h - 9), (40, own_h - 9)] {
        browser.click_at("#screen canvas", x as u32, y as u32);
        until("the pointer pixel for pixel", || {
            desktop
                .pointer()
                .is_some_and(|at| u64::from(at.0).abs_diff(x) <= 1 && u64::from(at.1).abs_diff(y) <= 1)
        });
    }
    browser.click("#scale");
    browser.wait("#scale[aria-pressed=true]");
    browser.until(&fits);
    // A window that changes its size takes the screen with it.
    browser.viewport(1400, 1100);
    browser.until(&grown);
}

#[test]
fn text_goes_to_and_from_the_machine_and_keys_of_other_keyboards_are_what_they_say() {
    let Some(mut browser) = Browser::start() else { return };
    let (gate, desktop) = (Setup::new().start(), Desktop::still());
    let host = host(Screen::Desktop(desktop.clone()));
    browser.open(&link(&gate, &gate.ticket(&host)));
    browser.wait(OPEN);
    desktop.copy(b"copied there: \xe9\xfc");
    browser.until("document.querySelector('#clipboard-text').value === 'copied there: éü'");
    browser.click("#clipboard");
    browser.wait("#clipboard-dialog[open]");
    browser.eval("document.querySelector('#clipboard-text').value = 'a\\nß€'; null");
    browser.click("#clipboard-send");
    browser.wait_gone("#clipboard-dialog");
    // A server that does not know the extended clipboard gets Latin-1, in which there is no euro.
    until("the text", || desktop.clipboard().starts_with(b"a\n\xdf"));

    browser.click("#clipboard");
    browser.wait("#clipboard-dialog[open]");
    browser.eval("document.querySelector('#clipboard-text').value = 'Q\\nß€'; null");
    browser.click("#clipboard-type");
    browser.wait_gone("#clipboard-dialog");
    until("the text as keys", || desktop.keys().ends_with(&[0x51, 0xff0d, 0xdf, 0x0100_20ac]));

    browser.until("document.activeElement.tagName == 'CANVAS'");
    for (character, code, keysym) in [
        ("ä", "Quote", 0xe4),
        ("z", "KeyY", 0x7a),
        ("é", "Digit2", 0xe9),
        ("€", "KeyE", 0x20ac),
        ("я", "KeyZ", 0x06d1),
    ] {
        browser.key(character, code);
        until(character, || desktop.keys().last() == Some(&keysym));
    }
    assert_eq!(browser.log()["errors"], serde_json::json!([]));
}

#[test]
fn the_console_comes_back_by_itself_when_the_proxy_does() {
    let Some(mut browser) = Browser::start() else { return };
    let setup = Setup::new()
        .with("[tickets]\nkeys = \"keys\"\nfirst_use_seconds = 10\n[deadlines]\ndrain_seconds = 0.1");
    let (mut gate, desktop) = (setup.start(), Desktop::still());
    let host = host(Screen::Desktop(desktop.clone()));
    browser.open(&link(&gate, &gate.ticket(&host)));
    browser.wait(OPEN);
    // By now it is too old for a first use: the processes to come know of that one.
    let opened = support::now();
    until("two seconds for the portal's clock", || support::now() > opened + 12);

    // What the page says, kept: the next attempt says something else within half a second.
    browser.eval(
        "window.said = []; new MutationObserver(() => said.push(document.querySelector('#notice-text').textContent)) \
         .observe(document.querySelector('#notice-text'), { childList: true }); null",
    );
    gate.restart(&[Signal::SIGTERM], || {
        browser.until("said.some((text) => text.startsWith('The console proxy is being restarted.'))");
        browser.screenshot("restarting");
    });
    browser.wait(OPEN);
    browser.wait_gone("#notice");
    browser.press("r");
    until("a key after the restart", || desktop.keys().ends_with(&[0x72]));

    gate.restart(&[Signal::SIGKILL], || browser.wait("#state[data-state=waiting]"));
    browser.wait(OPEN);
    browser.press("c");
    until("a key after the crash", || desktop.keys().ends_with(&[0x63]));
}

#[test]
fn the_page_says_in_words_why_there_is_no_console() {
    let Some(mut browser) = Browser::start() else { return };
    let (gate, desktop) = (Setup::new().start(), Desktop::still());
    let host = host(Screen::Desktop(desktop));
    browser.open(&page(&gate));
    browser.wait("#notice");
    assert_eq!(browser.text("#notice-title"), "No ticket");
    browser.screenshot("no-ticket");
    // Only from the fragment: what stands in a query is in logs already, and nothing is done with it.
    browser.open(&format!("{}?ticket={}", page(&gate), gate.ticket(&host)));
    browser.wait("#notice");
    assert_eq!(browser.text("#notice-title"), "No ticket");
    assert_eq!(browser.log()["sockets"], serde_json::json!([]));

    let ticket = gate.ticket(&host);
    browser.open(&link(&gate, &ticket));
    browser.wait(OPEN);
    let sessions = gate.command(&["sessions", "list", "--json"]);
    let sessions: serde_json::Value = serde_json::from_slice(&sessions.stdout).unwrap();
    let closed = gate.command(&["sessions", "close", &sessions["sessions"][0]["id"].to_string()]);
    assert!(closed.status.success());
    browser.wait(ENDED);
    assert_eq!(browser.text("#notice-title"), "The console has ended");
    assert_eq!(browser.text("#notice-text"), "An operator closed this console.");
    browser.screenshot("operator");
    assert_eq!(browser.log()["sockets"].as_array().unwrap().len(), 1, "it does not come back by itself");
    browser.click("#again");
    browser.wait(OPEN);

    let revoked = gate.command(&["ticket", "revoke", "--tenant", "acme"]);
    assert!(revoked.status.success());
    browser.wait(ENDED);
    assert_eq!(browser.text("#notice-text"), "The ticket of this console was revoked.");
    browser.click("#again");
    browser.wait("#notice");
    browser.until("document.querySelector('#notice-title').textContent == 'No console'");
    assert!(browser.text("#notice-text").starts_with("This ticket opens no console"));
    browser.screenshot("refused");
    let errors = browser.log()["errors"].clone();
    assert_eq!(errors, serde_json::json!([]));
}
