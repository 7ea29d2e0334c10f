//! The gate's thread: publishes what it is told, hands on drop events, and looks after the interfaces.

use std::{
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use aya::maps::{MapData, RingBuf};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    attach::State,
    counters::DropEvent,
    error::InterfaceProblem,
    gate::{Shared, monotonic},
    inner::{Inner, current_plan},
};

/// How often interfaces and addresses are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often expired sources are cleared away; the program itself minds their time.
const EXPIRE: Duration = Duration::from_secs(30);

/// Runs until the gate is dropped.
pub(super) fn run(shared: &Shared, on_drop: &impl Fn(&DropEvent)) {
    let mut events = Events { generation: u64::MAX, ring: None };
    let (mut looked, mut expired) = (Instant::now(), Instant::now());
    while !shared.stopping() {
        publish(shared);
        events.hand_on(shared, on_drop);
        if looked.elapsed() >= LOOK {
            looked = Instant::now();
            look_after(&mut shared.inner());
        }
        if expired.elapsed() >= EXPIRE {
            expired = Instant::now();
            expire(&mut shared.inner());
        }
        wait(shared, &events, LOOK.saturating_sub(looked.elapsed()));
    }
}

/// Sleeps until there is something to publish or to hand on.
fn wait(shared: &Shared, events: &Events, longest: Duration) {
    let mut fds = vec![PollFd::new(shared.told.as_fd(), PollFlags::POLLIN)];
    if let Some(ring) = &events.ring {
        fds.push(PollFd::new(ring.as_fd(), PollFlags::POLLIN));
    }
    let timeout = PollTimeout::try_from(longest + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
    // Interrupted or not: the caller looks at everything anyway.
    let _ = poll(&mut fds, timeout);
}

fn publish(shared: &Shared) {
    shared.told.awake();
    let pending = shared.told.take();
    if pending.is_empty() {
        return;
    }
    let mut inner = shared.inner();
    for (tenant, sessions) in pending.active {
        if let Err(error) = inner.program.set_active(tenant, sessions) {
            tracing::warn!(tenant, %error, "XDP gate: cannot publish a tenant's sessions");
        }
    }
    let news = !pending.learned.is_empty();
    for (source, (tenant, now)) in pending.learned {
        if let Err(error) = inner.learn(source, tenant, now) {
            tracing::debug!(%error, "XDP gate: cannot learn a source");
        }
    }
    if news && inner.known_sources == 0 {
        inner.known_sources = 1;
    }
}

fn expire(inner: &mut Inner) {
    match inner.program.expire(monotonic()) {
        Ok(left) => inner.known_sources = left,
        Err(error) => tracing::debug!(%error, "XDP gate: cannot clear expired sources"),
    }
}

/// Interfaces may vanish and return, and the host's addresses may change.
fn look_after(inner: &mut Inner) {
    if inner.holds {
        inner.take_back();
    }
    let id = inner.program.id();
    for interface in inner.interfaces.iter_mut().filter(|i| !i.given_up) {
        let Ok(attachment) = &interface.attachment else { continue };
        match attachment.state(id) {
            State::Attached => {}
            State::TakenOver => {
                tracing::info!(interface = interface.name, "a younger mksgate has taken the XDP gate over");
                interface.given_up = true;
            }
            State::Gone => {
                tracing::warn!(
                    interface = interface.name,
                    "the interface has vanished, and its XDP gate with it"
                );
                interface.attachment = Err(InterfaceProblem::Missing);
            }
        }
    }
    inner.attach_missing();
    if inner.policy.wants_local() {
        follow_addresses(inner);
    }
}

fn follow_addresses(inner: &mut Inner) {
    let published = current_plan(&inner.policy).and_then(|plan| {
        if plan.destinations == inner.program.plan().destinations {
            return Ok(());
        }
        tracing::info!(
            destinations = plan.destinations.len(),
            "XDP gate: this host's addresses have changed"
        );
        inner.publish(plan)
    });
    if let Err(error) = published {
        tracing::warn!(%error, "XDP gate: cannot follow this host's addresses");
    }
}

/// The ring buffer of the current program.
struct Events {
    generation: u64,
    ring: Option<RingBuf<MapData>>,
}

impl Events {
    fn hand_on(&mut self, shared: &Shared, on_drop: &impl Fn(&DropEvent)) {
        let name_of = |number| shared.inner().program.plan().name(number).to_owned();
        {
            let mut inner = shared.inner();
            if inner.generation != self.generation {
                self.generation = inner.generation;
                self.ring = inner.program.take_events();
            }
        }
        let Some(ring) = &mut self.ring else { return };
        while let Some(item) = ring.next() {
            if let Some(event) = DropEvent::read(&item, name_of) {
                on_drop(&event);
            }
        }
    }
}
