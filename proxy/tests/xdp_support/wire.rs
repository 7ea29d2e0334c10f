//! Two network namespaces with a wire between them: the protected host's, and the world's.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::programs::{Xdp, xdp::XdpMode};
use mksgate::xdp::{DropEvent, Gate, GateError, OBJECT, Policy, XdpSection};
use mksgate_bench::load::flood::{Flood, Plan};
use mksgate_bench::netns::Namespace;
use socket2::{Domain, Protocol, Socket, Type};

use super::privileged;

/// How long anything is awaited before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// The protected host's interface.
pub const GATE: &str = "gate0";
/// The world's.
pub const WORLD: &str = "world0";
/// The protected host.
pub const HOST4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The same.
pub const HOST6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);

/// The two namespaces; what was made in them goes with them.
pub struct Wire {
    pub inside: Namespace,
    pub outside: Namespace,
    world: Mutex<Vec<Ebpf>>,
}

impl Wire {
    /// `None`, with a printed reason, where it cannot be had.
    pub fn new() -> Option<Wire> {
        if !privileged() {
            return None;
        }
        let (inside, outside) = (Namespace::new().unwrap(), Namespace::new().unwrap());
        let wire = Wire { inside, outside, world: Mutex::default() };
        wire.plug();
        Some(wire)
    }

    /// Makes the interfaces: veth, which has native XDP.
    pub fn plug(&self) {
        self.inside.veth(GATE, &self.outside, WORLD).unwrap();
        self.empty_program_on_the_worlds_end();
        self.inside.v4(GATE, HOST4).unwrap();
        self.inside.v6(GATE, HOST6).unwrap();
        for network in [1, 2] {
            for client in 1..=4 {
                self.outside.v4(WORLD, client4(network, client)).unwrap();
            }
            self.outside.v6(WORLD, client6(network.into())).unwrap();
        }
    }

    /// A veth is woken for what the other end's program sends back (XDP_TX) only while it has a program of its own
    /// (veth_xdp_flush in drivers/net/veth.c). A network card needs no such thing.
    fn empty_program_on_the_worlds_end(&self) {
        let mut object = Ebpf::load(OBJECT.unwrap()).unwrap();
        let program: &mut Xdp = object.program_mut("mksgate_empty").unwrap().try_into().unwrap();
        program.load().unwrap();
        self.outside.run(|| program.attach(WORLD, XdpMode::Driver)).unwrap();
        // A world that is unplugged and plugged in again has two; the first is of no interface any more.
        self.world.lock().unwrap().push(object);
    }

    /// Starts a gate on the protected host's side, and gathers its drop events.
    pub fn start(
        &self,
        section: &XdpSection,
        policy: Policy,
    ) -> Result<(Gate, mpsc::Receiver<DropEvent>), GateError> {
        let config = section.validate().unwrap();
        let (sender, events) = mpsc::channel();
        let on_drop = move |event: &DropEvent| drop(sender.send(event.clone()));
        let gate = self.inside.run(|| Gate::start(config, policy, on_drop))?;
        Ok((gate, events))
    }

    /// A service on the protected host; connections wait in its queue.
    pub fn listen(&self, address: SocketAddr) -> TcpListener {
        self.inside.run(|| TcpListener::bind(address)).unwrap()
    }

    /// A connection from one of the world's addresses.
    pub fn connect(&self, from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.dial(from)?;
        socket.connect_timeout(&to.into(), PATIENCE)?;
        Ok(TcpStream::from(socket))
    }

    /// A socket on one of the world's addresses.
    pub fn dial(&self, from: IpAddr) -> io::Result<Socket> {
        let domain = if from.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = self.outside.run(|| Socket::new(domain, Type::STREAM, Some(Protocol::TCP)))?;
        socket.bind(&SocketAddr::new(from, 0).into())?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(socket)
    }

    /// SYNs from the world, as many as `plan` says.
    pub fn flood(&self, plan: Plan) -> Flood {
        self.outside.run(|| Flood::start(plan)).unwrap()
    }

    /// The program that an interface has, by what `ip` prints: mode and id.
    pub fn program_on(&self, interface: &str) -> Option<(&'static str, u32)> {
        let shown = self.inside.ip(&format!("-details link show dev {interface}")).unwrap();
        let mode = if shown.contains("xdpgeneric") { "generic" } else { "native" };
        let mut words = shown.split_whitespace().skip_while(|word| !word.starts_with("prog/xdp")).skip(2);
        words.next().map(|id| (mode, id.parse().unwrap()))
    }
}

/// An address of the world in 10.77.1.0/24 or 10.77.2.0/24.
pub fn client4(network: u8, client: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, network, client)
}

/// An address of the world in fd77:0:0:1::/64 or fd77:0:0:2::/64.
pub fn client6(network: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0, 0, network, 0, 0, 0, 1)
}

/// Waits until `there` gives something.
pub fn until<T>(what: &str, mut there: impl FnMut() -> Option<T>) -> T {
    let limit = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = there() {
            return found;
        }
        assert!(Instant::now() < limit, "waited in vain: {what}");
        // The kernel tells nobody of a counter's change.
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Interfaces and modes.
pub fn modes(gate: &Gate) -> Vec<(String, String)> {
    gate.status().interfaces.into_iter().map(|i| (i.name, i.mode)).collect()
}
