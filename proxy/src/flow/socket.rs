//! The system calls on sockets and pipes, with `EINTR` retried and nothing else hidden.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice as sys_splice};
use nix::sys::socket::{MsgFlags, Shutdown, recv as sys_recv, recvmsg, send as sys_send, sendmsg, shutdown};

/// What a non-blocking transfer came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moved {
    /// So many bytes, at least one.
    Bytes(usize),
    /// End of the stream (reads only).
    End,
    /// Would block.
    Blocked,
    /// The socket is broken.
    Failed(Errno),
}

fn moved(call: impl Fn() -> nix::Result<usize>) -> Moved {
    loop {
        return match call() {
            Ok(0) => Moved::End,
            Ok(n) => Moved::Bytes(n),
            Err(Errno::EINTR) => continue,
            Err(Errno::EAGAIN) => Moved::Blocked,
            Err(errno) => Moved::Failed(errno),
        };
    }
}

/// Sends what fits now; never raises SIGPIPE.
pub(super) fn send(to: &OwnedFd, bytes: &[u8]) -> Moved {
    moved(|| sys_send(to.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL))
}

/// Receives what is there now.
pub(super) fn recv(from: &OwnedFd, into: &mut [u8]) -> Moved {
    loop {
        return match sys_recv(from.as_raw_fd(), into, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => Moved::End,
            Ok(n) => Moved::Bytes(n),
            Err(Errno::EINTR) => continue,
            Err(Errno::EAGAIN) => Moved::Blocked,
            Err(errno) => Moved::Failed(errno),
        };
    }
}

/// Receives into several places, one after the other.
pub(super) fn recv_into<'a>(from: &OwnedFd, mut places: impl Iterator<Item = &'a mut [u8]>) -> Moved {
    let first = places.next().unwrap_or_default();
    let Some(second) = places.next() else { return recv(from, first) };
    let mut places: Vec<_> = [first, second].into_iter().chain(places).map(IoSliceMut::new).collect();
    loop {
        let received = recvmsg::<()>(from.as_raw_fd(), &mut places, None, MsgFlags::MSG_DONTWAIT);
        return match received.map(|received| received.bytes) {
            Ok(0) => Moved::End,
            Ok(n) => Moved::Bytes(n),
            Err(Errno::EINTR) => continue,
            Err(Errno::EAGAIN) => Moved::Blocked,
            Err(errno) => Moved::Failed(errno),
        };
    }
}

/// Sends what fits of several pieces, one after the other; never raises SIGPIPE. Of more than the kernel takes in one call
/// (`UIO_MAXIOV`) the first.
pub(super) fn send_from<'a>(to: &OwnedFd, mut pieces: impl Iterator<Item = &'a [u8]>) -> Moved {
    let first = pieces.next().unwrap_or_default();
    let Some(second) = pieces.next() else { return send(to, first) };
    let pieces = [first, second].into_iter().chain(pieces).take(libc::UIO_MAXIOV as usize);
    let pieces: Vec<IoSlice<'_>> = pieces.map(IoSlice::new).collect();
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    moved(|| sendmsg::<()>(to.as_raw_fd(), &pieces, &[], flags, None))
}

/// Moves up to `len` bytes between a socket and a pipe. The socket must have `O_NONBLOCK` set: the kernel takes the
/// socket's own flag, not `SPLICE_F_NONBLOCK` (`tcp_splice_read`, `splice_to_socket`).
pub(super) fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, len: usize) -> Moved {
    let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
    moved(|| sys_splice(from, None, to, None, len, flags))
}

/// Sets or clears `O_NONBLOCK` on the file description.
pub(super) fn set_nonblocking(fd: &OwnedFd, on: bool) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    let wanted = if on { flags | OFlag::O_NONBLOCK } else { flags - OFlag::O_NONBLOCK };
    if wanted != flags {
        fcntl(fd, FcntlArg::F_SETFL(wanted))?;
    }
    Ok(())
}

/// Sends FIN after everything sent so far. A socket that is no longer connected needs none.
pub(super) fn shutdown_write(fd: &OwnedFd) {
    let _ = shutdown(fd.as_raw_fd(), Shutdown::Write);
}

/// The smoothed round-trip time, microseconds (`tcpi_rtt` of TCP_INFO); `None` for what is not TCP.
#[expect(unsafe_code, reason = "TCP_INFO has no safe wrapper in nix or socket2")]
pub(super) fn rtt_us(fd: &OwnedFd) -> Option<u32> {
    // SAFETY: tcp_info is plain integers, for which all-zero is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: `info` and `len` are live for the call, and the kernel writes at most `len` bytes.
    let answer = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut len,
        )
    };
    (answer == 0 && info.tcpi_rtt > 0).then_some(info.tcpi_rtt)
}
