//! The keeper: a process of its own that holds the gate, so that the one at the network needs no privilege for it.
//!
//! It has the program, its maps and its links, and does what the proxy in charge says ([`message`](super::message)). Proxies
//! come and go: over an upgrade, a restart or a crash the gate stays as it is, and is gone when nobody has come for it.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    os::{fd::AsFd as _, unix::net::UnixListener, unix::net::UnixStream},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use mksgate_common::map::SourceKey;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        socket::{getsockopt, sockopt::PeerCredentials},
    },
    unistd::{Uid, User},
};

use super::{
    Enabled, Gate, GateError, GateStatus, Left, Policy, Store, XdpConfig,
    charter::{Charter, Wanted},
    drops::Drops,
    gate::monotonic,
    message::{Answer, Question, receive, send},
};

/// Connections at once: the proxy in charge, a younger one, and whoever looks.
const GUESTS: usize = 8;
/// How long a connection may be silent, or not listen. The proxy in charge speaks every second.
const PATIENCE: Duration = Duration::from_secs(30);
/// Sources of one answer.
const MAX_SOURCES: usize = 10_000;

/// What all connections share.
pub struct Keeper {
    listener: UnixListener,
    user: User,
    charter: Charter,
    /// How long the gate stays without a proxy.
    linger: Duration,
    kept: Mutex<Kept>,
    drops: Arc<Drops>,
    /// The proxy in charge is gone.
    orphaned: EventFd,
    guests: AtomicUsize,
    /// Of connections, so far.
    number: AtomicU64,
}

struct Kept {
    gate: Option<Arc<Gate>>,
    /// The connection in charge.
    leader: Option<u64>,
    /// Since when there is none.
    alone: Option<Instant>,
    /// The last refusal that was logged.
    said: String,
    /// What the keeper after this one gets.
    store: Store,
}

