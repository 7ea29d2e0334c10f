//! Puts the program on an interface, by a link that lasts as long as a process holds it.
//!
//! A link of an older mksgate is taken over: its program is exchanged under it, so that no packet meets no program
//! during an upgrade, and the older process may end afterwards without detaching anything.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use aya::programs::loaded_programs;
use nix::net::if_::if_nametoindex;

use super::{
    config::{Enabled, Mode, XdpConfig},
    error::InterfaceProblem,
    netlink::{self, Attached},
};
use crate::sys::bpf;

const XDP_FLAGS_SKB_MODE: u32 = 2;
const XDP_FLAGS_DRV_MODE: u32 = 4;

/// Names under which the kernel lists our programs.
pub(crate) const PROGRAMS: [&str; 2] = ["mksgate", "mksgate_plain"];

/// Interfaces of the configuration that are not there.
pub fn missing_interfaces(config: &XdpConfig) -> impl Iterator<Item = (&str, InterfaceProblem)> {
    let wanted = if config.enabled == Enabled::Off { &[][..] } else { &config.interfaces };
    let missing = |name: &&String| if_nametoindex(name.as_str()).is_err();
    wanted.iter().filter(missing).map(|name| (name.as_str(), InterfaceProblem::Missing))
}

/// The program on one interface. Dropping it detaches, unless another process holds the same link.
#[derive(Debug)]
pub(crate) struct Attachment {
    pub native: bool,
    /// Why it is generic although native was tried first.
    pub fallback: Option<String>,
    /// It was another process's before.
    pub taken_over: bool,
    /// The link's id.
    id: u32,
    link: OwnedFd,
}

impl Attachment {
    /// Puts the program on the interface.
    pub fn new(program: BorrowedFd<'_>, name: &str, mode: Mode) -> Result<Attachment, InterfaceProblem> {
        let index = if_nametoindex(name).map_err(|_| InterfaceProblem::Missing)?;
        let generic = |fallback| match bpf::link_create(program, index, XDP_FLAGS_SKB_MODE) {
            Ok(link) => Ok(Attachment::by(link, false, fallback)),
            Err(error) => Attachment::take_over(program, index, &error),
        };
        if mode == Mode::Generic {
            return generic(None);
        }
        match bpf::link_create(program, index, XDP_FLAGS_DRV_MODE) {
            Ok(link) => Ok(Attachment::by(link, true, None)),
            Err(error) if occupied(&error) => Attachment::take_over(program, index, &error),
            Err(error) if mode == Mode::Native => Err(InterfaceProblem::NotNative(error.to_string())),
            Err(error) => generic(Some(error.to_string())),
        }
    }

    /// Exchanges the program under an older mksgate's link; `error` is what a link of our own met.
    fn take_over(
        program: BorrowedFd<'_>,
        index: u32,
        error: &io::Error,
    ) -> Result<Attachment, InterfaceProblem> {
        let other = |error: io::Error| InterfaceProblem::Other(error.to_string());
        if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV) {
            return Err(InterfaceProblem::Missing);
        }
        if !occupied(error) {
            return Err(InterfaceProblem::Other(error.to_string()));
        }
        let (at, id) = netlink::xdp_of(index).map_err(other)?.unwrap_or((Attached::Other, 0));
        let name = program_name(id);
        let ours = name.as_deref().is_some_and(|name| PROGRAMS.contains(&name));
        let link = if ours { bpf::xdp_links().map_err(other)? } else { Vec::new() };
        let Some((_, link)) =
            link.into_iter().find(|(info, _)| info.interface == index && info.program == id)
        else {
            let name = name.unwrap_or_else(|| "unnamed".into());
            return Err(InterfaceProblem::Occupied(format!("{name}, program id {id}")));
        };
        bpf::link_update(link.as_fd(), program).map_err(other)?;
        Ok(Attachment { taken_over: true, ..Attachment::by(link, at == Attached::Native, None) })
    }

    fn by(link: OwnedFd, native: bool, fallback: Option<String>) -> Attachment {
        // An id of no link, where the kernel does not tell: it is used as a name only.
        let id = bpf::link_info(&link).ok().flatten().map_or(0, |info| info.id);
        Attachment { native, fallback, taken_over: false, id, link }
    }

    /// Goes on with a link that another process has left, if it still leads to the interface with this index.
    pub fn adopt(link: OwnedFd, index: u32, native: bool, fallback: Option<String>) -> Option<Attachment> {
        let info = bpf::link_info(&link).ok()??;
        (info.interface == index).then(|| Attachment::by(link, native, fallback))
    }

    /// The link's id.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The link itself.
    pub fn link(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }

    /// Puts another program under the same link.
    pub fn replace(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        bpf::link_update(self.link.as_fd(), program)
    }

    /// It is what an interface of this mode has. What is generic although native was tried first, was tried.
    pub fn suits(&self, mode: Mode) -> bool {
        match mode {
            Mode::Native => self.native,
            Mode::Generic => !self.native,
            Mode::Auto => self.native || self.fallback.is_some(),
        }
    }

    /// Takes it off the interface, whoever else holds the link.
    pub fn detach(&self) -> io::Result<()> {
        match bpf::link_detach(self.link.as_fd()) {
            // The interface is gone, and the program with it (bpf_xdp_link_release in net/core/dev.c).
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(()),
            done => done,
        }
    }

    /// What has become of it.
    pub fn state(&self, program: u32) -> State {
        match bpf::link_info(&self.link) {
            Ok(Some(info)) if info.interface == 0 => State::Gone,
            Ok(Some(info)) if info.program == program => State::Attached,
            Ok(Some(_)) => State::TakenOver,
            Ok(None) | Err(_) => State::Gone,
        }
    }
}

/// What has become of an attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// In place.
    Attached,
    /// The interface has vanished.
    Gone,
    /// A younger mksgate has put its own program there.
    TakenOver,
}

/// A program is there: of the same mode, or of the other one (dev_xdp_attach in net/core/dev.c).
fn occupied(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST))
}

fn program_name(id: u32) -> Option<String> {
    loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.id() == id)
        .and_then(|program| program.name_as_str().map(str::to_owned))
        .filter(|name| !name.is_empty())
}
