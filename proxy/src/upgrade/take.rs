//! The side of the process that takes over.

use std::env;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::channel::{Channel, Message};
use super::elder::{Elder, adopt};
use super::message::{PROTOCOL, State, ToElder, ToHeir, at};
use super::{PATIENCE, UpgradeError, VARIABLE};
use crate::config::Listen;
use crate::front::Listener;
use crate::gate::Gate;
use crate::metrics::Door;
use crate::sys;
use crate::ticket::journal::Start;
use crate::xdp::monotonic;

/// What the process before this one gives.
pub struct Inheritance {
    channel: Arc<Channel>,
    epoch: Instant,
    doors: Vec<Listener>,
    admin: Option<UnixListener>,
    metrics: Option<TcpListener>,
}

/// The first start of an upgrade: starts the same program once more and returns true; the caller ends. So the real process
/// is a child of the service manager, which then notices its end, and not of the process that goes.
pub fn detach() -> io::Result<bool> {
    if env::var_os(VARIABLE).is_none_or(|what| what != "detach") {
        return Ok(false);
    }
    let mut arguments = env::args_os();
    let mut command = Command::new(env::current_exe()?);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    command.args(arguments).env(VARIABLE, "take").stdin(Stdio::inherit()).spawn()?;
    Ok(true)
}

impl Inheritance {
    /// What an older process offers, if this one was started by it. Takes the standard input: to be called once.
    pub fn offered() -> Result<Option<Self>, UpgradeError> {
        if env::var_os(VARIABLE).is_none_or(|what| what != "take") {
            return Ok(None);
        }
        let channel = Channel::new(sys::take_stdin()?);
        channel.set_patience(PATIENCE, PATIENCE)?;
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let pid = i32::try_from(std::process::id()).map_err(io::Error::other)?;
        channel.send(&ToElder::Hello { protocol: PROTOCOL, version, pid }, &[], &[])?;
        let Message { head, files, .. } = hear(&channel)?;
        let ToHeir::Offer { protocol, epoch, doors, metrics } = head else {
            return Err(UpgradeError::Unexpected);
        };
        if protocol != PROTOCOL {
            return Err(UpgradeError::Protocol { theirs: protocol, ours: PROTOCOL });
        }
        let age = Duration::from_nanos(monotonic().saturating_sub(epoch));
        let mut files = files.into_iter();
        let listener = |(door, socket): (&Door, OwnedFd)| Listener { door: *door, socket: socket.into() };
        Ok(Some(Self {
            channel: Arc::new(channel),
            epoch: Instant::now().checked_sub(age).unwrap_or_else(Instant::now),
            doors: doors.iter().zip(files.by_ref()).map(listener).collect(),
            admin: files.next().map(UnixListener::from),
            metrics: files.next().filter(|_| metrics).map(TcpListener::from),
        }))
    }

    /// When the clock of the older process's flow engines began.
    pub fn epoch(&self) -> Instant {
        self.epoch
    }

    /// The listening sockets that the configuration still names. Port 0 stands for whatever port there was.
    pub fn listeners(&mut self, listen: &Listen) -> Vec<Listener> {
        let named = |door: Door, held: SocketAddr| {
            let list = if door == Door::Authd { &listen.authd } else { &listen.tls };
            list.iter().any(|wanted| means(*wanted, held))
        };
        let doors = std::mem::take(&mut self.doors).into_iter();
        let (kept, dropped): (Vec<_>, Vec<_>) = doors
            .filter_map(|listener| Some((listener.socket.local_addr().ok()?, listener)))
            .partition(|(held, listener)| named(listener.door, *held));
        for (address, _) in dropped {
            tracing::warn!(%address, "no longer in [listen]: nobody is served there any more");
        }
        kept.into_iter().map(|(_, listener)| listener).collect()
    }

    /// The sockets of the admin API.
    pub fn admin(&mut self) -> (Option<UnixListener>, Option<TcpListener>) {
        (self.admin.take(), self.metrics.take())
    }

    /// Says why this process will not serve.
    pub fn failed(&self, why: &str) {
        // The other one goes on whether it hears this or not.
        let _ = self.channel.send(&ToElder::Failed { why: why.to_owned() }, &[], &[]);
    }

    /// Says that this process could serve, and takes over everything that counts. Returns when it is in charge.
    pub fn take(&self, gate: &Arc<Gate>) -> Result<(), UpgradeError> {
        self.channel.send(&ToElder::Prepared, &[], &[])?;
        let Message { head, .. } = hear(&self.channel)?;
        let ToHeir::State(state) = head else { return Err(UpgradeError::Unexpected) };
        let elders = self.import(gate, *state)?;
        self.channel.send(&ToElder::Took, &[], &[])?;
        let ToHeir::Yours = hear(&self.channel)?.head else { return Err(UpgradeError::Unexpected) };
        if let Some(path) = &gate.config.load().tickets.journal {
            gate.tickets.keep_journal(path, Start::of_this_process(true)).map_err(io::Error::other)?;
        }
        for elder in elders {
            gate.succession.elders.hear(gate, elder)?;
        }
        for session in gate.registry.list() {
            if let Some(reason) = gate.no_longer_welcome(&session) {
                gate.close(session.id, reason);
            }
        }
        Ok(())
    }

    fn import(&self, gate: &Arc<Gate>, state: State) -> Result<Vec<Arc<Elder>>, UpgradeError> {
        let epoch = gate.engines.epoch();
        gate.registry.resume(state.next_id);
        gate.tickets.import(state.tickets);
        gate.tenants.import_buckets(state.buckets.into_iter().map(|(name, full)| (name, at(epoch, full))));
        state.xdp.into_iter().for_each(|estate| gate.xdp.inherit(estate));
        let parent = Elder::new(self.channel.clone(), false);
        let mut owners = std::collections::HashMap::new();
        let mut elders = vec![parent.clone()];
        for _ in 0..state.elders {
            let Message { head, files, .. } = hear(&self.channel)?;
            let (ToHeir::Elder { sessions }, Some(socket)) = (head, files.into_iter().next()) else {
                return Err(UpgradeError::Unexpected);
            };
            let elder = Elder::new(Arc::new(Channel::new(socket)), true);
            owners.extend(sessions.into_iter().map(|id| (id, elder.clone())));
            elders.push(elder);
        }
        for session in state.sessions {
            let owner = owners.get(&session.id).unwrap_or(&parent).clone();
            let held = adopt(gate, session);
            gate.metrics.adopted(&held.session().tenant);
            gate.registry.insert(held.session().clone());
            gate.succession.elders.add(&owner, held);
        }
        for (tenant, user, n) in state.pending {
            (0..n).for_each(|_| parent.reserve((gate.tenants.adopt(&tenant, &user), None)));
        }
        for (jti, n) in state.pending_uses {
            (0..n).for_each(|_| parent.reserve((None, gate.tickets.adopt(&jti))));
        }
        Ok(elders)
    }
}

/// Whether an address of the configuration is the one a socket has.
pub(crate) fn means(wanted: SocketAddr, held: SocketAddr) -> bool {
    wanted == held || (wanted.port() == 0 && wanted.ip() == held.ip())
}

fn hear(channel: &Channel) -> Result<Message<ToHeir>, UpgradeError> {
    match channel.receive() {
        Ok(Some(message)) => Ok(message),
        Ok(None) => Err(UpgradeError::Gone),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(UpgradeError::Late),
        Err(error) => Err(error.into()),
    }
}