impl Keeper {
    /// Serves this user, and root, on `listener`; what they may have stands in the configuration file.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn new(
        listener: UnixListener,
        user: User,
        configuration: &Path,
        linger: Duration,
        store: Store,
    ) -> io::Result<Arc<Keeper>> {
        let kept = Kept { gate: None, leader: None, alone: None, said: String::new(), store };
        listener.set_nonblocking(true)?;
        Ok(Arc::new(Keeper {
            listener,
            user,
            charter: Charter::new(configuration),
            linger,
            kept: Mutex::new(kept),
            drops: Arc::default(),
            orphaned: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            guests: AtomicUsize::new(0),
            number: AtomicU64::new(0),
        }))
    }

    /// Goes on with the gate of the keeper before this one, as if its proxy had just gone.
    pub fn go_on(&self, left: Left) {
        let drops = self.drops.clone();
        let mut kept = self.lock();
        match left.gate(move |event| drops.add(event)) {
            Ok(None) => {}
            Ok(Some(gate)) => {
                let GateStatus { program, interfaces, known_sources, .. } = gate.status();
                let on = interfaces.iter().filter(|interface| interface.mode != "off").count();
                tracing::info!(program, on, known_sources, "goes on with the XDP gate of the keeper before");
                (kept.gate, kept.alone) = (Some(Arc::new(gate)), Some(Instant::now()));
            }
            Err(error) => {
                tracing::warn!(%error, "what the keeper before has left is of no use: the XDP gate starts afresh");
            }
        }
        kept.keep();
    }

    /// Serves for ever.
    ///
    /// # Errors
    /// The listener's.
    pub fn serve(self: &Arc<Self>) -> io::Result<()> {
        loop {
            self.wait()?;
            self.leave_what_nobody_wants();
            match self.listener.accept() {
                Ok((stream, _)) => self.receive(stream),
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock
                            | io::ErrorKind::Interrupted
                            | io::ErrorKind::ConnectionAborted
                    ) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn wait(&self) -> io::Result<()> {
        let alone = self.lock().alone;
        let timeout = match alone {
            Some(since) => {
                // A millisecond late rather than awake for nothing.
                let left = self.linger.saturating_sub(since.elapsed()) + Duration::from_millis(1);
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            }
            None => PollTimeout::NONE,
        };
        let mut fds = [
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.orphaned.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        // Empty already is fine.
        let _ = self.orphaned.read();
        Ok(())
    }

    /// Opens the gate when its proxy has been gone for too long: nobody publishes how full a tenant is any more.
    fn leave_what_nobody_wants(&self) {
        let mut kept = self.lock();
        if kept.alone.is_none_or(|since| since.elapsed() < self.linger) {
            return;
        }
        kept.alone = None;
        let Some(gate) = kept.gate.take() else { return };
        gate.detach();
        kept.keep();
        drop(kept);
        tracing::warn!(
            seconds = self.linger.as_secs_f32(),
            "the proxy is gone and none has come after it: XDP gate detached"
        );
    }

    fn receive(self: &Arc<Self>, stream: UnixStream) {
        let Ok(peer) = getsockopt(&stream, PeerCredentials) else { return };
        let uid = Uid::from_raw(peer.uid());
        let ready =
            stream.set_read_timeout(Some(PATIENCE)).and_then(|()| stream.set_write_timeout(Some(PATIENCE)));
        if ready.is_err() {
            return;
        }
        if !uid.is_root() && uid != self.user.uid {
            tracing::warn!(
                uid = uid.as_raw(),
                pid = peer.pid(),
                "refused: neither root nor the proxy's user"
            );
            let why = format!("uid {uid} may not: this keeper serves root and the user {}", self.user.name);
            // It fits into the socket's buffer; who does not read it has nothing to ask.
            let _ = send(&stream, &Answer::Refused { why, no_interface: false });
            return;
        }
        if self.guests.fetch_add(1, Ordering::AcqRel) >= GUESTS {
            self.guests.fetch_sub(1, Ordering::AcqRel);
            tracing::warn!(pid = peer.pid(), most = GUESTS, "refused: too many connections");
            return;
        }
        let (keeper, number) = (self.clone(), self.number.fetch_add(1, Ordering::Relaxed));
        let attend = move || {
            keeper.attend(number, &stream);
            keeper.guests.fetch_sub(1, Ordering::AcqRel);
        };
        if let Err(error) = std::thread::Builder::new().name("guest".into()).spawn(attend) {
            self.guests.fetch_sub(1, Ordering::AcqRel);
            tracing::error!(%error, "no thread for a connection");
        }
    }

    /// Answers until the other side is gone.
    fn attend(&self, number: u64, stream: &UnixStream) {
        loop {
            let answer = match receive(stream) {
                Ok(Some(question)) => self.answer(number, question),
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "a connection is closed: not understood");
                    let why = error.to_string();
                    // It is gone, or learns why.
                    let _ = send(stream, &Answer::Refused { why, no_interface: false });
                    break;
                }
            };
            if send(stream, &answer).is_err() {
                break;
            }
        }
        let mut kept = self.lock();
        if kept.leader == Some(number) {
            kept.leader = None;
            kept.alone = Some(Instant::now());
            tracing::info!("the proxy in charge has gone; the XDP gate waits for the next");
            // A full eventfd wakes as well, and it cannot fail otherwise.
            let _ = self.orphaned.write(1);
        }
    }

    fn answer(&self, number: u64, question: Question) -> Answer {
        let (gate, leads) = {
            let kept = self.lock();
            (kept.gate.clone(), kept.leader == Some(number))
        };
        match (question, gate) {
            (Question::Lead { config, policy, active }, _) => self.led(number, *config, *policy, active),
            (Question::Publish { .. } | Question::Anything, _) if !leads => Answer::Replaced,
            (Question::Publish { active, learned }, Some(gate)) => {
                active.into_iter().for_each(|(tenant, sessions)| gate.set_active(tenant, sessions));
                let now = monotonic();
                learned.into_iter().for_each(|(key, tenant)| gate.learn_key(SourceKey(key), tenant, now));
                Answer::Done
            }
            (Question::Anything, Some(gate)) => {
                // Interfaces come and go, and so do programs with the host's addresses.
                self.lock().keep();
                let drops = self.drops.take().into_iter().map(Into::into).collect();
                Answer::News { drops, problem: gate.problem() }
            }
            (Question::Look, None) => Answer::Seen(None),
            (Question::Look, Some(gate)) => match gate.counters() {
                Ok(mut counted) => {
                    counted.events_lost += self.drops.lost();
                    Answer::Seen(Some(Box::new((gate.status(), counted))))
                }
                Err(error) => refused(&error),
            },
            (Question::Loudest { count }, Some(gate)) => {
                gate.top_sources(count.min(MAX_SOURCES)).map_or_else(|error| refused(&error), Answer::Loudest)
            }
            (Question::Loudest { .. }, None) => Answer::Loudest(Vec::new()),
            (Question::Publish { .. } | Question::Anything, None) => {
                refused(&GateError::Kept("there is no gate any more".into()))
            }
        }
    }

    fn led(&self, number: u64, config: XdpConfig, policy: Policy, active: Option<Vec<(u32, u32)>>) -> Answer {
        let mut kept = self.lock();
        let led = config
            .check()
            .map_err(|error| GateError::Kept(format!("{}: {error}", error.key)))
            .and_then(|()| self.allowed(kept.gate.as_deref(), &config, &policy))
            .and_then(|()| kept.lead(number, config, policy, active, &self.drops));
        kept.keep();
        match led {
            Ok(()) => {
                kept.said.clear();
                if kept.leader.replace(number) != Some(number) {
                    tracing::info!(again = kept.alone.take().is_some(), "a proxy is in charge");
                }
                Answer::Done
            }
            Err(error) => {
                let why = error.to_string();
                if kept.said != why {
                    tracing::warn!(%error, "refused: the gate cannot be as the proxy wants it");
                    kept.said = why;
                }
                refused(&error)
            }
        }
    }

    fn allowed(&self, gate: Option<&Gate>, config: &XdpConfig, policy: &Policy) -> Result<(), GateError> {
        let wanted = Wanted { config, policy };
        match gate.map(Gate::in_force) {
            Some((config, policy, on)) => {
                let is = Wanted { config: &config, policy: &policy };
                self.charter.allows(wanted, Some(is), &on)
            }
            None => self.charter.allows(wanted, None, &BTreeSet::new()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // A panic elsewhere leaves it whole: each change is one assignment.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// The next keeper gets what this one has now.
    fn keep(&mut self) {
        self.store.keep(self.gate.as_deref());
    }

    /// Has the gate as the proxy wants it: as it is with another policy, or a new one.
    fn lead(
        &mut self,
        number: u64,
        config: XdpConfig,
        policy: Policy,
        active: Option<Vec<(u32, u32)>>,
        drops: &Arc<Drops>,
    ) -> Result<(), GateError> {
        // A reload changes nothing that waits for a restart; another process is one.
        let same_process = self.leader == Some(number);
        let required = config.enabled == Enabled::Required && !same_process;
        let numbers: Vec<u32> = policy.tenants.iter().map(|tenant| tenant.number).collect();
        let gate = match self.gate.clone() {
            Some(gate) => {
                if same_process {
                    gate.update(config, policy)?
                } else {
                    gate.renew(config, policy)?
                }
                if let Some((name, why)) = gate.problem().filter(|_| required) {
                    return Err(GateError::Kept(format!("XDP on {name}: {why}")));
                }
                gate
            }
            None => {
                let drops = drops.clone();
                let gate = Arc::new(Gate::start(config, policy, move |event| drops.add(event))?);
                self.gate = Some(gate.clone());
                gate
            }
        };
        if let Some(active) = active {
            let active: HashMap<u32, u32> = active.into_iter().collect();
            let sessions = |number| active.get(&number).copied().unwrap_or(0);
            numbers.into_iter().for_each(|number| gate.set_active(number, sessions(number)));
        }
        Ok(())
    }
}

fn refused(error: &GateError) -> Answer {
    let why = match error {
        // Who asked says whose word it is.
        GateError::Kept(why) => why.clone(),
        error => error.to_string(),
    };
    Answer::Refused { why, no_interface: matches!(error, GateError::NoInterface) }
}
