//! The interfaces that are to have the program, and what became of each.

use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};

use super::{
    attach::{Attachment, State},
    config::{Enabled, Mode, XdpConfig},
    error::{GateError, InterfaceProblem},
    local,
    policy::Policy,
};

/// One interface that is to have the program.
pub(super) struct Interface {
    pub name: String,
    pub attachment: Result<Attachment, InterfaceProblem>,
    /// A younger mksgate has it; it is left alone.
    pub given_up: bool,
}

/// One interface of [`GateStatus`](super::GateStatus).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// `"native"`, `"generic"` or `"off"`.
    pub mode: String,
    /// Why it is off, or not native.
    pub problem: Option<String>,
}

impl Interface {
    /// Puts the program there, if that can be.
    pub fn attach(program: BorrowedFd<'_>, name: String, mode: Mode) -> Interface {
        let attachment = Attachment::new(program, &name, mode);
        Interface { name, attachment, given_up: false }
    }

    /// Has it in this mode, if that can be. The kernel takes no two modes at once (dev_xdp_attach in net/core/dev.c): where it
    /// is another one, the interface is without for as long as two system calls take.
    pub fn set_mode(&mut self, program: BorrowedFd<'_>, mode: Mode) {
        if let Ok(attachment) = &self.attachment {
            if attachment.suits(mode) {
                return;
            }
            if let Err(error) = attachment.detach() {
                return tracing::warn!(interface = self.name, %error, "XDP gate: its mode cannot be changed");
            }
        }
        self.attachment = Attachment::new(program, &self.name, mode);
        self.tell();
    }

    /// Takes its program off, whoever else holds the link, unless another mksgate has put its own there.
    pub fn leave(&self, program: u32) {
        if let Ok(attachment) = &self.attachment
            && !self.given_up
            && attachment.state(program) == State::Attached
            && let Err(error) = attachment.detach()
        {
            tracing::warn!(interface = self.name, %error, "XDP gate: cannot be detached");
        }
    }

    /// Why it has no program.
    fn failure(&self) -> Option<GateError> {
        let problem = self.attachment.as_ref().err()?.clone();
        Some(GateError::Interface { name: self.name.clone(), problem })
    }

    /// For `mksgate xdp status`; `program` is the one that it should have.
    pub fn status(&self, program: u32) -> InterfaceStatus {
        let off = |why: String| ("off", Some(why));
        let (mode, problem) = match &self.attachment {
            Err(problem) => off(problem.to_string()),
            Ok(attachment) => match attachment.state(program) {
                State::Attached if attachment.native => ("native", None),
                State::Attached => ("generic", attachment.fallback.clone()),
                State::Gone => {
                    off("the interface has vanished; it is attached to again when it returns".into())
                }
                State::TakenOver => off("a younger mksgate has taken it over".into()),
            },
        };
        InterfaceStatus { name: self.name.clone(), mode: mode.into(), problem }
    }

    /// Says in the log what became of it.
    pub fn tell(&self) {
        let name = &self.name;
        match &self.attachment {
            Ok(Attachment { native: true, taken_over, .. }) => {
                tracing::info!(interface = name, mode = "native", taken_over, "XDP gate attached");
            }
            Ok(Attachment { fallback, taken_over, .. }) => {
                let why = fallback.as_deref().unwrap_or("as configured");
                tracing::info!(interface = name, mode = "generic", why, taken_over, "XDP gate attached");
            }
            Err(problem) => tracing::warn!(interface = name, %problem, "no XDP gate on this interface"),
        }
    }
}

/// Those of the configuration; without any, those that carry the protected addresses.
pub(super) fn interface_names(config: &XdpConfig, policy: &Policy) -> Result<Vec<String>, GateError> {
    if !config.interfaces.is_empty() {
        return Ok(config.interfaces.clone());
    }
    let tenants = policy.tenants.iter().flat_map(|t| t.addresses.iter().copied());
    let listen: Vec<_> = policy.listen.iter().copied().chain(tenants).collect();
    let io = |error| GateError::Io { what: "finding the interfaces", error };
    let names = local::interfaces_for(&listen).map_err(io)?;
    if names.is_empty() { Err(GateError::NoInterface) } else { Ok(names) }
}

/// At least one interface has it; all, if it is required.
pub(super) fn enough<'a>(
    config: &XdpConfig,
    interfaces: impl Iterator<Item = &'a Interface> + Clone,
) -> Result<(), GateError> {
    let has = |interface: &Interface| interface.attachment.is_ok();
    if config.enabled != Enabled::Required && interfaces.clone().any(has) { Ok(()) } else { all(interfaces) }
}

/// Every one has it.
pub(super) fn all<'a>(mut interfaces: impl Iterator<Item = &'a Interface>) -> Result<(), GateError> {
    interfaces.find_map(Interface::failure).map_or(Ok(()), Err)
}
