//! Whether this host reaches the hypervisors and vCenters.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::Finding;
use crate::config::{Config, TargetRange};

const CHECK: &str = "reach";
const PATIENCE: Duration = Duration::from_secs(3);
/// What is tried at a host without a port: HTTPS of vCenter and ESXi, authd.
const PORTS: [u16; 2] = [443, 902];
/// Most ports of one target that are tried.
const MOST_PORTS: usize = 8;
/// Most connections in all.
const MOST: usize = 64;

pub(super) fn examine(config: Option<&Config>, hosts: &[String]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut targets = BTreeSet::new();
    let accounts = config.into_iter().flat_map(|config| config.vcenter.accounts.values());
    let vcenters: Vec<String> = accounts.map(|account| named(&account.host, account.port)).collect();
    for host in hosts.iter().chain(&vcenters) {
        match resolve(host) {
            Ok(addresses) => targets.extend(addresses),
            Err(error) => findings.push(Finding::fail(
                CHECK,
                format!("{host}: no address ({error})"),
                "look at the name and at this host's resolver (getent hosts NAME)",
            )),
        }
    }
    let ranges =
        || config.into_iter().flat_map(|config| config.tenants.values()).flat_map(|tenant| &tenant.targets);
    targets.extend(ranges().flat_map(single));
    if targets.is_empty() && findings.is_empty() && config.is_some() {
        let found = "the configuration names ranges only, and those are not scanned";
        findings.push(Finding::ok(CHECK, format!("{found}; try one: mksgate doctor --host ESXI")));
    }
    let tries: Vec<_> = targets
        .into_iter()
        .take(MOST)
        .map(|target| std::thread::spawn(move || (target, attempt(target))))
        .collect();
    findings.extend(
        tries
            .into_iter()
            .filter_map(|thread| thread.join().ok())
            .map(|(target, outcome)| judge(target, &outcome)),
    );
    findings
}

/// `host:port` of a vCenter with an account.
fn named(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn resolve(host: &str) -> io::Result<Vec<SocketAddr>> {
    let first = |mut addresses: std::vec::IntoIter<SocketAddr>| {
        addresses.next().ok_or(io::Error::from(io::ErrorKind::NotFound))
    };
    if let Ok(addresses) = host.to_socket_addrs() {
        return Ok(vec![first(addresses)?]);
    }
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let address = first((bare, 0).to_socket_addrs()?)?;
    Ok(PORTS.map(|port| SocketAddr::new(address.ip(), port)).to_vec())
}

/// The addresses of a target that is one host with few ports.
fn single(target: &TargetRange) -> Vec<SocketAddr> {
    let whole = if target.range.address().is_ipv4() { 32 } else { 128 };
    if target.range.prefix() != whole || target.ports.clone().count() > MOST_PORTS {
        return Vec::new();
    }
    target.ports.clone().map(|port| SocketAddr::new(target.range.address(), port)).collect()
}

/// What a try gave.
struct Outcome {
    connected: io::Result<Duration>,
    /// The first bytes it said unasked.
    greeting: Vec<u8>,
}

fn attempt(target: SocketAddr) -> Outcome {
    let started = Instant::now();
    let mut greeting = vec![0; 64];
    match TcpStream::connect_timeout(&target, PATIENCE) {
        Ok(mut stream) => {
            let took = started.elapsed();
            let heard = match target.port() {
                902 | 903 => stream
                    .set_read_timeout(Some(PATIENCE))
                    .and_then(|()| stream.read(&mut greeting))
                    .unwrap_or(0),
                _ => 0,
            };
            greeting.truncate(heard);
            Outcome { connected: Ok(took), greeting }
        }
        Err(error) => Outcome { connected: Err(error), greeting: Vec::new() },
    }
}

fn judge(target: SocketAddr, outcome: &Outcome) -> Finding {
    match &outcome.connected {
        Ok(_) if matches!(target.port(), 902 | 903) && !outcome.greeting.starts_with(b"220") => {
            Finding::warn(
                CHECK,
                format!("{target}: connects, but does not greet as authd does (220 …)"),
                "look whether a firewall answers in its place, or another service has the port",
            )
        }
        Ok(took) => Finding::ok(CHECK, format!("{target}: answers in {} ms", took.as_millis())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Finding::fail(
            CHECK,
            format!("{target}: refused"),
            "the host is up, the service is not: look at its services and its own firewall (esxcli network firewall)",
        ),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Finding::fail(
            CHECK,
            format!("{target}: no answer within {} s", PATIENCE.as_secs()),
            "look at firewalls on the way and whether the host is up",
        ),
        Err(error) => Finding::fail(
            CHECK,
            format!("{target}: {error}"),
            format!("look at this host's routes (ip route get {})", target.ip()),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn only_single_hosts_are_tried() {
        let of = |text: &str| single(&text.parse().unwrap()).len();
        assert_eq!(of("10.0.0.1:902"), 1);
        assert_eq!(of("10.0.0.1:902-903"), 2);
        assert_eq!(of("10.0.0.1"), 0, "65535 ports");
        assert_eq!(of("10.0.0.0/24:902"), 0, "a range");
        assert_eq!(resolve("192.0.2.1").unwrap().len(), 2);
        assert_eq!(resolve("192.0.2.1:8443").unwrap(), ["192.0.2.1:8443".parse().unwrap()]);
        assert_eq!(resolve("2001:db8::1").unwrap().len(), 2);
    }

    #[test]
    fn a_dead_port_fails_and_a_live_one_repairs_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(examine(None, &[address.to_string()])[0].verdict, Verdict::Ok);
        drop(listener);
        let refused = &examine(None, &[address.to_string()])[0];
        assert!(refused.verdict == Verdict::Fail && refused.found.contains("refused"), "{refused:?}");
        assert_eq!(examine(None, &["no-such-host.invalid".into()])[0].verdict, Verdict::Fail);
    }

    #[test]
    fn authd_has_to_greet() {
        let target = "192.0.2.1:902".parse().unwrap();
        let outcome =
            |greeting: &[u8]| Outcome { connected: Ok(Duration::ZERO), greeting: greeting.to_vec() };
        assert_eq!(judge(target, &outcome(b"")).verdict, Verdict::Warn);
        assert_eq!(judge(target, &outcome(b"220 VMware Authentication Daemon")).verdict, Verdict::Ok);
        let silent = Outcome { connected: Err(io::ErrorKind::TimedOut.into()), greeting: vec![] };
        assert!(judge(target, &silent).remedy.unwrap().contains("firewalls"));
    }
}
