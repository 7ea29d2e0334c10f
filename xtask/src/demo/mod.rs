//! One whole console on this machine: a simulated ESXi host, the appliance, a ticket, and what to paste to see it.

mod files;
mod look;
mod part;
mod rfb;
mod signals;

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use self::files::Files;
use self::part::Part;
use self::signals::Signals;
use crate::setup::{self, Job};
use crate::sh::{cargo, command, find, root, run as run_command, target};

/// How long a part may take to be ready.
const READY: Duration = Duration::from_secs(30);
/// What the ticket calls the machine.
const VM: &str = "vm-61";
/// What the host calls it.
const CFG_FILE: &str = "[datastore1] demo/demo.vmx";
/// The host's own ticket.
const HOST_TICKET: &str = "52c1a7d4-demo";

/// `cargo xtask demo`
#[derive(clap::Args)]
pub struct Args {
    /// Open one console by itself, print what it saw, and end: 0 if all of it was right.
    #[arg(long)]
    check: bool,
    /// Show a machine that QEMU boots instead of the built-in desktop.
    #[arg(long)]
    qemu: bool,
    /// End by itself after so many seconds.
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
}

/// Runs it.
pub fn run(args: &Args) -> Result<()> {
    if args.qemu {
        setup::all(Some(Job::DemoQemu))?;
    }
    // The console page wants Node.js; all else of the demo works without.
    if let Err(error) = setup::all(Some(Job::Build)) {
        eprintln!("{error:#}\n\nGoing on without: there will be no console page for browsers.");
    }
    run_command(
        cargo()
            .args(["build", "--locked", "-p", "mksgate", "-p", "mksgate-bench"])
            .args(["--bin", "mksgate", "--bin", "sim"]),
    )?;
    let signals = Signals::block()?;
    let demo = Demo::start(args.qemu)?;
    demo.tell();
    if args.check {
        return look::check(&demo, args.qemu);
    }
    println!("\nEnds with Ctrl-C.");
    demo.watch(&signals, args.seconds.map(Duration::from_secs))
}

/// Everything that runs; dropped in this order: the viewer's side first.
struct Demo {
    connect: Part,
    viewer: SocketAddr,
    gate: Part,
    tls: SocketAddr,
    authd: SocketAddr,
    metrics: SocketAddr,
    ticket: String,
    sim: Part,
    qemu: Option<Part>,
    files: Files,
}

impl Demo {
    fn start(with_qemu: bool) -> Result<Self> {
        let files = Files::new()?;
        let (qemu, screen) = if with_qemu {
            let (part, addr) = start_qemu(&files)?;
            (Some(part), format!("vnc={addr}"))
        } else {
            (None, "desktop".to_owned())
        };
        let (sim, host) = start_sim(&files, &screen)?;
        let (tls, authd, metrics) = (free(8443)?, free(9902)?, free(9464)?);
        files.config(tls, authd, metrics)?;
        let gate = start_gate(&files)?;
        let ticket = seal(&files, &host)?;
        let (connect, viewer) = start_connect(&files, "authd", authd, &ticket, free(5900)?)?;
        Ok(Self { connect, viewer, gate, tls, authd, metrics, ticket, sim, qemu, files })
    }

    fn tell(&self) {
        let mksgate = shown(&binary("mksgate"));
        let thumbprint = &self.files.thumbprint;
        println!(
            "
A console of {VM} is waiting. Open this in a browser, which asks once about the demo's own certificate:

  {browser}

Or paste one of these into another terminal:

  a VNC viewer           vncviewer {viewer_host}::{viewer_port}
  another, through 902   {mksgate} connect --door authd --listen 127.0.0.1:0 --thumbprint {thumbprint} \\
                           'mks://{authd}/{VM}?ticket=TICKET'
  another, through 443   {mksgate} connect --door mks --listen 127.0.0.1:0 --thumbprint {thumbprint} \\
                           'mks://{tls}/{VM}?ticket=TICKET'
  live consoles          {mksgate} sessions list --socket {socket}
  metrics                curl -s http://{metrics}/metrics
  sockets                ss -tenp | grep mksgate

  TICKET                 {ticket}

  files                  {dir}: mksgate.toml, audit.jsonl, logs of each part",
            browser = self.browser(),
            viewer_host = self.viewer.ip(),
            viewer_port = self.viewer.port(),
            authd = self.authd,
            tls = self.tls,
            metrics = self.metrics,
            ticket = self.ticket,
            socket = shown(&self.files.path("admin.sock")),
            dir = shown(self.files.dir()),
        );
        if find("vncviewer").is_none() {
            println!("\nNo VNC viewer is installed; `apt-get install tigervnc-viewer` brings one.");
        }
    }

    /// The console page's address; the ticket is behind the `#`, which browsers send to no server.
    fn browser(&self) -> String {
        match page_is_there() {
            true => format!("https://{}/console/#ticket={}", self.tls, self.ticket),
            false => "(this build has no console page: it was made without Node.js and npm)".to_owned(),
        }
    }

