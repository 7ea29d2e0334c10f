//! Two cells behind HAProxy in TCP mode: any of them opens any ticket, and one may die in the middle.

mod support;
mod vcenter_rig;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Instant;

use mksgate::client::url::ConsoleUrl;
use mksgate_bench::sim::{Esxi, EsxiConfig, Screen, Ticket, Vm};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::Signal;
use support::{Appliance, HOST_TICKET, PATIENCE, Setup, VM, client};
use vcenter_rig::desk::{PASSWORD, acquire, secret, user};
use vcenter_rig::fake::{Answer, Console, FakeVcenter};
use vcenter_rig::vcsim;

/// Where HAProxy comes from, so that direct clients of the same cell need no PROXY header.
const BALANCER: &str = "127.0.0.2";
const BALANCED: &str = "[proxy_protocol]\nfrom = [\"127.0.0.2\"]\n";

struct Balancer {
    tls: SocketAddr,
    authd: SocketAddr,
    child: Child,
}

impl Balancer {
    /// In front of both doors of both cells, in turns. `None`, and why is said, where HAProxy is not there.
    fn start(dir: &Path, doors: [TcpListener; 2], cells: &[&Appliance]) -> Option<Self> {
        let program = haproxy()?;
        let servers = |address: fn(&Appliance) -> SocketAddr| -> String {
            let line = |(n, cell): (usize, &&Appliance)| {
                format!("  server cell-{n} {} source {BALANCER} send-proxy-v2\n", address(cell))
            };
            cells.iter().enumerate().map(line).collect()
        };
        // HAProxy inherits the sockets: nobody can take a port in between, and who comes early waits in its queue.
        for door in &doors {
            fcntl(door, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        }
        let config = format!(
            "global\n  maxconn 500\ndefaults\n  mode tcp\n  balance roundrobin\n  option redispatch 1\n  retries 3\n  timeout connect 500ms\n  timeout client 1h\n  timeout server 1h\n\
             listen tls\n  bind fd@{}\n{}listen authd\n  bind fd@{}\n{}",
            doors[0].as_raw_fd(),
            servers(|cell| cell.tls),
            doors[1].as_raw_fd(),
            servers(|cell| cell.authd)
        );
        let file = dir.join("haproxy.cfg");
        std::fs::write(&file, config).unwrap();
        let child = Command::new(program)
            .arg("-db")
            .arg("-f")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let [tls, authd] = doors.map(|door| door.local_addr().unwrap());
        Some(Self { tls, authd, child })
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn haproxy() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places: Vec<_> = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]).collect();
    let found = places.into_iter().map(|place| place.join("haproxy")).find(|file| file.is_file());
    if found.is_none() {
        let full = std::env::var_os("MKSGATE_FULL_TESTS").is_some_and(|value| value == "1");
        assert!(!full, "missing: haproxy (Debian package haproxy); `cargo xtask setup` installs it");
        eprintln!("skipped, missing: haproxy (Debian package haproxy)");
    }
    found
}

fn free() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// The same keys and certificate as another cell's.
fn sibling(of: &Path) -> Setup {
    let setup = Setup::new();
    let dir = setup.dir.path();
    std::fs::remove_dir_all(dir.join("keys")).unwrap();
    std::fs::create_dir(dir.join("keys")).unwrap();
    std::fs::set_permissions(dir.join("keys"), std::fs::Permissions::from_mode(0o700)).unwrap();
    for entry in std::fs::read_dir(of.join("keys")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.join("keys").join(entry.file_name())).unwrap();
    }
    for file in ["cert.pem", "key.pem"] {
        std::fs::copy(of.join(file), dir.join(file)).unwrap();
    }
    setup
}

/// A console through a balancer that may still think a dead cell alive.
fn try_open(authd: SocketAddr, ticket: &str) -> Option<TcpStream> {
    let mut tcp = client::connect(authd);
    client::plain_line(&mut tcp).ok()?;
    client::open(client::Tls::start(tcp).ok()?, ticket, VM).ok()
}

