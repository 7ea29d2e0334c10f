//! The gate over an upgrade of the real binary: its counters go on, another program has the place, the limit holds throughout.

#[path = "xdp_support/site.rs"]
mod site;
mod support;
mod xdp_support;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use site::{Refusal, Site, echoes, setup};
use xdp_support::wire::{client4, until};

const XDP: &str =
    "enabled = \"required\"\non_limit = \"reset\"\nsource_per_second = 0\nshared_per_second = 0";
const ACME: &str =
    "[tenants.acme]\nmax_sessions = 1\nsources = [\"10.77.1.0/24\"]\ntargets = [\"127.0.0.0/8\"]\n";

/// The process in charge, ended with the test: it is nobody's child.
struct Heir(Pid);

impl Drop for Heir {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
    }
}

fn says(site: &Site, args: &[&str]) -> String {
    let output = site.appliance.command(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Shed in the kernel, sooner or later; never let in.
fn is_full(site: &Site, what: &str, ticket: &str) -> u64 {
    until(what, || match site.open(client4(1, 1), ticket) {
        Err(Refusal::Reset) => Some(site.syns("acme", "tenant_full")),
        Err(Refusal::Told(_)) => None,
        Ok(_) => panic!("more than the limit"),
    })
}

fn known(site: &Site) -> u64 {
    site.status()["gate"]["known_sources"].as_u64().unwrap()
}

#[test]
fn counters_limit_and_consoles_go_on_over_an_upgrade_and_the_program_is_the_new_ones() {
    let Some(site) = Site::start(setup(XDP, ACME)) else { return };
    let ticket = site.appliance.ticket(&site.host);
    let mut console = site.open(client4(1, 1), &ticket).unwrap();
    let shed = is_full(&site, "the gate knows", &ticket);
    let (passed, program) = (site.syns("acme", "pass"), site.status()["gate"]["program"].clone());
    assert!(passed > 0 && program.is_u64(), "{}", site.status());
    until("the source is known by its ticket", || (known(&site) == 1).then_some(()));

    says(&site, &["upgrade"]);
    let status: Value = serde_json::from_str(&says(&site, &["status", "--json"])).unwrap();
    let _heir = Heir(Pid::from_raw(status["pid"].as_i64().unwrap() as i32));
    echoes(&mut console);
    assert!(
        site.syns("acme", "tenant_full") >= shed && site.syns("acme", "pass") >= passed,
        "counters go on"
    );
    until("the new gate knows the source", || (known(&site) == 1).then_some(()));
    let gate = site.status();
    assert_ne!(gate["gate"]["program"], program, "the link has the new process's program");
    assert!(gate["gate"]["interfaces"].as_array().unwrap().iter().all(|i| i["mode"] != "off"), "{gate}");
    assert!(is_full(&site, "the new gate knows", &ticket) > shed);
    drop(console);
    echoes(&mut site.open_soon("there is room again", &ticket));
}
