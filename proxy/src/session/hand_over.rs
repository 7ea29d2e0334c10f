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
    let slots = (entry, Some(permit.into_use()), Some(admission));
    let held = Held::new(gate.clone(), session.clone(), slots);
    let (metrics, accepted) = (gate.metrics.clone(), caller.accepted);
    announce(gate, &session);
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
        gate.close(session.id, reason);
    }
    Ok(())
}

/// Makes a session visible, and has it accounted for by whoever is in charge.
fn announce(gate: &Gate, session: &Arc<Session>) {
    let heir = gate.succession.heir();
    gate.registry.insert(session.clone());
    match &*heir {
        Some(heir) => heir.opened(gate, session),
        None => opened_here(gate, session),
    }
}

/// Accounts for a session that begins in this process.
pub(crate) fn opened_here(gate: &Gate, session: &Arc<Session>) {
    gate.audit.opened(session);
    gate.metrics.opened(&session.tenant, session.door);
    tracing::info!(session = session.id, tenant = &*session.tenant, user = &*session.user, vm = &*session.vm, jti = &*session.jti, source = %session.source, backend = %session.backend, "console opened");
}

/// The slots of a session: its place among all connections, its ticket's use, its tenant's and user's. The latter two are
/// missing where another process opened it and ticket or tenant are no longer known.
type Slots = (Entry, Option<TicketUse>, Option<Admission>);

/// What lives as long as the flow does in this process. Dropped without an end, it gives slots and registry entry back and
/// records nothing: the console was moved to another process and is open there.
pub(crate) struct Held {
    account: Account,
    slots: Option<Slots>,
}

/// Who has to account for a session.
#[derive(Clone)]
pub(crate) struct Account {
    gate: Arc<Gate>,
    session: Arc<Session>,
}

impl Held {
    pub(crate) fn new(gate: Arc<Gate>, session: Arc<Session>, slots: Slots) -> Self {
        Self { account: Account { gate, session }, slots: Some(slots) }
    }

    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.account.session
    }

    /// The flow is over, wherever it ran.
    pub(crate) fn end(mut self, end: &FlowEnd) {
        let account = self.account.clone();
        let gate = account.gate.clone();
        let heir = gate.succession.heir();
        // Slots first: whoever learns of the end, from the registry or the audit file, may come again at once.
        self.slots = None;
        let id = account.session.id;
        if let Some(heir) = &*heir {
            // With the last session this process ends: first the heir is told.
            heir.ended(account, end);
            gate.registry.remove(id);
        } else {
            gate.registry.remove(id);
            account.settle(end);
        }
    }
}

impl Account {
    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Writes the account of a session that is over and no longer in the registry.
    pub(crate) fn settle(&self, end: &FlowEnd) {
        let Self { gate, session } = self;
        let lived = session.since.elapsed();
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
        let Account { gate, session } = &self.account;
        gate.registry.remove(session.id);
        gate.metrics.moved(&session.tenant);
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
        gate.close(*id, reason);
    }
    chosen
}
