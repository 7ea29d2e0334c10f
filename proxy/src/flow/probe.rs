//! Whether io_uring is to be had here, and if not, what forbids it.

use std::io;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use io_uring::{IoUring, Probe, cqueue, opcode, types};

use super::buffers::{Buffers, GROUP};

/// Makes a ring: with a single issuer and deferred task work where the kernel has them (6.1), without where not.
pub(super) fn open_ring(entries: u32) -> io::Result<IoUring> {
    let mut best = IoUring::builder();
    best.setup_cqsize(entries * 4).setup_clamp().setup_submit_all();
    best.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
    let mut plain = IoUring::builder();
    plain.setup_cqsize(entries * 4).setup_clamp();
    best.build(entries).or_else(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => plain.build(entries),
        _ => Err(error),
    })
}

/// Asks the kernel for every operation the driver uses, and tries the one a probe does not tell: multishot receive
/// into provided buffers (6.0).
#[expect(unsafe_code, reason = "submitting an operation by hand")]
pub(super) fn try_operations(ring: &mut IoUring, buffers: &mut Buffers) -> io::Result<()> {
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let codes = [opcode::Send::CODE, opcode::PollAdd::CODE, opcode::AsyncCancel::CODE, opcode::Splice::CODE];
    if !codes.into_iter().all(|code| probe.is_supported(code)) {
        return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
    }
    let (mut near, far) = UnixStream::pair()?;
    near.write_all(b"?")?;
    drop(near);
    let entry = opcode::RecvMulti::new(types::Fd(far.as_raw_fd()), GROUP).build();
    // SAFETY: the buffers are registered, and `far` lives until the last completion below.
    unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)?;
    let mut works = false;
    loop {
        ring.submit_and_wait(1)?;
        let Some(answer) = ring.completion().next() else { continue };
        if let Some(id) = cqueue::buffer_select(answer.flags()) {
            buffers.discard(id);
            works |= answer.result() == 1;
        }
        if !cqueue::more(answer.flags()) {
            return if works { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)) };
        }
    }
}

/// Why io_uring was refused, and the remedy, in one line for the log.
pub(super) fn explain(error: &io::Error) -> String {
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let seccomp = status.lines().find_map(|line| line.strip_prefix("Seccomp:"));
    diagnose(error, disabled.ok().as_deref().map(str::trim), seccomp.map(str::trim))
}

fn diagnose(error: &io::Error, disabled: Option<&str>, seccomp: Option<&str>) -> String {
    let filtered = matches!(seccomp, Some("1" | "2"));
    let cause = match (error.raw_os_error(), disabled) {
        (Some(libc::EPERM), Some("2")) => {
            "the sysctl kernel.io_uring_disabled is 2; set it to 0, or to 1 with the service's group in \
             kernel.io_uring_group"
        }
        (Some(libc::EPERM), Some("1")) => {
            "the sysctl kernel.io_uring_disabled is 1 and this process is neither privileged nor in \
             kernel.io_uring_group; set it to 0 or set the group"
        }
        (Some(libc::EPERM | libc::EACCES | libc::ENOSYS), _) if filtered => {
            "a seccomp filter forbids io_uring_setup; allow the io_uring system calls in the container's profile or in \
             the unit's SystemCallFilter="
        }
        (Some(libc::EPERM | libc::EACCES), _) => {
            "a security module or sandbox forbids io_uring_setup; allow it for this service"
        }
        (Some(libc::ENOSYS), _) => "this kernel has no io_uring; Linux 6.1 or later has what is needed",
        (Some(libc::ENOMEM), _) => "locked memory is limited; raise LimitMEMLOCK=",
        (Some(libc::EMFILE | libc::ENFILE), _) => "too many open files; raise LimitNOFILE=",
        (Some(libc::EINVAL | libc::EOPNOTSUPP), _) => {
            "this kernel's io_uring lacks multishot receive or provided buffer rings; Linux 6.1 or later has them"
        }
        _ => "io_uring_setup failed",
    };
    format!("io_uring is not available: {cause} ({error})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_names_what_forbids_it() {
        let say =
            |errno, disabled, seccomp| diagnose(&io::Error::from_raw_os_error(errno), disabled, seccomp);
        assert!(say(libc::EPERM, Some("2"), Some("0")).contains("kernel.io_uring_disabled is 2"));
        assert!(say(libc::EPERM, Some("1"), Some("0")).contains("kernel.io_uring_group"));
        assert!(say(libc::EPERM, Some("0"), Some("2")).contains("seccomp"));
        assert!(say(libc::ENOSYS, None, Some("2")).contains("seccomp"));
        assert!(say(libc::EPERM, Some("0"), Some("0")).contains("sandbox"));
        assert!(say(libc::ENOSYS, None, Some("0")).contains("no io_uring"));
        assert!(say(libc::EOPNOTSUPP, Some("0"), Some("0")).contains("6.1"));
        assert!(say(libc::ENOMEM, Some("0"), Some("0")).contains("LimitMEMLOCK"));
    }
}
