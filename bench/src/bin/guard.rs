//! The work whose instructions CI counts: `guard CASE N` does it N times. `cargo xtask guard` runs it under callgrind.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use mksgate::flow::{Driver, Engines, Flow, FlowConfig, FlowLimits, Leg};
use mksgate::protocol::authd::{Action, Reply, Server, commands};
use mksgate::protocol::websocket::{Decoder, Event, Peer};
use mksgate::ticket::{Claims, KeyRing, Target, TargetKind, TicketPolicy, Tickets, create_key_file};
use mksgate_bench::load::websocket::binary;
use mksgate_common::bucket::Rate;
use mksgate_common::map::{Address, Destination, Globals, Tenant};
use mksgate_common::packet::syn;
use mksgate_common::testing::{Memory, Shape};
use mksgate_common::verdict::{Verdict, judge, unless_syn};

/// Payload of the unmasked frame, bytes.
const FRAME: usize = 16 << 10;
/// A message of the flow, bytes.
const MESSAGE: usize = 32;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [case, count] = &args[..] else { bail!("usage: guard CASE N") };
    let count = count.parse()?;
    match case.as_str() {
        "ticket" => ticket(count),
        "authd" => authd(count),
        "unmask" => unmask(count),
        "verdict" => verdict(count),
        "flow-turn" => flow_turn(count),
        _ => bail!("no case {case}: ticket, authd, unmask, verdict, flow-turn"),
    }
}

/// Opening one sealed ticket: parsing, decryption, claims, policy, use-tracking, and the use's end.
fn ticket(count: u32) -> Result<()> {
    let dir = tempfile::tempdir()?;
    create_key_file(dir.path(), Some("guard"), SystemTime::now())?;
    let keys = KeyRing::load(dir.path())?;
    let now = SystemTime::now();
    let at = now.duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let claims = Claims {
        iss: None,
        aud: None,
        jti: "01890a5d-ac96-774b-bcce-b302099a8057".into(),
        iat: at,
        nbf: at,
        exp: at + 60,
        tenant: "acme".into(),
        user: "ann@example".into(),
        vm: "vm-61".into(),
        target: Target {
            kind: TargetKind::EsxiMks,
            host: "10.20.0.11".into(),
            port: Some(902),
            ticket: Some("52f1c2d3-9f04-2a6e-0d5c-7be1a2c33d10".into()),
            cfg_file: Some("[datastore1] web/web.vmx".into()),
            thumbprints: vec!["A9".repeat(20)],
            tls: None,
        },
        source: None,
        max_connections: None,
        session_seconds: None,
        view_only: false,
    };
    let sealed = keys.seal(&claims)?;
    let tickets = Tickets::new(TicketPolicy::default(), keys);
    let source = IpAddr::V4(Ipv4Addr::LOCALHOST);
    for _ in 0..count {
        drop(tickets.open(&sealed, source, now)?);
    }
    Ok(())
}

/// One dialogue, both sides of it.
fn authd(count: u32) -> Result<()> {
    let ticket = "x".repeat(600);
    for _ in 0..count {
        let mut server = Server::new();
        let mut reply = |line: String| -> Result<String> {
            match server.line(line.trim_end()) {
                Action::Reply(reply) | Action::Goodbye(reply) => Ok(reply),
                Action::Login { .. } => Ok(server.logged_in()),
                Action::Thumbprint { .. } => {
                    Ok(server.thumbprint("00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF:00:11:22:33"))
                }
                Action::Connect { path } => Ok(server.connected(&path)),
            }
        };
        let lines = [
            (commands::user(&ticket)?, 331),
            (commands::pass(&ticket)?, 230),
            (commands::thumbprint("bWtzZ2F0ZS1zaW0h", false)?, 200),
            (commands::connect("[datastore1] web/web.vmx")?, 200),
        ];
        for (line, code) in lines {
            let answer = reply(line)?;
            ensure!(Reply::parse(answer.trim_end())?.is(code), "{answer}");
        }
    }
    Ok(())
}

/// One masked frame of a client.
fn unmask(count: u32) -> Result<()> {
    let frame = binary(&vec![0x5a; FRAME], [0x37, 0xfa, 0x21, 0x3d]);
    let mut decoder = Decoder::new(Peer::Client, false);
    let mut piece = frame.clone();
    for _ in 0..count {
        piece.copy_from_slice(&frame);
        let (mut at, mut got) = (0, 0);
        while let Some(event) = decoder.next(&mut piece, &mut at)? {
            if let Event::Data(range) = event {
                got += range.len();
                ensure!(piece[range.start] == 0x5a, "unmasked wrongly");
            }
        }
        ensure!(got == FRAME, "{got} bytes");
    }
    Ok(())
}

/// The verdict on one SYN of a known source to a protected port.
fn verdict(count: u32) -> Result<()> {
    let mut tables = Memory::new(1024, 4);
    let to = [192, 0, 2, 1];
    let address = Address::v4(to);
    let rate = Rate::per_second(2_000, 100);
    let whole = Rate::per_second(1_000_000, 10_000);
    tables.publish(Globals {
        source: rate,
        global: whole,
        resets: whole,
        events: rate,
        generation: 1,
        ..Globals::default()
    });
    tables.tenants[1] = Tenant { active: 5, max: 100, rate };
    tables.destinations.insert(Destination::new(address, 443), 1);
    let frame = Shape::syn(&[198, 51, 100, 7], &to, 443).build();
    for n in 0..count {
        tables.now.set(u64::from(n) * 1_000_000);
        let Err(look) = unless_syn(&frame[..]) else { bail!("no SYN") };
        let syn = syn(&frame[..], &look).context("no SYN")?;
        let judged = judge(&syn, &tables);
        ensure!(judged.verdict == Verdict::Pass && judged.tenant == 1, "{judged:?}");
    }
    Ok(())
}

/// One message through a flow and back: two turns of the engine. epoll, which callgrind can follow.
fn flow_turn(count: u32) -> Result<()> {
    let config = FlowConfig { driver: Driver::Epoll, threads: 1, ..FlowConfig::default() };
    let engines = Engines::start(&config)?;
    let (mut client, client_leg) = pair()?;
    let (mut backend, backend_leg) = pair()?;
    let flow = Flow {
        id: 1,
        client: Leg::Raw(OwnedFd::from(client_leg)),
        backend: Leg::Raw(OwnedFd::from(backend_leg)),
        to_backend: Vec::new(),
        to_client: Vec::new(),
        limits: FlowLimits { idle: None, ends_at: None, half_close: Duration::from_secs(60) },
        counters: Arc::default(),
        progress: Default::default(),
        on_first_byte: None,
        on_close: Box::new(|_| {}),
    };
    engines.submit(flow).map_err(|_| anyhow::anyhow!("the engine's queue is full"))?;
    let mut message = [0x5a; MESSAGE];
    for _ in 0..count {
        client.write_all(&message)?;
        backend.read_exact(&mut message)?;
        backend.write_all(&message)?;
        client.read_exact(&mut message)?;
    }
    engines.stop();
    Ok(())
}

fn pair() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (far, _) = listener.accept()?;
    for end in [&near, &far] {
        end.set_nodelay(true)?;
    }
    Ok((near, far))
}
