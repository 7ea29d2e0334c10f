//! What a keeper leaves to the next one with the service manager: descriptors of the program, its maps and its links, and
//! beside them, in a file that has no name, what no map tells.

use std::{
    collections::{BTreeMap, HashSet},
    io::{self, Read as _, Seek as _, Write as _},
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::Path,
};

use aws_lc_rs::digest::{SHA256, digest};
use nix::{
    net::if_::if_nametoindex,
    sys::memfd::{MFdFlags, memfd_create},
};
use serde::{Deserialize, Serialize};
use socket2::SockRef;

use super::{
    Gate, GateError, OBJECT, Policy, XdpConfig,
    attach::Attachment,
    counters::{CounterReport, DropEvent},
    error::InterfaceProblem,
    inner::{Inner, current_plan, local_addresses},
    interface::Interface,
    maps::Program,
    policy::Plan,
};
use crate::{front::descriptors, sys, sys::bpf};

/// The keeper's socket, under this name.
pub(super) const SOCKET: &str = "socket";
/// No state is larger: a policy, with its names, is what one message holds.
const LARGEST: u64 = 64 << 20;

/// What no map tells.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// Of the program's object: another build has another program.
    build: String,
    /// The program's id.
    program: u32,
    config: XdpConfig,
    policy: Policy,
    /// What earlier programs of this gate had counted.
    base: CounterReport,
    places: Vec<Place>,
}

/// One interface.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    name: String,
    /// The link's id, if it has one.
    link: Option<u32>,
    native: bool,
    fallback: Option<String>,
}

/// What the service manager has handed to this process.
#[derive(Default)]
pub struct Left {
    named: BTreeMap<String, OwnedFd>,
    listener: Option<(String, UnixListener)>,
}

impl Left {
    /// To be called once: a descriptor belongs to the first who takes it.
    pub fn to_this_process() -> Left {
        let mut left = Left::default();
        for (fd, name) in descriptors() {
            let Ok(fd) = sys::inherit(fd) else { continue };
            if SockRef::from(&fd).is_listener().unwrap_or(false) {
                left.listener = Some((name, fd.into()));
            } else {
                left.named.insert(name, fd);
            }
        }
        left
    }

    /// The socket at `path`, if it is among it: whoever has come meanwhile waits there.
    pub fn listener(&self, path: &Path) -> Option<io::Result<UnixListener>> {
        let (_, listener) = self.listener.as_ref()?;
        let there = listener.local_addr().is_ok_and(|at| at.as_pathname() == Some(path)) && path.exists();
        there.then(|| listener.try_clone())
    }