/// Waits until a number of a cell's is this one: a client may hear of its console before the books have it.
fn wait_metric(cell: &Appliance, name: &str, with: &[&str], wanted: f64) {
    let began = Instant::now();
    loop {
        let value = cell.metric(name, with);
        if value == wanted {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{name} is {value}, not {wanted}");
        std::thread::yield_now();
    }
}

fn wait_sessions(cell: &Appliance, wanted: f64) {
    wait_metric(cell, "mksgate_sessions", &["tenant=\"acme\""], wanted);
}

fn events(cell: &Appliance, event: &str) -> Vec<serde_json::Value> {
    cell.audit().into_iter().filter(|record| record["event"] == event).collect()
}

/// Sends these blocks through an echoing console and takes each back; how many came back before it broke.
fn transfer(console: &mut TcpStream, from: u32, to: u32, reached: impl Fn(u32)) -> u32 {
    let mut block = vec![0; 64 * 1024];
    for n in from..to {
        let sent: Vec<u8> = n.to_be_bytes().into_iter().cycle().take(block.len()).collect();
        let mut writing = console.try_clone().unwrap();
        let echoed = std::thread::scope(|scope| {
            let written = scope.spawn(|| writing.write_all(&sent));
            let read = console.read_exact(&mut block);
            let written = written.join().unwrap();
            read.and(written)
        });
        if echoed.is_err() {
            return n;
        }
        assert!(block == sent, "block {n} came back otherwise");
        reached(n);
    }
    to
}

#[test]
fn a_cell_dies_in_the_middle_of_a_transfer_and_the_other_goes_on() {
    let host = Esxi::start(
        EsxiConfig::default().vm(Vm::plain(VM, Screen::echo())).ticket(Ticket::new(HOST_TICKET, VM)),
    )
    .unwrap();
    let first = Setup::new();
    let second = sibling(first.dir.path());
    let (a, mut b) = (first.with(BALANCED).start(), second.with(BALANCED).start());
    let dir = tempfile::tempdir().unwrap();
    let Some(balancer) = Balancer::start(dir.path(), [free(), free()], &[&a, &b]) else { return };
    // The plug-in's four connections with one ticket, spread in turns.
    let sealed = a.ticket(&host);
    let open = || client::open(client::authd(balancer.authd), &sealed, VM);
    let mut consoles: Vec<_> = (0..4).map(|_| open().unwrap()).collect();
    wait_sessions(&a, 2.0);
    wait_sessions(&b, 2.0);
    let opened = |cell: &Appliance| events(cell, "open").len();
    let began = Instant::now();
    while (opened(&a), opened(&b)) != (2, 2) {
        assert!(began.elapsed() < PATIENCE, "two records each: {:?}", (opened(&a), opened(&b)));
        std::thread::yield_now();
    }
    let sources: Vec<_> = events(&a, "open").iter().map(|record| record["source"].to_string()).collect();
    assert!(sources.iter().all(|source| source.contains("127.0.0.1")), "not the balancer's: {sources:?}");

    let (blocks, far, middle) = (400, mpsc::channel(), 100);
    let mut bulk = consoles.remove(0);
    let (sealed_for, address, reached) = (sealed.clone(), balancer.authd, far.0);
    let client = std::thread::spawn(move || {
        let broke_at = transfer(&mut bulk, 0, blocks, |n| {
            if n == middle {
                let _ = reached.send(());
            }
        });
        // As a client does: again with the same ticket, until a cell takes it.
        let mut again = (0..50)
            .find_map(|_| try_open(address, &sealed_for))
            .expect("the other cell takes the same ticket");
        let back = Instant::now();
        assert_eq!(transfer(&mut again, broke_at, blocks, |_| {}), blocks);
        (broke_at, back, again)
    });
    far.1.recv_timeout(PATIENCE).unwrap();
    a.signal(Signal::SIGKILL);
    let killed = Instant::now();
    let (broke_at, back, again) = client.join().unwrap();
    println!(
        "broke at block {broke_at} of {blocks}; the console was back {:?} after the kill",
        back - killed
    );
    assert!(broke_at > middle && broke_at < blocks, "it broke in the middle: {broke_at}");

    // The other one of the dead cell is gone too, and comes back as well; those of the living were never disturbed.
    let mut alive = 0;
    for mut console in consoles {
        let works = transfer(&mut console, 0, 3, |_| {}) == 3;
        alive += u32::from(works);
        drop(console);
    }
    assert_eq!(alive, 2);
    let mut third = open().unwrap();
    assert_eq!(transfer(&mut third, 0, 3, |_| {}), 3);
    drop((again, third));
    for _ in 0..4 {
        assert_eq!(b.wait_closed(), "client_closed");
    }
    // One record per leg and end, and nothing is held any more.
    b.audit_with("close", 4);
    let numbers = |event: &str| {
        let mut ids: Vec<_> = events(&b, event).iter().map(|record| record["session"].to_string()).collect();
        ids.sort();
        ids
    };
    assert_eq!((numbers("open").len(), numbers("open")), (4, numbers("close")));
    let refused = b.audit().into_iter().filter(|record| record["event"] == "refused").count();
    assert_eq!(refused, 0, "{:?}", b.audit());
    wait_sessions(&b, 0.0);
    wait_metric(&b, "mksgate_preauth_connections", &[], 0.0);
    let began = Instant::now();
    while host.open_connections() > 0 {
        assert!(began.elapsed() < PATIENCE, "connections to the host are left");
        std::thread::yield_now();
    }
    // The four places of the ticket are free again.
    let again: Vec<_> = (0..4).map(|_| open().unwrap()).collect();
    wait_sessions(&b, 4.0);
    drop(again);
}

/// A cell with a desk for vm-61 of ann@blue.
fn with_desk(setup: Setup, vcenter: &FakeVcenter, users: &str, more: &str) -> Appliance {
    let dir = setup.dir.path().to_owned();
    secret(&dir.join("users.toml"), users);
    let desk =
        "[desk]\nusers = \"users.toml\"\n[desk.orgs.blue]\ntenant = \"acme\"\nvms.vm-61.vcenter = \"lab\"\n";
    setup.with(more).with(BALANCED).with(&vcenter.account("lab", &dir)).with(desk).start()
}

fn opens(url: &ConsoleUrl) {
    let address = SocketAddr::new(url.host.parse().unwrap(), url.port.unwrap());
    let mut console = client::open(client::mks(address), &url.ticket, &url.vm).unwrap();
    assert_eq!(transfer(&mut console, 0, 2, |_| {}), 2);
}

#[test]
fn tickets_name_the_console_where_the_operator_says_it_is() {
    let host = vcsim::host(1);
    let console = Console { host: host.addr(), thumbprint: host.thumbprint_sha1(), path: VM.into() };
    let vcenter = FakeVcenter::start(console, |_| Answer::Usual);
    let (users, dir) = (user("ann@blue", PASSWORD), tempfile::tempdir().unwrap());
    // No balancer: the address that the client dialled.
    let alone = with_desk(Setup::new(), &vcenter, &users, "");
    let url = ConsoleUrl::parse(&acquire(alone.tls)).unwrap();
    assert_eq!((url.host.as_str(), url.port), ("127.0.0.1", Some(alone.tls.port())));
    opens(&url);

    // HTTP is balanced, consoles go straight to the cell that handed the ticket out: each names itself.
    let first = Setup::new();
    let second = sibling(first.dir.path());
    let any = "[listen]\ntls = [\"0.0.0.0:0\"]\nauthd = [\"0.0.0.0:0\"]\n";
    let mut direct_a = with_desk(first, &vcenter, &users, &format!("console_address = \"127.0.0.3\"\n{any}"));
    let mut direct_b =
        with_desk(second, &vcenter, &users, &format!("console_address = \"127.0.0.4\"\n{any}"));
    for cell in [&mut direct_a, &mut direct_b] {
        cell.tls.set_ip([127, 0, 0, 1].into());
        cell.authd.set_ip([127, 0, 0, 1].into());
    }
    let Some(balancer) = Balancer::start(dir.path(), [free(), free()], &[&direct_a, &direct_b]) else {
        return;
    };
    let mut named = Vec::new();
    for _ in 0..3 {
        let url = ConsoleUrl::parse(&acquire(balancer.tls)).unwrap();
        let cell = if url.host == "127.0.0.3" { &direct_a } else { &direct_b };
        assert_eq!(url.port, Some(cell.tls.port()), "{}", url.host);
        opens(&url);
        named.push(url.host);
        // An odd number of connections more, so that the next login meets the other cell.
        drop(TcpStream::connect(balancer.tls).unwrap());
    }
    assert!(named.contains(&"127.0.0.3".to_owned()) && named.contains(&"127.0.0.4".to_owned()), "{named:?}");
    drop(balancer);

    // Both balanced: tickets name the balancer, and any cell opens them.
    let (first, ports) = (Setup::new(), [free(), free()]);
    let second = sibling(first.dir.path());
    let public = format!(
        "console_address = \"127.0.0.1\"\nconsole_tls_port = {}\nconsole_authd_port = {}\n",
        ports[0].local_addr().unwrap().port(),
        ports[1].local_addr().unwrap().port()
    );
    let a = with_desk(first, &vcenter, &users, &public);
    let b = with_desk(second, &vcenter, &users, &public);
    let Some(balancer) = Balancer::start(dir.path(), ports, &[&a, &b]) else { return };
    for _ in 0..3 {
        let url = ConsoleUrl::parse(&acquire(balancer.tls)).unwrap();
        assert_eq!((url.host.as_str(), url.port), ("127.0.0.1", Some(balancer.tls.port())));
        // Twice, which is once at each.
        opens(&url);
        opens(&url);
    }
    for cell in [&a, &b] {
        wait_metric(cell, "mksgate_sessions_opened_total", &["door=\"mks\""], 3.0);
    }
}
