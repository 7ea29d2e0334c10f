//! The gate in a keeper's process, as the proxy has it: told by this thread, found again when the keeper was away.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    os::{fd::AsFd as _, unix::net::UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    GateError, LoudSource, Policy, XdpConfig,
    ask::{Seen, ask, connect, look_at, once, refusal, silent},
    counters::{DropEvent, source_key},
    message::{Answer, Dropped, Question},
    told::Told,
};

/// How long the keeper may take to start the gate, or to change it.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is asked what there is to tell.
const ASK: Duration = Duration::from_secs(1);
/// From the first to the longest pause between two attempts at reaching it.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Pause after it has refused: what is wrong there is not gone in a moment.
const REFUSED: Duration = Duration::from_secs(5);

/// The gate at a keeper. Dropping it ends its thread; the keeper waits a while for the next proxy.
pub struct Remote {
    shared: Arc<Shared>,
    worker: Option<JoinHandle<()>>,
}

struct Shared {
    socket: PathBuf,
    told: Told,
    link: Mutex<Link>,
    state: Mutex<State>,
    stop: AtomicBool,
}

/// What is to be there, and the connection by which this process is in charge of it.
struct Link {
    stream: Option<UnixStream>,
    config: XdpConfig,
    policy: Policy,
    /// Sessions as last told, by tenant's number.
    active: HashMap<u32, u32>,
    /// All of these are to be told, changed or not.
    all: bool,
    /// An older process is in charge yet: what this one counts counts nothing.
    heir: bool,
    /// A younger one is, and this one leaves it to that.
    retired: bool,
    /// It does not.
    holds: bool,
    /// When to try again.
    next: Instant,
    pause: Duration,
}

/// How it stands, for those who cannot wait for the link.
#[derive(Default)]
struct State {
    /// Why the gate is not this process's.
    away: Option<String>,
    /// An interface without it, and why.
    problem: Option<(String, String)>,
}

