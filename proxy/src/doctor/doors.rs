//! Whether the doors are open, and who holds their ports: `ss -tlnp` with a judgement.

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Finding, service, user};
use crate::config::Config;

const CHECK: &str = "doors";

/// A listening socket.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Listening {
    address: SocketAddr,
    uid: u32,
    inode: u64,
}

/// Who has it open: names of processes with their numbers. Empty: none that can be seen from here.
type Holders = Vec<(i32, String)>;

/// What surrounds a judgement.
struct Scene {
    listening: Vec<(Listening, Holders)>,
    /// The service's user.
    uid: Option<u32>,
    /// Addresses that systemd holds for mksgate.socket.
    socket_unit: Vec<SocketAddr>,
    /// Whether the service runs.
    running: bool,
}

/// Who listens where `wanted` wants to: `nginx (pid 812)`; nothing where that is nobody, or cannot be seen by this user.
pub(super) fn holder(wanted: SocketAddr) -> Option<String> {
    let scene = probe(false);
    let (_, holders) = scene.listening.into_iter().find(|(socket, _)| {
        // Who has every address stands in the way of one, and the other way round.
        covers(socket.address, wanted) || covers(wanted, socket.address)
    })?;
    (!holders.is_empty()).then(|| names(&holders))
}

fn names(holders: &Holders) -> String {
    let names: Vec<String> = holders.iter().map(|(pid, name)| format!("{name} (pid {pid})")).collect();
    names.join(", ")
}

pub(super) fn examine(config: &Config, running: bool) -> Vec<Finding> {
    let scene = probe(running);
    let tls = config.listen.tls.iter().map(|address| ("tls", *address));
    let authd = config.listen.authd.iter().map(|address| ("authd", *address));
    tls.chain(authd)
        .filter(|(_, address)| address.port() != 0)
        .map(|(door, address)| judge(door, address, &scene))
        .collect()
}

fn probe(running: bool) -> Scene {
    let table = |name: &str| fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default();
    let mut listening = parse(&table("tcp"));
    listening.extend(parse(&table("tcp6")));
    let mut holders = holders();
    let listening = listening
        .into_iter()
        .map(|socket| {
            let by = holders.remove(&socket.inode).unwrap_or_default();
            (socket, by)
        })
        .collect();
    let uid = user::service().map(|account| account.uid.as_raw());
    Scene { listening, uid, socket_unit: service::socket_addresses(), running }
}

/// The listening sockets of `/proc/net/tcp` or `tcp6` (proc_pid_net(5)).
fn parse(table: &str) -> Vec<Listening> {
    const LISTEN: &str = "0A";
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, state) = (fields.get(1)?, fields.get(3)?);
        (*state == LISTEN).then_some(())?;
        let (uid, inode) = (fields.get(7)?.parse().ok()?, fields.get(9)?.parse().ok()?);
        Some(Listening { address: address(local)?, uid, inode })
    };
    table.lines().skip(1).filter_map(line).collect()
}

/// `0100007F:01BB`: 32-bit words in the host's byte order, then the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let word = |n: usize| u32::from_str_radix(ip.get(8 * n..8 * n + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = if ip.len() == 8 {
        IpAddr::from(Ipv4Addr::from(word(0)?))
    } else {
        let bytes: Vec<u8> = [word(0)?, word(1)?, word(2)?, word(3)?].concat();
        IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?))
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

/// Processes by the inode of the sockets they hold; without root, one's own.
fn holders() -> HashMap<u64, Holders> {
    let mut found: HashMap<u64, Holders> = HashMap::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
        let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for file in files.flatten() {
            let Ok(link) = fs::read_link(file.path()) else { continue };
            let link = link.to_string_lossy();
            let inode = link.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')?.parse().ok());
            let Some(inode) = inode else { continue };
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let holder = (pid, name.trim().to_owned());
            let by = found.entry(inode).or_default();
            if !by.contains(&holder) {
                by.push(holder);
            }
        }
    }
    found
}

/// Whether a socket bound to `held` takes what is meant for `wanted`.
fn covers(held: SocketAddr, wanted: SocketAddr) -> bool {
    held.port() == wanted.port()
        && (held.ip() == wanted.ip() || (held.ip().is_unspecified() && held.is_ipv4() == wanted.is_ipv4()))
}

