//! vCenters: asked for the host and the one-time ticket of a console, and what `/sdk` forwards for its clients.
//!
//! Sessions and connections are shared by all fronts and live on the control thread's runtime; a front hands its question
//! over and waits for the answer.

mod breaker;
pub mod config;
mod console;
mod endpoint;
mod error;
mod session;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use aws_lc_rs::digest::{SHA256, digest};
use rustls::crypto::CryptoProvider;
use tokio::runtime::Handle;
use zeroize::Zeroizing;

pub use config::Vcenter;
pub(crate) use console::resolve;
pub use console::{ConsoleKind, Wanted};
pub use endpoint::EndpointKey;
pub use error::VcenterError;
pub use session::{Owner, SessionKey};

use crate::config::TargetRange;
use crate::metrics::Samples;
use crate::protocol::soap::request::{self, Service};
use crate::protocol::soap::{Element, Message, Moref, SoapError, Version};
use crate::ticket::Target;
use endpoint::{Endpoint, body, lock};
use session::{Asked, Credentials, Session, With};

/// Where a tenant's consoles and vCenters may be.
pub type Reach<'a> = &'a [TargetRange];

/// How often sessions are looked after, unless they are to be logged out sooner.
const ROUND: Duration = Duration::from_secs(30);
/// Longest time for logging out of everything at the end.
const FAREWELL: Duration = Duration::from_secs(3);

/// Every vCenter the appliance talks to.
pub struct Vcenters {
    runtime: OnceLock<Handle>,
    pool: Arc<Pool>,
}

/// How one vCenter does, from what became of the real calls.
#[derive(Clone, Debug)]
pub struct Health {
    /// Name or address and port.
    pub address: String,
    /// The name of its `[vcenters]` section, where it has one.
    pub name: Option<String>,
    /// Calls made.
    pub calls: u64,
    /// Calls that were answered with a fault.
    pub faults: u64,
    /// Calls that failed.
    pub failures: u64,
    /// Whether the last call failed.
    pub failing: bool,
    /// Whether the circuit breaker refuses calls.
    pub refusing: bool,
    /// The last failure.
    pub last_error: Option<(SystemTime, String)>,
}

struct Pool {
    settings: ArcSwap<Settings>,
    endpoints: Mutex<HashMap<EndpointKey, Arc<Endpoint>>>,
    sessions: Mutex<HashMap<SessionKey, Arc<Session>>>,
}

struct Settings {
    vcenter: Vcenter,
    provider: Arc<CryptoProvider>,
}

/// What is asked for a client of `/sdk`.
pub struct Forward {
    /// The operation, checked.
    pub operation: Element,
    /// The client's API version, for answers that it understands; the server's newest where absent.
    pub version: Option<Version>,
    /// How long a long poll may take on top of a call.
    pub wait: Option<Duration>,
    /// Where the tenant's vCenters may be.
    pub reach: Vec<TargetRange>,
}

/// An answer for a client of `/sdk`.
pub struct Forwarded {
    /// The envelope as the vCenter sent it, well-formed and within the limits.
    pub text: String,
    /// What is in it.
    pub message: Message,
}

impl Vcenters {
    /// With these settings; nothing is asked yet.
    pub fn new(vcenter: Vcenter, provider: Arc<CryptoProvider>) -> Arc<Self> {
        let pool = Pool {
            settings: ArcSwap::from_pointee(Settings { vcenter, provider }),
            endpoints: Mutex::default(),
            sessions: Mutex::default(),
        };
        Arc::new(Self { runtime: OnceLock::new(), pool: Arc::new(pool) })
    }

    /// Takes this thread's runtime for its work and looks after sessions until the runtime ends.
    pub fn run_here(&self) {
        let handle = Handle::current();
        let pool = self.pool.clone();
        handle.spawn(async move {
            loop {
                let round = ROUND.min(pool.settings.load().vcenter.session_idle);
                tokio::time::sleep(round).await;
                pool.look_after().await;
            }
        });
        let _ = self.runtime.set(handle);
    }

    /// Other settings from now on. Limits of a vCenter that is known already stay.
    pub fn reload(&self, vcenter: Vcenter, provider: Arc<CryptoProvider>) {
        self.pool.settings.store(Arc::new(Settings { vcenter, provider }));
    }

    /// Logs out of every session, within a few seconds.
    pub async fn log_out(&self) {
        let sessions: Vec<_> = lock(&self.pool.sessions).drain().map(|(_, session)| session).collect();
        let settings = self.pool.settings.load_full();
        let all = async {
            let mut tasks = tokio::task::JoinSet::new();
            for session in sessions {
                let settings = settings.clone();
                tasks.spawn(async move { session.log_out(&settings.with(&everywhere())).await });
            }
            while tasks.join_next().await.is_some() {}
        };
        let _ = tokio::time::timeout(FAREWELL, all).await;
    }

    /// The host and the one-time ticket of a console, as a target that the other backends take.
    pub async fn console(&self, wanted: Wanted) -> Result<Target, VcenterError> {
        let pool = self.pool.clone();
        self.on_control(async move { pool.console(wanted).await }).await
    }

