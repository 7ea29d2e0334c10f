//! The few system calls that no safe crate offers as needed.
#![expect(unsafe_code, reason = "raw file descriptors")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// A second descriptor of the same open file, close-on-exec.
pub fn duplicate(file: &impl AsRawFd) -> io::Result<OwnedFd> {
    // SAFETY: the descriptor is open for as long as `file` is borrowed; nothing else is done with it. tokio-uring's
    // streams offer AsRawFd only, so there is no BorrowedFd to be had without this.
    let fd = unsafe { BorrowedFd::borrow_raw(file.as_raw_fd()) };
    fd.try_clone_to_owned()
}

/// Waits for a descriptor on the current tokio runtime.
pub fn watched(fd: OwnedFd) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd answers with one and the same open descriptor for as long as it lives, which is what tokio asks
    // of the type it registers; no safe constructor is left that is not deprecated.
    unsafe { tokio::io::unix::AsyncFd::register(fd) }.map_err(Into::into)
}
