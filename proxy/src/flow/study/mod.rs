//! Six ways to move bytes between two sockets, each as bare as it can be: one thread, no deadlines, no accounts, no pool. They
//! answer one question in public (`cargo xtask bench --suite splice`); the appliance uses none of them. What it does use is
//! the engine beside this module, which is measured in the same run.
//!
//! | way | waits by | moves by |
//! |---|---|---|
//! | `op-splice` | poll on the ring | `IORING_OP_SPLICE`, both hops |
//! | `ring-splice` | poll on the ring | splice(2), both hops |
//! | `epoll-splice` | epoll, edge-triggered | splice(2), both hops |
//! | `ring-send` | `IORING_OP_RECV` | `IORING_OP_SEND` |
//! | `ring-send-zc` | `IORING_OP_RECV` | `IORING_OP_SEND_ZC` |
//! | `epoll-copy` | epoll, edge-triggered | recv(2), send(2) |

mod by_epoll;
mod by_ring;

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::fcntl::OFlag;
use nix::unistd::pipe2;

/// Size of a pipe, which is the kernel's own, and of a direction's buffers, bytes: none has more in flight than another.
const ROOM: usize = 64 << 10;

/// How bytes are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// `IORING_OP_SPLICE`.
    OpSplice,
    /// splice(2), driven by the ring.
    RingSplice,
    /// splice(2), driven by epoll.
    EpollSplice,
    /// `IORING_OP_RECV` and `IORING_OP_SEND`.
    RingSend,
    /// `IORING_OP_RECV` and `IORING_OP_SEND_ZC`.
    RingSendZc,
    /// recv(2) and send(2), driven by epoll.
    EpollCopy,
}

impl Way {
    /// All of them.
    pub const ALL: [Way; 6] = [
        Self::OpSplice,
        Self::RingSplice,
        Self::EpollSplice,
        Self::RingSend,
        Self::RingSendZc,
        Self::EpollCopy,
    ];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OpSplice => "op-splice",
            Self::RingSplice => "ring-splice",
            Self::EpollSplice => "epoll-splice",
            Self::RingSend => "ring-send",
            Self::RingSendZc => "ring-send-zc",
            Self::EpollCopy => "epoll-copy",
        }
    }
}

/// Relays whatever connects to `listener` to `backend`, for ever.
///
/// # Errors
/// The ring or epoll cannot be had, or the listener broke.
pub fn relay(way: Way, listener: &TcpListener, backend: SocketAddr) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    match way {
        Way::EpollSplice => by_epoll::run(listener, backend, true),
        Way::EpollCopy => by_epoll::run(listener, backend, false),
        Way::OpSplice => by_ring::run(listener, backend, by_ring::Moves::OpSplice),
        Way::RingSplice => by_ring::run(listener, backend, by_ring::Moves::Splice),
        Way::RingSend => by_ring::run(listener, backend, by_ring::Moves::Send),
        Way::RingSendZc => by_ring::run(listener, backend, by_ring::Moves::SendZc),
    }
}

/// One more connection and the one behind it; `None` when nobody is waiting.
fn accept(listener: &TcpListener, backend: SocketAddr) -> io::Result<Option<[TcpStream; 2]>> {
    let client = match listener.accept() {
        Ok((client, _)) => client,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        Err(error) => return Err(error),
    };
    let behind = TcpStream::connect(backend)?;
    client.set_nodelay(true)?;
    behind.set_nodelay(true)?;
    Ok(Some([client, behind]))
}

/// A pipe and what is in it.
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    held: usize,
}

impl Pipe {
    fn open() -> io::Result<Self> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        Ok(Self { read, write, held: 0 })
    }
}

/// What a non-blocking move came to.
enum Moved {
    Bytes(usize),
    Nothing,
    End,
}

fn moved(result: nix::Result<usize>) -> Moved {
    match result {
        Ok(0) => Moved::End,
        Ok(n) => Moved::Bytes(n),
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => Moved::Nothing,
        Err(_) => Moved::End,
    }
}

fn raw(end: &impl AsRawFd) -> RawFd {
    end.as_raw_fd()
}