    /// A clone ticket of the account for this vCenter: for a cell that has no account there.
    pub async fn clone_ticket(
        &self,
        target: Target,
        reach: Vec<TargetRange>,
    ) -> Result<Zeroizing<String>, VcenterError> {
        let pool = self.pool.clone();
        self.on_control(async move {
            let (_, session) = pool.session(&target, None)?;
            let settings = pool.settings.load_full();
            let ask = |service: &Service| request::acquire_clone_ticket(&service.session_manager);
            let reply = session.ask(&settings.with(&reach), ask).await?;
            let answer = body("AcquireCloneTicket", reply.message)?;
            let ticket = request::returned("AcquireCloneTicket", &answer)?.map(|value| value.text.as_str());
            let ticket =
                ticket.filter(|ticket| !ticket.is_empty()).ok_or(SoapError::Missing("clone ticket"))?;
            Ok(Zeroizing::new(ticket.to_owned()))
        })
        .await
    }

    /// Opens the session of a client of `/sdk`; what it needs to know of the server.
    pub async fn open(
        &self,
        target: Target,
        client: u64,
        reach: Vec<TargetRange>,
    ) -> Result<(SessionKey, Service), VcenterError> {
        let pool = self.pool.clone();
        self.on_control(async move {
            let (key, session) = pool.session(&target, Some(client))?;
            let settings = pool.settings.load_full();
            let open = session.ensure(&settings.with(&reach)).await?;
            Ok((key, open.service))
        })
        .await
    }

    /// Asks for a client of `/sdk`, in its session.
    pub async fn forward(&self, key: SessionKey, asked: Forward) -> Result<Forwarded, VcenterError> {
        let pool = self.pool.clone();
        self.on_control(async move {
            let session = lock(&pool.sessions).get(&key).cloned().ok_or(VcenterError::NotRunning)?;
            let settings = pool.settings.load_full();
            session.touch(Instant::now());
            let Forward { operation, version, wait, reach } = asked;
            let version = version.map(|version| version.to_string());
            let asked =
                Asked { operation: |_: &Service| operation.clone(), version: version.as_deref(), wait };
            let reply = session.ask_as(&settings.with(&reach), asked).await?;
            session.touch(Instant::now());
            Ok(Forwarded { text: reply.text, message: reply.message })
        })
        .await
    }

    /// Powers the VM on, or resumes it, in the session of a client of `/sdk`, and waits until it is.
    pub async fn power_on(
        &self,
        key: SessionKey,
        vm: Moref,
        reach: Vec<TargetRange>,
    ) -> Result<(), VcenterError> {
        let pool = self.pool.clone();
        self.on_control(async move {
            let session = lock(&pool.sessions).get(&key).cloned().ok_or(VcenterError::NotRunning)?;
            let settings = pool.settings.load_full();
            console::power_on(&session, &settings.with(&reach), &vm).await
        })
        .await
    }

    /// Logs a client's session out. Nobody waits for it.
    pub fn close(&self, key: &SessionKey) {
        let Some(session) = lock(&self.pool.sessions).remove(key) else { return };
        let settings = self.pool.settings.load_full();
        if let Some(runtime) = self.runtime.get() {
            runtime.spawn(async move { session.log_out(&settings.with(&everywhere())).await });
        }
    }

    /// How each vCenter does.
    pub fn health(&self) -> Vec<Health> {
        let settings = self.pool.settings.load();
        let mut health: Vec<Health> =
            lock(&self.pool.endpoints).values().map(|endpoint| settings.health(endpoint)).collect();
        health.sort_by(|a, b| a.address.cmp(&b.address));
        health
    }

    /// The numbers for the metrics, by the names of the configuration; what only tickets name is summed up under "".
    pub fn sample(&self, out: &mut Samples) {
        let mut by_name: HashMap<String, [u64; 4]> = HashMap::from([(String::new(), [0; 4])]);
        for health in self.health() {
            let sums = by_name.entry(health.name.unwrap_or_default()).or_default();
            for (sum, value) in
                sums.iter_mut().zip([health.calls, health.faults, health.failures, health.refusing.into()])
            {
                *sum += value;
            }
        }
        for (name, [calls, faults, failures, refusing]) in &by_name {
            let labels: &[_] = &[("vcenter", name.as_str())];
            out.counter("mksgate_vcenter_calls", "Calls to vCenters", labels, *calls);
            out.counter(
                "mksgate_vcenter_faults",
                "Calls that a vCenter answered with a fault",
                labels,
                *faults,
            );
            out.counter("mksgate_vcenter_failures", "Calls to vCenters that failed", labels, *failures);
            let help = "vCenters whose circuit breaker refuses calls";
            out.gauge("mksgate_vcenter_breaker_open", help, labels, *refusing as i64);
        }
        let sessions = lock(&self.pool.sessions).values().filter(|session| session.is_open()).count();
        out.gauge("mksgate_vcenter_sessions", "Open sessions at vCenters", &[], sessions as i64);
    }

