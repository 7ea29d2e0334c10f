//! The few system calls that no safe crate offers as needed.
#![expect(unsafe_code, reason = "raw file descriptors")]

pub(crate) mod bpf;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// A second descriptor of the same open file, close-on-exec.
pub fn duplicate(file: &impl AsRawFd) -> io::Result<OwnedFd> {
    // SAFETY: the descriptor is open for as long as `file` is borrowed; nothing else is done with it. tokio-uring's
    // streams offer AsRawFd only, so there is no BorrowedFd to be had without this.
    let fd = unsafe { BorrowedFd::borrow_raw(file.as_raw_fd()) };
    fd.try_clone_to_owned()
}

/// What the kernel knows of its clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockState {
    /// Whether a time service keeps it.
    pub synchronised: bool,
    /// How wrong it may be.
    pub error: std::time::Duration,
}

/// Asks the kernel (adjtimex(2), which reads without any privilege when it sets nothing).
pub fn clock_state() -> io::Result<ClockState> {
    // SAFETY: all fields are integers, for which zero is a value; `modes` = 0 sets nothing.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is ours and outlives the call. No safe crate in use offers it.
    if unsafe { libc::adjtimex(&raw mut state) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let error = std::time::Duration::from_micros(state.maxerror.try_into().unwrap_or(0));
    Ok(ClockState { synchronised: state.status & libc::STA_UNSYNC == 0, error })
}

/// Takes over descriptor `fd`, which another program opened for this one (socket activation).
///
/// # Errors
/// Nothing is open there.
pub fn inherit(fd: std::os::fd::RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD looks and changes nothing; a number that is not open gives an error.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and by the protocol of sd_listen_fds(3) it was opened for this process and belongs to nobody
    // else in it. The caller takes each number once.
    let fd = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) };
    // SAFETY: the descriptor is ours now. Programs that this one starts must not inherit it.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd)
}

/// Waits for `interest` in a descriptor on the current tokio runtime.
pub fn watched(fd: OwnedFd, interest: tokio::io::Interest) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd answers with one and the same open descriptor for as long as it lives, which is what tokio asks
    // of the type it registers; no safe constructor is left that is not deprecated.
    unsafe { tokio::io::unix::AsyncFd::register_with_interest(fd, interest) }.map_err(Into::into)
}

/// Takes the standard input out of the way, which is a socket that was given to this process; /dev/null takes its place.
pub fn take_stdin() -> io::Result<OwnedFd> {
    let stdin = std::os::fd::AsFd::as_fd(&io::stdin()).try_clone_to_owned()?;
    nix::unistd::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    Ok(stdin)
}

/// Takes over descriptors that came by SCM_RIGHTS.
pub fn received(fds: Vec<std::os::fd::RawFd>) -> Vec<OwnedFd> {
    // SAFETY: recvmsg(2) has just opened each of them for this process, and `nix` hands the bare numbers out once; nobody
    // else knows them. No safe crate in use gives owned ones.
    fds.into_iter().map(|fd| unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) }).collect()
}