fn judge(door: &str, wanted: SocketAddr, scene: &Scene) -> Finding {
    let Some((socket, holders)) = scene.listening.iter().find(|(socket, _)| covers(socket.address, wanted))
    else {
        let (found, remedy) =
            (format!("{wanted} ({door}): nobody listens"), "systemctl start mksgate.socket mksgate.service");
        return if scene.running {
            Finding::fail(CHECK, found, remedy)
        } else {
            Finding::warn(CHECK, found, remedy)
        };
    };
    let ours = holders.iter().any(|(_, name)| name == "mksgate");
    let by_systemd = scene.socket_unit.iter().any(|unit| covers(*unit, wanted));
    if ours || (holders.is_empty() && scene.uid == Some(socket.uid)) {
        Finding::ok(CHECK, format!("{wanted} ({door}): mksgate listens"))
    } else if by_systemd && scene.running {
        Finding::ok(CHECK, format!("{wanted} ({door}): systemd holds it for mksgate"))
    } else if by_systemd {
        Finding::warn(
            CHECK,
            format!("{wanted} ({door}): systemd holds it, mksgate does not run"),
            "systemctl start mksgate; it starts with the first client, too",
        )
    } else if holders.is_empty() {
        Finding::warn(
            CHECK,
            format!("{wanted} ({door}): held by a process of uid {} that only root can see", socket.uid),
            "run `mksgate doctor` as root",
        )
    } else {
        Finding::fail(
            CHECK,
            format!("{wanted} ({door}): held by {}", names(holders)),
            "stop it, or give the door another address in [listen] and mksgate.socket",
        )
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::doctor::Verdict;

    fn scene(held: Option<(&str, Holders, u32)>, socket_unit: &[&str], running: bool) -> Scene {
        let listening = held
            .map(|(address, by, uid)| (Listening { address: address.parse().unwrap(), uid, inode: 1 }, by));
        Scene {
            listening: listening.into_iter().collect(),
            uid: Some(990),
            socket_unit: socket_unit.iter().map(|text| text.parse().unwrap()).collect(),
            running,
        }
    }

    #[test]
    fn the_holder_decides() {
        let door: SocketAddr = "0.0.0.0:443".parse().unwrap();
        let nginx = || vec![(77, "nginx".to_owned())];
        let gate = || vec![(1, "systemd".to_owned()), (88, "mksgate".to_owned())];
        for (scene, verdict, said) in [
            (scene(None, &[], false), Verdict::Warn, "nobody"),
            (scene(None, &[], true), Verdict::Fail, "nobody"),
            (scene(Some(("0.0.0.0:443", nginx(), 33)), &[], true), Verdict::Fail, "nginx (pid 77)"),
            (scene(Some(("0.0.0.0:443", vec![], 33)), &[], true), Verdict::Warn, "uid 33"),
            (scene(Some(("0.0.0.0:443", vec![], 0)), &["0.0.0.0:443"], true), Verdict::Ok, "systemd holds"),
            (scene(Some(("0.0.0.0:443", vec![], 0)), &["0.0.0.0:443"], false), Verdict::Warn, "does not run"),
            (scene(Some(("0.0.0.0:443", vec![], 990)), &[], true), Verdict::Ok, "mksgate listens"),
            (scene(Some(("0.0.0.0:443", gate(), 0)), &[], true), Verdict::Ok, "mksgate listens"),
            (scene(Some(("[::]:443", gate(), 0)), &[], true), Verdict::Fail, "nobody"),
        ] {
            let finding = judge("tls", door, &scene);
            assert_eq!(finding.verdict, verdict, "{finding:?}");
            assert!(finding.found.contains(said), "{finding:?}");
        }
    }

    #[test]
    fn a_real_port_leads_to_this_very_process() {
        for bound in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(bound) else { continue };
            let address = listener.local_addr().unwrap();
            let scene = probe(true);
            let finding = judge("tls", address, &scene);
            assert_eq!(finding.verdict, Verdict::Fail, "held by this test");
            assert!(finding.found.contains(&format!("pid {}", std::process::id())), "{finding:?}");
            drop(listener);
            assert!(judge("tls", address, &probe(true)).found.contains("nobody"));
        }
    }
}