    async fn on_control<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, VcenterError>> + Send + 'static,
    ) -> Result<T, VcenterError> {
        let runtime = self.runtime.get().ok_or(VcenterError::NotRunning)?;
        // Not cancelled with its caller: a session that is just being opened would be lost at the other end.
        runtime.spawn(work).await.unwrap_or(Err(VcenterError::NotRunning))
    }
}

impl Settings {
    fn with<'a>(&'a self, reach: Reach<'a>) -> With<'a> {
        With { settings: &self.vcenter, provider: &self.provider, reach }
    }

    fn health(&self, endpoint: &Endpoint) -> Health {
        use std::sync::atomic::Ordering::Relaxed;
        let EndpointKey { host, port, .. } = &endpoint.key;
        let named = self.vcenter.accounts.iter().find(|(_, a)| a.host == *host && a.port == *port);
        Health {
            address: format!("{host}:{port}"),
            name: named.map(|(name, _)| name.clone()),
            calls: endpoint.counts.calls.load(Relaxed),
            faults: endpoint.counts.faults.load(Relaxed),
            failures: endpoint.counts.failures.load(Relaxed),
            failing: endpoint.breaker().failures() > 0,
            refusing: endpoint.breaker().is_open(),
            last_error: endpoint.last_error(),
        }
    }
}

impl Pool {
    /// The session that a ticket's target asks for, made if there is none.
    fn session(
        &self,
        target: &Target,
        client: Option<u64>,
    ) -> Result<(SessionKey, Arc<Session>), VcenterError> {
        let settings = self.settings.load();
        let port = target.port.unwrap_or(443);
        let (thumbprints, owner, credentials) = match &target.ticket {
            Some(ticket) => {
                let mut hash = [0; 32];
                hash.copy_from_slice(digest(&SHA256, ticket.as_bytes()).as_ref());
                let pins = thumbprints(target)?;
                (pins, Owner::Clone(hash), Credentials::CloneTicket(Zeroizing::new(ticket.clone())))
            }
            None => {
                let mut accounts = settings.vcenter.accounts.values();
                let account = accounts.find(|a| a.host == target.host && a.port == port);
                let account =
                    account.ok_or_else(|| VcenterError::NoAccount(format!("{}:{port}", target.host)))?;
                let owner = client.map_or(Owner::Account, Owner::Client);
                (account.thumbprints.clone(), owner, Credentials::Account(account.clone()))
            }
        };
        let endpoint = EndpointKey { host: target.host.clone(), port, thumbprints };
        let key = SessionKey { endpoint: endpoint.clone(), owner };
        let now = Instant::now();
        let mut sessions = lock(&self.sessions);
        let session = sessions.entry(key.clone()).or_insert_with(|| {
            let endpoint = self.endpoint(endpoint, &settings.vcenter);
            Arc::new(Session::new(endpoint, credentials, now))
        });
        session.touch(now);
        Ok((key, session.clone()))
    }

    fn endpoint(&self, key: EndpointKey, settings: &Vcenter) -> Arc<Endpoint> {
        lock(&self.endpoints)
            .entry(key.clone())
            .or_insert_with(|| Arc::new(Endpoint::new(key, settings)))
            .clone()
    }

    /// Sessions nobody used for long are logged out; the others are asked something, so that the server keeps them too.
    async fn look_after(&self) {
        let settings = self.settings.load_full();
        let now = Instant::now();
        let (mut stale, mut alive) = (Vec::new(), Vec::new());
        lock(&self.sessions).retain(|_, session| {
            let idle = now.saturating_duration_since(session.last_used());
            if idle >= settings.vcenter.session_idle {
                stale.push(session.clone());
                return false;
            }
            if idle >= ROUND && session.is_open() {
                alive.push(session.clone());
            }
            true
        });
        for session in stale {
            let settings = settings.clone();
            tokio::spawn(async move { session.log_out(&settings.with(&everywhere())).await });
        }
        for session in alive {
            let settings = settings.clone();
            tokio::spawn(async move {
                // One that is lost is opened again here where it can be, and not when a person waits for it.
                let keep = |_: &Service| request::current_time();
                let _ = session.ask(&settings.with(&everywhere()), keep).await;
            });
        }
        let used: std::collections::HashSet<_> =
            lock(&self.sessions).keys().map(|key| key.endpoint.clone()).collect();
        lock(&self.endpoints).retain(|key, _| {
            used.contains(key)
                || settings.vcenter.accounts.values().any(|a| a.host == key.host && a.port == key.port)
        });
    }
}

/// For what the appliance asks on its own account: the session was opened within somebody's targets.
fn everywhere() -> Vec<TargetRange> {
    ["0.0.0.0/0", "::/0"].iter().filter_map(|range| range.parse().ok()).collect()
}

fn thumbprints(target: &Target) -> Result<Vec<crate::tls::Thumbprint>, VcenterError> {
    if target.thumbprints.is_empty() {
        return Err(VcenterError::BadTarget(
            "has no thumbprint; without one the vCenter cannot be told from an impostor",
        ));
    }
    let parsed: Result<_, _> = target.thumbprints.iter().map(|text| text.parse()).collect();
    parsed.map_err(|_| VcenterError::BadTarget("has a thumbprint that is none"))
}