impl Remote {
    /// Takes charge of the gate; where that fails, the second value says why, and it is tried again for ever. An `heir`
    /// leaves the tenants' sessions as the older process has told them until [`Remote::in_charge`].
    ///
    /// # Errors
    /// There is no thread for it.
    pub fn start(
        socket: &Path,
        config: XdpConfig,
        policy: Policy,
        heir: bool,
        on_drop: impl Fn(&DropEvent) + Send + 'static,
    ) -> Result<(Remote, Result<(), GateError>), GateError> {
        let link = Link {
            stream: None,
            config,
            policy,
            active: HashMap::new(),
            all: false,
            heir,
            retired: false,
            holds: false,
            next: Instant::now(),
            pause: PAUSES.0,
        };
        let shared = Arc::new(Shared {
            socket: socket.to_owned(),
            told: Told::new()?,
            link: Mutex::new(link),
            state: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let first = shared.lead(&mut shared.link());
        if let Err(error) = &first {
            shared.state().away = Some(error.to_string());
        }
        let for_worker = shared.clone();
        let worker = std::thread::Builder::new()
            .name("xdp".into())
            .spawn(move || run(&for_worker, &on_drop))
            .map_err(|error| GateError::Io { what: "starting its thread", error })?;
        Ok((Remote { shared, worker: Some(worker) }, first))
    }

    /// See [`Gate::set_active`](super::Gate::set_active).
    pub fn set_active(&self, tenant: u32, sessions: u32) {
        self.shared.told.set_active(tenant, sessions);
    }

    /// See [`Gate::learn`](super::Gate::learn).
    pub fn learn(&self, source: IpAddr, tenant: u32) {
        self.shared.told.learn(source_key(source), tenant, 0);
    }

    /// The older process has handed everything over: sessions are told from now on, all of them at first.
    pub fn in_charge(&self) {
        let mut link = self.shared.link();
        (link.heir, link.all) = (false, true);
        drop(link);
        self.shared.told.wake();
    }

    /// A younger process may take charge.
    pub fn let_go(&self) {
        self.shared.link().holds = false;
    }

    /// The younger process did not live to look after it.
    pub fn take_back(&self) {
        let mut link = self.shared.link();
        (link.stream, link.retired, link.holds, link.next) = (None, false, true, Instant::now());
        drop(link);
        self.shared.told.wake();
    }

    /// See [`Gate::update`](super::Gate::update). Without a keeper it comes into force when one is back.
    ///
    /// # Errors
    /// The keeper's refusal; what was in force stays.
    pub fn update(&self, config: XdpConfig, policy: Policy) -> Result<(), GateError> {
        let mut link = self.shared.link();
        if let Some(stream) = &link.stream {
            let lead =
                Question::Lead { config: config.clone().into(), policy: policy.clone().into(), active: None };
            match ask(stream, &lead) {
                Ok(Answer::Refused { why, no_interface }) => return Err(refusal(why, no_interface)),
                Ok(_) => {}
                // Whatever is amiss, the thread begins anew.
                Err(_) => link.stream = None,
            }
        }
        (link.config, link.policy) = (config, policy);
        if link.stream.is_none() {
            // What was refused may be well now.
            link.next = Instant::now();
            self.shared.told.wake();
        }
        Ok(())
    }

    /// Where it is and what it has counted; `None`: the keeper has none.
    ///
    /// # Errors
    /// The keeper does not answer.
    pub fn look(&self) -> Result<Seen, GateError> {
        look_at(&self.shared.socket)
    }

    /// The loudest sources; none without a keeper.
    pub fn top_sources(&self, count: usize) -> Vec<LoudSource> {
        match once(&self.shared.socket, &Question::Loudest { count }) {
            Ok(Answer::Loudest(sources)) => sources,
            _ => Vec::new(),
        }
    }

    /// Why the gate is not this process's.
    pub fn away(&self) -> Option<String> {
        self.shared.state().away.clone()
    }

    /// An interface without it, and why.
    pub fn problem(&self) -> Option<(String, String)> {
        self.shared.state().problem.clone()
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.told.wake();
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

/// Runs until the gate is dropped.
fn run(shared: &Shared, on_drop: &impl Fn(&DropEvent)) {
    let mut ask_at = Instant::now() + ASK;
    while !shared.stop.load(Ordering::Acquire) {
        shared.told.awake();
        let mut link = shared.link();
        if link.stream.is_none() && !link.retired && link.next <= Instant::now() {
            shared.try_to_lead(&mut link);
        }
        shared.publish(&mut link);
        let mut drops = Vec::new();
        if ask_at <= Instant::now() {
            ask_at = Instant::now() + ASK;
            drops = shared.hear(&mut link);
        }
        // Another descriptor of the same connection: who updates meanwhile has the link.
        let stream = link.stream.as_ref().and_then(|stream| stream.try_clone().ok());
        let until = if link.stream.is_some() || link.retired { ask_at } else { link.next };
        drop(link);
        drops.into_iter().filter_map(Dropped::event).for_each(|event| on_drop(&event));
        if sleep(&shared.told, stream.as_ref(), until) {
            ask_at = Instant::now();
        }
    }
}

/// Until there is something to tell, or the keeper is gone: then true.
fn sleep(told: &Told, stream: Option<&UnixStream>, until: Instant) -> bool {
    let mut fds = vec![PollFd::new(told.as_fd(), PollFlags::POLLIN)];
    if let Some(stream) = stream {
        // Answers are awaited where they are asked for; here only the end can come.
        fds.push(PollFd::new(stream.as_fd(), PollFlags::empty()));
    }
    // A millisecond late rather than awake for nothing.
    let longest = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
    // Interrupted or not: the caller looks at everything anyway.
    let _ = poll(&mut fds, PollTimeout::try_from(longest).unwrap_or(PollTimeout::MAX));
    fds.get(1).is_some_and(|stream| stream.any().unwrap_or(true))
}

impl Shared {
    fn try_to_lead(&self, link: &mut Link) {
        match self.lead(link) {
            Ok(()) => {
                let was_away = self.state().away.take();
                let keeper = self.socket.display();
                match was_away {
                    Some(why) => tracing::info!(%keeper, why, "XDP gate on again, at its keeper"),
                    None => tracing::info!(%keeper, "in charge of the XDP gate again"),
                }
            }
            Err(error) => {
                let refused = !matches!(error, GateError::Keeper { .. });
                link.next = Instant::now() + if refused { REFUSED } else { link.pause };
                link.pause = (link.pause * 2).min(PAUSES.1);
                self.away(&error);
            }
        }
    }

    /// Says once why the gate is not there.
    fn away(&self, error: &GateError) {
        let why = error.to_string();
        let mut state = self.state();
        // A keeper that is away fails in several ways one after the other, and comes back in none.
        let silent = matches!(error, GateError::Keeper { .. });
        if state.away.as_ref().is_none_or(|before| !silent && *before != why) {
            tracing::warn!(why, "XDP gate off: floods are shed later, by the limits in userspace");
        }
        state.away = Some(why);
    }

    fn lead(&self, link: &mut Link) -> Result<(), GateError> {
        let active = (!link.heir).then(|| link.active.iter().map(|(number, n)| (*number, *n)).collect());
        let (config, policy) = (link.config.clone().into(), link.policy.clone().into());
        let lead = || {
            let stream = connect(&self.socket, PATIENCE)?;
            ask(&stream, &Question::Lead { config, policy, active }).map(|answer| (stream, answer))
        };
        match lead().map_err(|error| self.silent(error))? {
            (stream, Answer::Done) => {
                (link.stream, link.pause) = (Some(stream), PAUSES.0);
                Ok(())
            }
            (_, Answer::Refused { why, no_interface }) => Err(refusal(why, no_interface)),
            _ => Err(GateError::Kept("another answer than was asked for".into())),
        }
    }

    /// Tells what has changed. What cannot be told waits: sessions for the next connection, sources for their next ticket.
    fn publish(&self, link: &mut Link) {
        if link.stream.is_none() {
            return;
        }
        let pending = self.told.take();
        link.active.extend(&pending.active);
        if link.heir {
            return;
        }
        let active: Vec<(u32, u32)> = match std::mem::take(&mut link.all) {
            true => link.active.iter().map(|(number, n)| (*number, *n)).collect(),
            false => pending.active.into_iter().collect(),
        };
        let learned: Vec<_> = pending.learned.into_iter().map(|(key, (tenant, _))| (key.0, tenant)).collect();
        if !active.is_empty() || !learned.is_empty() {
            self.say(link, &Question::Publish { active, learned });
        }
    }

    /// What there is to tell; the drops meanwhile.
    fn hear(&self, link: &mut Link) -> Vec<Dropped> {
        match self.say(link, &Question::Anything) {
            Some(Answer::News { drops, problem }) => {
                self.state().problem = problem;
                drops
            }
            _ => Vec::new(),
        }
    }

    /// Asks as the one in charge. Whoever is that no more, or has nobody to ask, gives the connection up.
    fn say(&self, link: &mut Link, question: &Question) -> Option<Answer> {
        match ask(link.stream.as_ref()?, question) {
            Ok(Answer::Replaced) => {
                link.stream = None;
                link.retired = !link.holds;
                link.next = Instant::now() + ASK;
                tracing::info!(back = link.holds, "a younger mksgate has taken the XDP gate over");
                None
            }
            Ok(Answer::Refused { why, no_interface }) => {
                link.stream = None;
                link.next = Instant::now();
                self.away(&refusal(why, no_interface));
                None
            }
            Ok(answer) => Some(answer),
            Err(error) => {
                // The next keeper may have gone on with the gate before anybody misses it; if there is none, that is said.
                tracing::debug!(%error, "the XDP gate's keeper has gone");
                link.stream = None;
                link.next = Instant::now();
                None
            }
        }
    }

    fn silent(&self, error: io::Error) -> GateError {
        silent(&self.socket, error)
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