    /// Until a signal, the end of the time, or the end of a part.
    fn watch(mut self, signals: &Signals, limit: Option<Duration>) -> Result<()> {
        let start = Instant::now();
        while limit.is_none_or(|limit| start.elapsed() < limit) {
            if signals.wait(Duration::from_millis(500))? {
                break;
            }
            let parts = [&mut self.connect, &mut self.gate, &mut self.sim];
            for part in parts.into_iter().chain(self.qemu.as_mut()) {
                part.alive()?;
            }
        }
        Ok(())
    }
}

/// What the simulated host says of itself.
struct Host {
    addr: SocketAddr,
    thumbprint: String,
}

fn start_sim(files: &Files, screen: &str) -> Result<(Part, Host)> {
    let mut sim = Command::new(binary("sim"));
    sim.args(["--vm", CFG_FILE, "--ticket", HOST_TICKET, "--events", "--screen", screen]);
    let mut part = Part::start("simulator", sim.stdout(Stdio::piped()), &files.path("sim.log"))?;
    let ready: serde_json::Value = serde_json::from_str(&part.first_line()?)?;
    let text = |key: &str| ready[key].as_str().with_context(|| format!("simulator printed no {key}"));
    let host = Host { addr: text("addr")?.parse()?, thumbprint: text("thumbprint_sha256")?.to_owned() };
    Ok((part, host))
}

fn start_gate(files: &Files) -> Result<Part> {
    let mut serve = Command::new(binary("mksgate"));
    serve.args(["serve", "--config"]).arg(files.path("mksgate.toml"));
    let mut part = Part::start("mksgate serve", &mut serve, &files.path("mksgate.log"))?;
    part.wait_log("serving", READY)?;
    Ok(part)
}

fn seal(files: &Files, host: &Host) -> Result<String> {
    let sealed = Command::new(binary("mksgate"))
        .args(["ticket", "seal", "--keys"])
        .arg(files.path("keys"))
        .args(["--tenant", "demo", "--user", "you@example", "--vm", VM, "--kind", "esxi-mks"])
        .args(["--host", &host.addr.ip().to_string(), "--port", &host.addr.port().to_string()])
        .args(["--cfg-file", CFG_FILE, "--target-ticket", HOST_TICKET, "--thumbprint", &host.thumbprint])
        .output()?;
    if !sealed.status.success() {
        bail!("mksgate ticket seal: {}", String::from_utf8_lossy(&sealed.stderr));
    }
    Ok(String::from_utf8(sealed.stdout)?.trim().to_owned())
}

/// `mksgate connect` through a door, and where viewers reach it.
fn start_connect(
    files: &Files,
    door: &str,
    gate: SocketAddr,
    ticket: &str,
    listen: SocketAddr,
) -> Result<(Part, SocketAddr)> {
    let mut connect = Command::new(binary("mksgate"));
    connect
        .args(["connect", "--proxy", "none", "--door", door, "--thumbprint", &files.thumbprint])
        .args(["--listen", &listen.to_string()])
        .arg(format!("mks://{gate}/{VM}?ticket={ticket}"))
        .stdout(Stdio::piped());
    let log = files.path(&format!("connect-{door}.log"));
    let mut part = Part::start("mksgate connect", &mut connect, &log)?;
    // "viewers connect to 127.0.0.1::5900 (…)"
    let line = part.first_line()?;
    let viewer = line.split_whitespace().find_map(|word| word.replace("::", ":").parse().ok());
    Ok((part, viewer.with_context(|| format!("mksgate connect said: {line}"))?))
}

fn start_qemu(files: &Files) -> Result<(Part, SocketAddr)> {
    let display = (40..100).find(|n| TcpListener::bind((Ipv4Addr::LOCALHOST, 5900 + n)).is_ok());
    let display = display.context("no free VNC display from :40 to :99")?;
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 5900 + display));
    let mut qemu = command("qemu-system-x86_64");
    qemu.args(["-accel", "tcg", "-m", "64", "-nic", "none", "-display", "none"]).args([
        "-monitor",
        "none",
        "-serial",
        "none",
        "-vnc",
        &format!("127.0.0.1:{display}"),
    ]);
    let mut part = Part::start("QEMU", &mut qemu, &files.path("qemu.log"))?;
    let start = Instant::now();
    while TcpStream::connect(addr).is_err() {
        part.alive()?;
        if start.elapsed() > READY {
            bail!("QEMU opened no VNC server on {addr}");
        }
        sleep(Duration::from_millis(50));
    }
    Ok((part, addr))
}

/// Whether the build just made holds the console page.
fn page_is_there() -> bool {
    root().join("proxy/console/node_modules/@novnc/novnc/core/rfb.js").is_file()
}

/// The wanted port of loopback, or any free one where it is taken.
fn free(wanted: u16) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, wanted))
        .or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
    Ok(listener.local_addr()?)
}

fn binary(name: &str) -> PathBuf {
    target().join("debug").join(name)
}

/// A path as the user would write it here.
fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).display().to_string()
}
