//! From two connected sockets to a session: registered, recorded, handed to the flow engine, and accounted for at its end.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::{CloseReason, Registry, Session};
use crate::admission::{Admission, Entry};
use crate::flow::{Flow, FlowCounters, FlowEnd, FlowLimits, Leg, Progress};
use crate::gate::{Caller, Gate};
use crate::metrics::Stage;
use crate::ticket::{Permit, TicketUse};

/// Everything a session is made of.
pub struct HandOver {
    /// Whose connection it is.
    pub caller: Caller,
    /// Its place among all connections.
    pub entry: Entry,
    /// What the ticket allows; holds the ticket's use.
    pub permit: Permit,
    /// The slots of tenant and user.
    pub admission: Admission,
    /// The client's side.
    pub client: Leg,
    /// The hypervisor's side.
    pub backend: Leg,
    /// Bytes of the client's that were received already.
    pub to_backend: Vec<u8>,
    /// Bytes of the hypervisor's that were received already.
    pub to_client: Vec<u8>,
}

/// Makes the session. On an error nothing of it is left: both sockets closed, every slot free.
pub fn hand_over(gate: &Arc<Gate>, over: HandOver) -> io::Result<()> {
    let HandOver { caller, mut entry, permit, admission, client, backend, to_backend, to_client } = over;
    let config = gate.config.load();
    let (backend_local, backend_peer) = addresses(&backend)?;
    let tenant = admission.tenant();
    let now = Instant::now();
    let longest = [permit.session(), tenant.session, config.deadlines.session].into_iter().flatten().min();
    let limits = FlowLimits {
        idle: tenant.idle.or(config.deadlines.idle),
        ends_at: longest.map(|longest| now + longest),
        half_close: config.deadlines.half_close,
    };
    let counters = Arc::new(FlowCounters::default());
    let session = Arc::new(Session {
        id: gate.registry.next_id(),
        door: caller.door,
        tenant: admission.name().clone(),
        user: permit.user().into(),
        vm: permit.vm().into(),
        jti: permit.jti().into(),
        mark: tenant.number,
        source: caller.source,
        peer: caller.peer,
        local: caller.local,
        backend_local,
        backend: backend_peer,
        started: SystemTime::now(),
        since: now,
        counters: counters.clone(),
    });
    entry.handed_over();
    // A PROXY header is no source of packets; whoever sent it is a load balancer, and belongs to nobody.
    if caller.peer.ip() == caller.source.ip() {
        gate.xdp.learn(caller.peer.ip(), tenant.number);
    }
    let slots = (entry, permit.into_use(), admission);
    let held = Held { gate: gate.clone(), session: session.clone(), slots: Some(slots) };
    let (metrics, accepted) = (gate.metrics.clone(), caller.accepted);
    gate.registry.insert(session.clone());
    gate.audit.opened(&session);
    gate.metrics.opened(&session.tenant, session.door);
    tracing::info!(session = session.id, tenant = &*session.tenant, user = &*session.user, vm = &*session.vm, jti = &*session.jti, source = %session.source, backend = %session.backend, "console opened");
    let flow = Flow {
        id: session.id,
        client,
        backend,
        to_backend,
        to_client,
        limits,
        counters,
        progress: Progress::default(),
        on_first_byte: Some(Box::new(move || metrics.record(Stage::FirstByte, accepted.elapsed()))),
        on_close: Box::new(move |end| held.end(&end)),
    };
    if let Err(flow) = gate.engines.submit(flow) {
        (flow.on_close)(FlowEnd { reason: CloseReason::Internal, up: 0, down: 0, rtt_us: [None, None] });
        return Err(io::Error::other("the flow engine takes nothing more; it is full or going down"));
    }
    // Revoked or removed between the ticket's opening and the registry: those who closed sessions did not see this one.
    if let Some(reason) = gate.no_longer_welcome(&session) {
        gate.engines.close(session.id, reason);
    }
    Ok(())
}

/// What lives as long as the flow does in this process. Dropped without an end, it gives slots and registry entry back and
/// records nothing: the console was moved to another process and is open there.
struct Held {
    gate: Arc<Gate>,
    session: Arc<Session>,
    slots: Option<(Entry, TicketUse, Admission)>,
}

impl Held {
    fn end(mut self, end: &FlowEnd) {
        // Slots first: whoever learns of the end, from the registry or the audit file, may come again at once.
        self.slots = None;
        let (gate, session) = (&self.gate, &self.session);
        let lived = session.since.elapsed();
        gate.registry.remove(session.id);
        gate.metrics.closed(&session.tenant, end.reason, end.up, end.down, lived);
        for (stage, rtt) in [(Stage::ClientRtt, end.rtt_us[0]), (Stage::BackendRtt, end.rtt_us[1])] {
            if let Some(us) = rtt {
                gate.metrics.record(stage, Duration::from_micros(us.into()));
            }
        }
        gate.audit.closed(session, end);
        tracing::info!(
            session = session.id,
            tenant = &*session.tenant,
            jti = &*session.jti,
            reason = end.reason.as_str(),
            up = end.up,
            down = end.down,
            seconds = lived.as_secs(),
            "console closed"
        );
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // `end` has taken them.
        if self.slots.take().is_none() {
            return;
        }
        let session = &self.session;
        self.gate.registry.remove(session.id);
        self.gate.metrics.moved(&session.tenant);
        tracing::info!(session = session.id, tenant = &*session.tenant, jti = &*session.jti, "console moved");
    }
}

fn addresses(socket: &impl AsFd) -> io::Result<(std::net::SocketAddr, std::net::SocketAddr)> {
    let socket = socket2::SockRef::from(socket);
    let internet =
        |address: socket2::SockAddr| address.as_socket().ok_or(io::Error::from(io::ErrorKind::Unsupported));
    Ok((internet(socket.local_addr()?)?, internet(socket.peer_addr()?)?))
}

/// Closes every session that `selects`, with this reason; returns their numbers.
pub fn close_all(gate: &Gate, reason: CloseReason, selects: impl Fn(&Session) -> bool) -> Vec<u64> {
    let registry: &Registry = &gate.registry;
    let chosen: Vec<u64> =
        registry.list().iter().filter(|session| selects(session)).map(|session| session.id).collect();
    for id in &chosen {
        gate.engines.close(*id, reason);
    }
    chosen
}
