//! The side of the process that goes.

use std::collections::HashMap;
use std::env;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::channel::Channel;
use super::heir::Heir;
use super::message::{PROTOCOL, SessionState, State, ToElder, ToHeir, since};
use super::{PATIENCE, UpgradeError, VARIABLE};
use crate::gate::Gate;
use crate::metrics::Door;
use crate::xdp::monotonic;

/// How long the last records of this process may take to reach the audit file before the other one writes there.
const FLUSH: Duration = Duration::from_secs(2);
/// Flows that move at once. Each of them stands still until all of them have arrived.
const AT_ONCE: usize = 8;

/// What the new process is to have besides the state.
pub(crate) struct Offered<'a> {
    /// The listening sockets.
    pub(crate) doors: Vec<(Door, BorrowedFd<'a>)>,
    /// The admin API's Unix socket.
    pub(crate) admin: BorrowedFd<'a>,
    /// The admin API's loopback port.
    pub(crate) metrics: Option<BorrowedFd<'a>>,
}

/// A process that would take over.
pub(crate) struct Candidate {
    channel: Arc<Channel>,
    /// What was started; it has detached the real process and ended, unless something is wrong.
    child: Child,
    pid: i32,
    version: String,
    heir: Option<Arc<Heir>>,
}

/// The process that took over.
pub(crate) struct Given {
    pub(crate) heir: Arc<Heir>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Candidate {
    /// Starts `program` with the arguments of this process and waits until it says who it is.
    pub(crate) fn start(program: &Path) -> Result<Self, UpgradeError> {
        let (channel, theirs) = Channel::pair()?;
        channel.set_patience(PATIENCE, PATIENCE)?;
        let mut arguments = env::args_os();
        let mut command = Command::new(program);
        if let Some(name) = arguments.next() {
            command.arg0(name);
        }
        // What the service manager said of descriptors and of the watchdog was meant for this process number.
        for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID"] {
            command.env_remove(name);
        }
        let child = command.args(arguments).env(VARIABLE, "detach").stdin(Stdio::from(theirs)).spawn();
        // The command holds the other end open as long as it lives, and the end of a failed process would go unnoticed.
        drop(command);
        let spawned = |error| UpgradeError::Spawn { program: program.display().to_string(), error };
        let child = child.map_err(spawned)?;
        let mut this = Self { channel: Arc::new(channel), child, pid: 0, version: String::new(), heir: None };
        match this.hear()? {
            ToElder::Hello { protocol: PROTOCOL, version, pid } => (this.version, this.pid) = (version, pid),
            ToElder::Hello { protocol, .. } => {
                return Err(UpgradeError::Protocol { theirs: protocol, ours: PROTOCOL });
            }
            _ => return Err(UpgradeError::Unexpected),
        }
        Ok(this)
    }

    /// Its process number.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Its version.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Gives it the sockets and waits until it could serve.
    pub(crate) fn prepare(&mut self, gate: &Gate, offered: &Offered<'_>) -> Result<(), UpgradeError> {
        let age = u64::try_from(gate.engines.epoch().elapsed().as_nanos()).unwrap_or(u64::MAX);
        let offer = ToHeir::Offer {
            protocol: PROTOCOL,
            epoch: monotonic().saturating_sub(age),
            doors: offered.doors.iter().map(|(door, _)| *door).collect(),
            metrics: offered.metrics.is_some(),
        };
        let mut files: Vec<BorrowedFd<'_>> = offered.doors.iter().map(|(_, fd)| *fd).collect();
        files.push(offered.admin);
        files.extend(offered.metrics);
        self.channel.send(&offer, &[], &files)?;
        match self.hear()? {
            ToElder::Prepared => Ok(()),
            _ => Err(UpgradeError::Unexpected),
        }
    }

    /// Gives it everything that counts. From now on nothing here opens a ticket; [`Candidate::abandon`] takes that back.
    pub(crate) fn entrust(&mut self, gate: &Arc<Gate>) -> Result<(), UpgradeError> {
        let elders = gate.succession.elders.pass_on().ok_or(UpgradeError::Busy)?;
        gate.tickets.hold_journal(true);
        let heir = Arc::new(Heir::new(self.channel.clone()));
        self.heir = Some(heir.clone());
        let state = gate.succession.become_elder(heir, || state(gate, elders.len()));
        if !gate.audit.flush(FLUSH) {
            tracing::warn!("audit records may follow those of the new process");
        }
        self.channel.send(&ToHeir::State(Box::new(state)), &[], &[])?;
        for (channel, sessions) in &elders {
            self.channel.send(&ToHeir::Elder { sessions: sessions.clone() }, &[], &[channel.as_fd()])?;
        }
        match self.hear()? {
            ToElder::Took => Ok(()),
            _ => Err(UpgradeError::Unexpected),
        }
    }

