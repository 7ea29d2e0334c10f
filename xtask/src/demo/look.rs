//! `--check`: opens the console through the viewer's port, types, and reads what the appliance says about it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::rfb::Viewer;
use super::{Demo, READY, VM, binary, start_connect};
use crate::sh::command;

/// Opens one console through each door.
pub fn check(demo: &Demo, qemu: bool) -> Result<()> {
    println!("\nTCP 902's way, {}:", demo.authd);
    console(demo, demo.viewer, qemu)?;
    println!("\nTLS 443's way, {}:", demo.tls);
    let (_connect, viewer) = start_connect(&demo.files, "mks", demo.tls, &demo.ticket, super::free(5901)?)?;
    console(demo, viewer, qemu)?;

    let browser = browser(demo)?;
    let records = if browser { 6 } else { 4 };
    wait("every console in the audit trail", || Ok(audit(demo)?.len() >= records))?;
    println!("\naudit trail:");
    for line in audit(demo)? {
        println!("  {line}");
    }
    println!("\nOK");
    Ok(())
}

/// The console page, and the console as the page opens it; false where this build has no page.
fn browser(demo: &Demo) -> Result<bool> {
    println!("\nA browser's way, {}:", demo.browser());
    if !super::page_is_there() {
        return Ok(false);
    }
    let mut look = command("node");
    look.args(["--input-type=module", "--eval", include_str!("page.mjs"), "--"]);
    look.args([demo.tls.ip().to_string(), demo.tls.port().to_string(), demo.ticket.clone()]);
    let seen = look.output().context("cannot run node")?;
    print!("{}", String::from_utf8_lossy(&seen.stdout));
    if !seen.status.success() {
        bail!("the console page: {}", String::from_utf8_lossy(&seen.stderr).trim());
    }
    wait("the console closed", || Ok(metric(demo, "mksgate_sessions", "tenant=\"demo\"")? < 1.0))?;
    println!("  closed");
    Ok(true)
}

fn console(demo: &Demo, addr: SocketAddr, qemu: bool) -> Result<()> {
    let mut viewer = Viewer::open(addr).with_context(|| format!("the console of {VM} did not open"))?;
    println!("  ServerInit: {} x {}, {:?}", viewer.width, viewer.height, viewer.name);
    let pixels = viewer.update(false)?;
    if qemu {
        bios(&mut viewer)?;
    } else {
        desktop(&mut viewer, pixels)?;
    }
    let open = metric(demo, "mksgate_sessions", "tenant=\"demo\"")?;
    println!("  /metrics: {open} console open for tenant demo");
    if open < 1.0 {
        bail!("the console is not counted");
    }
    sessions(demo)?;
    sockets(demo);
    drop(viewer);
    wait("the console closed", || Ok(metric(demo, "mksgate_sessions", "tenant=\"demo\"")? < open))?;
    println!("  closed");
    Ok(())
}

/// The built-in desktop moves, and shows the last key as a colour at (8, 8).
fn desktop(viewer: &mut Viewer, pixels: usize) -> Result<()> {
    println!("  the whole screen: {pixels} pixels, {} colours", viewer.colours());
    if pixels != usize::from(viewer.width) * usize::from(viewer.height) || viewer.colours() < 3 {
        bail!("that is not the desktop");
    }
    let moved = viewer.update(true)?;
    println!("  it moves: {moved} pixels changed");
    let key = u32::from(b'k');
    viewer.key(key)?;
    wait("the key on the screen", || {
        viewer.update(true)?;
        Ok(viewer.pixel(12, 12) == key)
    })?;
    println!("  a key was typed and is seen on the screen");
    Ok(())
}

/// The BIOS writes its messages within seconds.
fn bios(viewer: &mut Viewer) -> Result<()> {
    let start = Instant::now();
    while viewer.colours() < 2 {
        if start.elapsed() > READY {
            bail!("the machine's screen stays blank");
        }
        sleep(Duration::from_millis(200));
        viewer.update(false)?;
    }
    println!("  QEMU's screen: {} colours", viewer.colours());
    Ok(())
}

/// What the appliance says of its live consoles.
fn sessions(demo: &Demo) -> Result<()> {
    let mut list = Command::new(binary("mksgate"));
    let list = list.args(["sessions", "list", "--socket"]).arg(demo.files.path("admin.sock")).output()?;
    if !list.status.success() {
        bail!("mksgate sessions list: {}", String::from_utf8_lossy(&list.stderr).trim());
    }
    println!("  mksgate sessions list:");
    for line in String::from_utf8_lossy(&list.stdout).lines() {
        println!("    {}", line.trim_end());
    }
    Ok(())
}

/// What `ss` shows of the console.
fn sockets(demo: &Demo) {
    let Ok(output) = command("ss").args(["-Htenp", "state", "established"]).output() else { return };
    let mine = format!("pid={},", demo.gate.pid());
    for line in String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.contains(&mine)) {
        println!("  ss -tenp: {}", line.split_whitespace().collect::<Vec<_>>().join(" "));
    }
}

fn audit(demo: &Demo) -> Result<Vec<String>> {
    Ok(fs::read_to_string(demo.files.path("audit.jsonl"))?.lines().map(str::to_owned).collect())
}

/// Sum of the samples of a metric whose labels hold `label`.
fn metric(demo: &Demo, name: &str, label: &str) -> Result<f64> {
    let mut tcp = TcpStream::connect(demo.metrics)?;
    tcp.set_read_timeout(Some(READY))?;
    tcp.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    tcp.read_to_string(&mut text)?;
    let start = format!("{name}{{");
    let samples = text.lines().filter(|line| line.starts_with(&start) && line.contains(label));
    let values: Vec<f64> = samples.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
    if values.is_empty() {
        bail!("/metrics has no {name} with {label}");
    }
    Ok(values.iter().sum())
}

fn wait(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !done()? {
        if start.elapsed() > READY {
            bail!("not within {READY:?}: {what}");
        }
        sleep(Duration::from_millis(20));
    }
    Ok(())
}