    /// Everything by name.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.named.keys().map(String::as_str).chain(self.listener.iter().map(|(name, _)| name.as_str()))
    }

    /// The gate that goes on from there; `None` where there was none. Links that nobody goes on with are taken off.
    ///
    /// # Errors
    /// What is there is of no use, or see [`Gate::start`].
    pub(super) fn gate(
        mut self,
        on_drop: impl Fn(&DropEvent) + Send + 'static,
    ) -> Result<Option<Gate>, GateError> {
        let links: Vec<(u32, OwnedFd)> = self.links();
        let gate = self.state().and_then(|state| state.map(|state| self.inner(state)).transpose());
        let goes_on: HashSet<u32> = match &gate {
            Ok(Some(inner)) => inner.links().collect(),
            _ => HashSet::new(),
        };
        for (id, link) in links.iter().filter(|(id, _)| !goes_on.contains(id)) {
            if let Err(error) = bpf::link_detach(link) {
                tracing::debug!(id, %error, "a link that nobody wants is empty already");
            }
        }
        gate?.map(|inner| Gate::run(inner, on_drop)).transpose()
    }

    fn links(&self) -> Vec<(u32, OwnedFd)> {
        let link = |(name, fd): (&String, &OwnedFd)| {
            let id = name.strip_prefix("link.")?.parse().ok()?;
            Some((id, fd.try_clone().ok()?))
        };
        self.named.iter().filter_map(link).collect()
    }

    /// The latest state that is whole.
    fn state(&self) -> Result<Option<State>, GateError> {
        let number = |name: &String| name.strip_prefix("state.")?.parse::<u64>().ok();
        let Some(file) =
            self.named.iter().filter_map(|(name, fd)| Some((number(name)?, fd))).max_by_key(|(n, _)| *n)
        else {
            return Ok(None);
        };
        let reading = |error| GateError::Io { what: "reading what the keeper before has left", error };
        let mut file = std::fs::File::from(file.1.try_clone().map_err(reading)?);
        let mut text = Vec::new();
        file.rewind().and_then(|()| file.take(LARGEST).read_to_end(&mut text)).map_err(reading)?;
        serde_json::from_slice(&text).map(Some).map_err(|error| reading(error.into()))
    }

    fn inner(&mut self, state: State) -> Result<Inner, GateError> {
        let program = match self.program(&state) {
            Ok(program) => program,
            Err(error) => {
                tracing::warn!(
                    %error,
                    "the maps of the keeper before do not fit: counters, known sources and rates start afresh"
                );
                let local = local_addresses(&state.policy)?;
                Program::load(&state.policy, &local, state.config.max_sources)?
            }
        };
        let State { config, policy, base, places, .. } = state;
        let interfaces = places.into_iter().map(|place| self.interface(place)).collect();
        let mut inner = Inner::new(config, policy, program, interfaces);
        inner.base = base;
        inner.publish(current_plan(&inner.policy)?)?;
        // No change where the link has it already; it may have been killed between the one and the other.
        inner.exchange(&inner.program)?;
        inner.attach_missing();
        Ok(inner)
    }

    fn program(&mut self, state: &State) -> Result<Program, GateError> {
        let id = state.program;
        let missing =
            || GateError::Io { what: "taking the program over", error: io::ErrorKind::NotFound.into() };
        let program = self.named.remove(&format!("program.{id}")).ok_or_else(missing)?;
        let prefix = format!("map.{id}.");
        let all = std::mem::take(&mut self.named);
        let (maps, others): (BTreeMap<_, _>, _) =
            all.into_iter().partition(|(name, _)| name.starts_with(&prefix));
        self.named = others;
        let maps = maps.into_iter().map(|(name, fd)| (name[prefix.len()..].to_owned(), fd)).collect();
        let names = Plan::new(&state.policy, &[])?.names;
        let foreign = state.build != build();
        Program::adopt(program, maps, names, state.config.max_sources, foreign)
    }

    fn interface(&mut self, place: Place) -> Interface {
        let Place { name, link, native, fallback } = place;
        let link = link.and_then(|id| self.named.remove(&format!("link.{id}")));
        let there = link
            .and_then(|link| Attachment::adopt(link, if_nametoindex(name.as_str()).ok()?, native, fallback));
        Interface { name, attachment: there.ok_or(InterfaceProblem::Missing), given_up: false }
    }
}

/// The state as a file without a name, whose descriptor is all there is of it.
pub(super) fn written(inner: &Inner) -> io::Result<OwnedFd> {
    let place = |interface: &Interface| {
        let there = interface.attachment.as_ref().ok();
        Place {
            name: interface.name.clone(),
            link: there.map(Attachment::id),
            native: there.is_some_and(|there| there.native),
            fallback: there.and_then(|there| there.fallback.clone()),
        }
    };
    let state = State {
        build: build(),
        program: inner.program.id(),
        config: inner.config.clone(),
        policy: inner.policy.clone(),
        base: inner.base.clone(),
        places: inner.interfaces.iter().filter(|i| !i.given_up).map(place).collect(),
    };
    let mut file =
        io::BufWriter::new(std::fs::File::from(memfd_create("mksgate-xdp", MFdFlags::MFD_CLOEXEC)?));
    serde_json::to_writer(&mut file, &state)?;
    file.flush()?;
    Ok(file.into_inner().map_err(io::IntoInnerError::into_error)?.into())
}

/// Which program this build has.
fn build() -> String {
    let digest = digest(&SHA256, OBJECT.unwrap_or_default());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