    /// Puts it in charge.
    pub(crate) fn yours(mut self, gate: &Arc<Gate>) -> Result<Given, (Self, UpgradeError)> {
        let Some(heir) = self.heir.clone() else { return Err((self, UpgradeError::Unexpected)) };
        if let Err(error) = self.channel.send(&ToHeir::Yours, &[], &[]) {
            return Err((self, error.into()));
        }
        match heir.follow(gate) {
            Ok(threads) => {
                gate.succession.elders.forget();
                gate.tickets.leave_journal();
                let _ = self.child.wait();
                Ok(Given { heir, threads: Mutex::new(threads) })
            }
            Err(error) => Err((self, error.into())),
        }
    }

    /// It will not be: this process does everything itself again. Closing the socket ends the other one.
    pub(crate) fn abandon(mut self, gate: &Arc<Gate>) {
        if let Some(heir) = self.heir.take() {
            gate.succession.set_heir(None);
            heir.give_up(gate);
            gate.succession.elders.hear_again(gate);
            gate.tickets.hold_journal(false);
        }
        end(&mut self.child);
    }

    fn hear(&mut self) -> Result<ToElder, UpgradeError> {
        match self.channel.receive::<ToElder>() {
            Ok(Some(message)) => match message.head {
                ToElder::Failed { why } => Err(UpgradeError::Refused(why)),
                head => Ok(head),
            },
            Ok(None) => Err(UpgradeError::Gone),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Err(UpgradeError::Late),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Ends what was started, if it has not detached the real process and ended long ago.
fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

impl Given {
    /// Sends what is left to be said, then ends.
    pub(crate) fn finish(&self) {
        self.heir.finish();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the hand-over panicked");
            }
        }
    }

    /// Sends the flows that can move, a few at a time; their sessions are the other process's. Blocks until they are there.
    pub(crate) fn move_flows(&self, gate: &Gate) {
        while !self.is_gone() {
            let mut some = gate.engines.export_some(AT_ONCE).peekable();
            if some.peek().is_none() || self.heir.move_flows(gate, some) {
                return;
            }
        }
    }

    /// Whether the other process is gone.
    pub(crate) fn is_gone(&self) -> bool {
        self.heir.is_gone()
    }

    /// Nobody is on his way to a console of this process any more, and every flow that can move has.
    pub(crate) fn moved(&self) {
        self.heir.tell(ToHeir::Moved);
    }
}

/// Written while nothing of it changes.
fn state(gate: &Gate, elders: usize) -> State {
    let epoch = gate.engines.epoch();
    let sessions = gate.registry.list();
    let mut by_user: HashMap<(&str, &str), u32> = HashMap::new();
    let mut by_ticket: HashMap<&str, u32> = HashMap::new();
    for session in &sessions {
        *by_user.entry((&session.tenant, &session.user)).or_default() += 1;
        *by_ticket.entry(&session.jti).or_default() += 1;
    }
    let (seats, buckets) = gate.tenants.export();
    let pending = seats.into_iter().filter_map(|(tenant, user, n)| {
        let here = by_user.get(&(&*tenant, &*user)).copied().unwrap_or(0);
        (n > here).then(|| (tenant, user, n - here))
    });
    let pending_uses = gate.tickets.live().into_iter().filter_map(|(jti, n)| {
        let here = by_ticket.get(&*jti).copied().unwrap_or(0);
        (n > here).then(|| (jti, n - here))
    });
    State {
        next_id: gate.registry.peek_id(),
        pending: pending.collect(),
        pending_uses: pending_uses.collect(),
        buckets: buckets.into_iter().map(|(name, full)| (name, since(epoch, full))).collect(),
        tickets: gate.tickets.export(),
        xdp: gate.xdp.estate(),
        sessions: sessions.iter().map(|session| SessionState::new(session, epoch)).collect(),
        elders,
    }
}
