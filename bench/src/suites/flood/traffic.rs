//! What else comes to the appliance's address while it is flooded: TCP on another port, UDP, ICMP, ARP, IPv6 neighbour discovery.
//! Each is offered at a fixed pace below saturation, and what counts is what was answered (`exchange`).

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};

use super::attack;
use super::exchange::{Carried, Exchange, TICK};
use super::neighbour::{self, Protocols};
use super::site::{Gate, Land, NOBODY};
use super::{Contender, SUITE};
use crate::load::cost::{cores, pin_self};
use crate::load::flood::{folded, sum};
use crate::load::goals::Goal;
use crate::run::rounds::of;
use crate::run::{Context, Outcome, Series, Table, ratios};

/// As of SSH: its port, the length of a message of an interactive session, and of a piece of a file.
const PORT: u16 = 22;
const KEYSTROKE: usize = 64;
const PIECE: usize = 64 << 10;
const DATAGRAM: usize = 512;
/// Pieces a tick: half a gigabit per second.
const PIECES: u64 = 1;
/// Of everything else.
const REQUESTS: u64 = 10;
/// TCP gives up an answer only when something is broken.
const PATIENCE: Duration = Duration::from_secs(5);
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
/// Of our echo requests.
const IDENTIFIER: [u8; 2] = *b"mk";

/// What was carried.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Rates {
    /// Pieces of 64 KiB through one TCP connection.
    stream: Carried,
    /// Small messages there and back over one TCP connection.
    round_trips: Carried,
    /// UDP datagrams there and back.
    datagrams: Carried,
    /// ICMP echo requests.
    echoes: Carried,
    /// ARP requests.
    arp: Carried,
    /// IPv6 neighbour solicitations.
    solicitations: Carried,
}

/// Names, offered per tick, and where each is found.
const KINDS: [(&str, u64, fn(&Rates) -> Carried); 6] = [
    ("TCP stream, 64 KiB", PIECES, |r| r.stream),
    ("TCP round trips", REQUESTS, |r| r.round_trips),
    ("UDP datagrams", REQUESTS, |r| r.datagrams),
    ("ICMP echoes", REQUESTS, |r| r.echoes),
    ("ARP", REQUESTS, |r| r.arp),
    ("neighbour discovery", REQUESTS, |r| r.solicitations),
];

/// All other traffic with the flood on the appliance, elsewhere, and nowhere, in turns.
pub fn others(context: &Context, land: &Land, out: &mut Outcome) -> Result<()> {
    let time = Duration::from_secs_f64(context.seconds(4.0, 1.6) / 40.0);
    let mut contenders = [Contender::Quiet, Contender::Elsewhere, Contender::Xdp];
    let rounds = context.rounds(4, 1) * 5;
    let series = context.alternate(out, rounds, &mut contenders, |who| round(land, *who, time))?;
    out.table(table(&series));
    out.raw("others", &series);
    let (Some(xdp), Some(elsewhere)) = (of(&series, "xdp"), of(&series, "elsewhere")) else { return Ok(()) };
    for (name, _, of) in KINDS {
        let name = format!("{name} answered with the flood on the appliance / elsewhere");
        out.goals.push(Goal::at_least(SUITE, name, ratios(xdp, elsewhere, |r| of(r).rate()), 0.95));
    }
    Ok(())
}

fn table(series: &[Series<Rates>]) -> Table {
    let title = "other traffic to the same address during the SYN floods: answered per second, median; missing of all that was offered";
    let mut table = Table::new(title, ["", "offered/s"]);
    for s in series {
        table.head.push(s.contender.clone());
        table.head.push("missing".to_owned());
    }
    for (name, per_tick, of) in KINDS {
        let mut row = vec![name.to_owned(), (per_tick * 1000 / TICK.as_millis() as u64).to_string()];
        for s in series {
            let all = s.rounds.iter().map(of).fold(Carried::default(), Carried::and);
            row.push(format!("{:.0}", s.median(|r| of(r).rate())));
            row.push(format!("{} of {}", all.offered - all.answered, all.offered));
        }
        table.row(row);
    }
    table
}

/// One contender's round: each kind for `time`, one after the other.
fn round(land: &Land, who: Contender, time: Duration) -> Result<Rates> {
    let target = match who {
        Contender::Quiet => None,
        Contender::Elsewhere => Some(NOBODY),
        _ => Some(who.gate().host()),
    };
    // From the other senders' core. A veth has one queue, whose receiving side works where packets come from: two such cores would
    // move the other traffic's work back and forth, which a card with a queue for each core does not.
    let core = cores() - 1;
    let floods = target.map(|target| attack::syns(land, who.gate(), target, core)).transpose()?;
    let gate = who.gate();
    let rates = Rates {
        stream: stream(land, gate, time)?,
        round_trips: round_trips(land, gate, time)?,
        datagrams: datagrams(land, gate, time)?,
        echoes: echoes(land, gate, time)?,
        arp: arp(land, gate, time)?,
        solicitations: solicitations(land, gate, time)?,
    };
    drop(floods);
    Ok(rates)
}

