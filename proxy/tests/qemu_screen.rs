//! A real machine's screen is the same picture with and without the appliance: QEMU's BIOS, captured by a VNC client of another make.

mod machine;
mod support;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Stdio};

use machine::{Machine, Tools};
use mksgate_bench::sim::{Esxi, EsxiConfig, Screen, Ticket, Vm};
use support::{Appliance, HOST_TICKET, Setup, VM, mksgate};

#[test]
fn qemus_bios_screen_is_pixel_equal_directly_through_902_and_through_443() {
    let Some(tools) = Tools::find() else { return };
    let gate = Setup::new().start();
    let machine = Machine::boot(gate.dir.path());
    let direct = machine.settle(&tools);
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
