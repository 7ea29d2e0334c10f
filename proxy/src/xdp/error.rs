//! Why the gate cannot be had, in an operator's words: what, where, the remedy.

use std::{fs, io, path::PathBuf};

use aya::{EbpfError, maps::MapError, programs::ProgramError};

use super::policy::PolicyError;

/// Why there is no gate, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// Built without the program.
    #[error(
        "this mksgate was built without its XDP program; build it with `cargo xtask ebpf`, then mksgate again"
    )]
    NoObject,
    /// The kernel refuses the process.
    #[error(
        "no permission for XDP: the process lacks {missing}; add it to AmbientCapabilities= of the unit, or \
             run with it"
    )]
    Permission {
        /// Names of capabilities.
        missing: String,
    },
    /// The kernel refuses the program or a map.
    #[error("the kernel ({kernel}) does not take {what}: {reason}; Linux 5.15 or newer is needed")]
    Kernel {
        /// The running release.
        kernel: String,
        /// A program's or a map's name.
        what: String,
        /// What it said, cut to its end.
        reason: String,
    },
    /// A system call on something that exists failed.
    #[error("XDP: {what}: {error}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// How it failed.
        #[source]
        error: io::Error,
    },
    /// No interface to attach to.
    #[error("no interface carries the protected addresses; name one in [xdp] interfaces")]
    NoInterface,
    /// One interface could not be had.
    #[error("XDP on {name}: {problem}")]
    Interface {
        /// Its name.
        name: String,
        /// Why.
        problem: InterfaceProblem,
    },
    /// The keeper of the gate does not answer.
    #[error(
        "no answer from the XDP gate's keeper at {}: {error}; `systemctl status mksgate-xdp` tells more", socket.display()
    )]
    Keeper {
        /// `[xdp] keeper`.
        socket: PathBuf,
        /// How it failed.
        #[source]
        error: io::Error,
    },
    /// The keeper refuses.
    #[error("the XDP gate's keeper: {0}")]
    Kept(String),
    /// The policy contradicts itself.
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

/// Why the program is not on an interface.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InterfaceProblem {
    /// There is none of that name.
    #[error("there is no such interface; `ip link` lists them: correct [xdp] interfaces, or make it")]
    Missing,
    /// Somebody else's program is there.
    #[error(
        "another XDP program is attached ({0}); detach it (`ip link set dev NAME xdp off`, `bpftool net`) or leave \
             this interface out of [xdp] interfaces"
    )]
    Occupied(String),
    /// `mode = "native"` on a driver without it.
    #[error("its driver has no native XDP ({0}); set [xdp] mode = \"auto\" or \"generic\"")]
    NotNative(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// Every capability the gate needs, by its number in linux/capability.h. Without CAP_PERFMON the verifier is stricter about
/// pointers and speculation (`bpf_allow_ptr_leaks`, `bpf_bypass_spec_v1` in linux/bpf.h); that of Linux 6.18 then refuses
/// the program.
const CAPABILITIES: [(u32, &str); 3] = [(39, "CAP_BPF"), (38, "CAP_PERFMON"), (12, "CAP_NET_ADMIN")];
/// CAP_SYS_ADMIN, which implies the first two (`bpf_capable` and `perfmon_capable` in linux/capability.h).
const SYS_ADMIN: u32 = 21;

/// Names of the capabilities that the process lacks; empty if it has them all.
pub fn missing_capabilities() -> Vec<&'static str> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(u64::MAX);
    let bit = |bit: u32| effective >> bit & 1 != 0;
    let has = |number: u32| bit(number) || (matches!(number, 38 | 39) && bit(SYS_ADMIN));
    CAPABILITIES.iter().filter(|(number, _)| !has(*number)).map(|(_, name)| *name).collect()
}

/// The running kernel's release.
pub(crate) fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "unknown".into(), |r| r.trim().to_owned())
}

impl GateError {
    /// An error of bpf(2): a missing capability has its own name.
    pub(crate) fn io(what: &'static str, error: io::Error) -> GateError {
        match error.kind() {
            io::ErrorKind::PermissionDenied => {
                GateError::permission().unwrap_or(GateError::Io { what, error })
            }
            _ => GateError::Io { what, error },
        }
    }

    pub(crate) fn map(what: &'static str, error: MapError) -> GateError {
        match error {
            MapError::SyscallError(error) => GateError::io(what, error.io_error),
            other => GateError::Io { what, error: io::Error::other(other) },
        }
    }

    pub(crate) fn object(error: EbpfError) -> GateError {
        GateError::permission().unwrap_or_else(|| GateError::refused("its maps", &error))
    }

    pub(crate) fn program(name: &str, error: &ProgramError) -> GateError {
        GateError::permission().unwrap_or_else(|| GateError::refused(name, error))
    }

    fn permission() -> Option<GateError> {
        let missing = missing_capabilities();
        (!missing.is_empty()).then(|| GateError::Permission { missing: missing.join(" and ") })
    }

    /// The sources of an error hold the reason; a verifier's log is long and its end is what counts.
    fn refused(what: &str, error: &dyn std::error::Error) -> GateError {
        let mut reason = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            reason = format!("{reason}: {inner}");
            cause = inner.source();
        }
        let lines: Vec<&str> = reason.lines().filter(|l| !l.trim().is_empty()).collect();
        let tail = lines[lines.len().saturating_sub(4)..].join(" | ");
        GateError::Kernel { kernel: kernel(), what: what.to_owned(), reason: tail }
    }
}