/// Runs the exchange while a server on the appliance's core answers at the `far` end, until that is shut down.
fn served(
    exchange: &Exchange<'_>,
    time: Duration,
    far: &Socket,
    mut serve: impl FnMut(&Socket) -> std::io::Result<()> + Send,
) -> Result<Carried> {
    thread::scope(|scope| {
        scope.spawn(move || {
            if cores() > 1 {
                pin_self([0]);
            }
            while serve(far).is_ok() {}
        });
        let carried = exchange.run(time);
        far.shutdown(Shutdown::Both)?;
        Ok(carried?)
    })
}

/// Both ends of a TCP connection to the appliance's address.
fn connection(land: &Land, gate: Gate) -> Result<(Socket, Socket)> {
    let address = SocketAddr::from((gate.host(), PORT));
    let listener = land.inside(gate)?.run(|| TcpListener::bind(address))?;
    let near = Socket::from(land.world.run(|| std::net::TcpStream::connect(address))?);
    let (far, _) = listener.accept()?;
    let far = Socket::from(far);
    for end in [&near, &far] {
        end.set_tcp_nodelay(true)?;
        end.set_write_timeout(Some(PATIENCE))?;
    }
    Ok((near, far))
}

fn stream(land: &Land, gate: Gate, time: Duration) -> Result<Carried> {
    let (near, far) = connection(land, gate)?;
    let (mut buffer, piece) = (vec![0; PIECE], vec![0; PIECE]);
    let exchange =
        Exchange { socket: &near, request: &piece, per_tick: PIECES, counts: &|bytes| bytes.len(), whole: 1 };
    served(&exchange, time, &far, |mut far| {
        far.read_exact(&mut buffer)?;
        far.write_all(b"!")
    })
}

fn round_trips(land: &Land, gate: Gate, time: Duration) -> Result<Carried> {
    let (near, far) = connection(land, gate)?;
    let exchange = Exchange {
        socket: &near,
        request: &[b'k'; KEYSTROKE],
        per_tick: REQUESTS,
        counts: &|bytes| bytes.len(),
        whole: KEYSTROKE,
    };
    let mut key = [0; KEYSTROKE];
    served(&exchange, time, &far, |mut far| {
        far.read_exact(&mut key)?;
        far.write_all(&key)
    })
}

fn datagrams(land: &Land, gate: Gate, time: Duration) -> Result<Carried> {
    let address = SocketAddr::from((gate.host(), PORT));
    let far = land.inside(gate)?.run(|| UdpSocket::bind(address))?;
    let near = land.world.run(|| UdpSocket::bind((gate.victim(), 0)))?;
    near.connect(address)?;
    far.connect(near.local_addr()?)?;
    let (near, far) = (Socket::from(near), Socket::from(far));
    let exchange = Exchange {
        socket: &near,
        request: &[0; DATAGRAM],
        per_tick: REQUESTS,
        counts: &|datagram| usize::from(datagram.len() == DATAGRAM),
        whole: 1,
    };
    let mut datagram = [0; DATAGRAM];
    served(&exchange, time, &far, |mut far| {
        // Only a socket that was shut down gives none.
        far.read_exact(&mut datagram)?;
        // A full queue loses.
        let _ = far.send(&datagram);
        Ok(())
    })
}

fn echoes(land: &Land, gate: Gate, time: Duration) -> Result<Carried> {
    let socket = land.world.run(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)))?;
    socket.connect(&SocketAddr::from((gate.host(), 0)).into())?;
    // Behind an IPv4 header without options.
    let is_reply =
        |packet: &[u8]| packet.len() >= 28 && packet[20] == ECHO_REPLY && packet[24..26] == IDENTIFIER;
    asked(&socket, &echo_request(), &is_reply, time)
}

fn arp(land: &Land, gate: Gate, time: Duration) -> Result<Carried> {
    let (socket, station) = land.world.run(|| neighbour::frames(&gate.interface(), Protocols::Arp))?;
    let request = neighbour::arp_request(station, gate.victim(), gate.host());
    asked(&socket, &request, &|frame| neighbour::is_arp_reply(frame, gate.host()), time)
}

fn solicitations(land: &Land, gate: Gate, time: Duration) -> Result<Carried> {
    let (socket, station) = land.world.run(|| neighbour::frames(&gate.interface(), Protocols::Ipv6))?;
    let (from, host) = (gate.victim6(), gate.host6());
    let request = neighbour::solicitation(station, from, host);
    asked(&socket, &request, &|frame| neighbour::is_advertisement(frame, from, host), time)
}

/// What the appliance's kernel answers.
fn asked(
    socket: &Socket,
    request: &[u8],
    is_answer: &dyn Fn(&[u8]) -> bool,
    time: Duration,
) -> Result<Carried> {
    let counts = |packet: &[u8]| usize::from(is_answer(packet));
    Ok(Exchange { socket, request, per_tick: REQUESTS, counts: &counts, whole: 1 }.run(time)?)
}

/// RFC 792, with a right checksum.
fn echo_request() -> [u8; 8] {
    let mut out = [ECHO_REQUEST, 0, 0, 0, IDENTIFIER[0], IDENTIFIER[1], 0, 0];
    let checksum = folded(sum(&out)).to_be_bytes();
    out[2..4].copy_from_slice(&checksum);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_request_sums_to_nothing() {
        assert_eq!(folded(sum(&echo_request())), 0);
    }
}
