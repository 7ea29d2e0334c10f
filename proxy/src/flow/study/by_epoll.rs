//! epoll, edge-triggered; an edge is remembered until the socket says that it is empty, or full.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

use nix::fcntl::{SpliceFFlags, splice};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{MsgFlags, recv, send};

use super::{Moved, Pipe, ROOM, accept, moved, raw};

const LISTENER: u64 = u64::MAX;
/// Moves of one direction before the next has its turn.
const TURN: usize = 4;

struct Flow {
    ends: [TcpStream; 2],
    readable: [bool; 2],
    writable: [bool; 2],
    /// The end of this direction was passed on.
    over: [bool; 2],
    room: [Room; 2],
    queued: bool,
}

/// Where bytes are between two sockets.
enum Room {
    Pipe(Pipe),
    Buffer { bytes: Vec<u8>, from: usize, to: usize },
}

impl Room {
    fn new(pipes: bool) -> io::Result<Self> {
        if pipes {
            Pipe::open().map(Self::Pipe)
        } else {
            Ok(Self::Buffer { bytes: vec![0; ROOM], from: 0, to: 0 })
        }
    }

    fn held(&self) -> usize {
        match self {
            Self::Pipe(pipe) => pipe.held,
            Self::Buffer { from, to, .. } => to - from,
        }
    }

    fn fill(&mut self, end: &TcpStream) -> Moved {
        match self {
            Self::Pipe(pipe) => {
                let moved = moved(splice(end, None, &pipe.write, None, ROOM, flags()));
                if let Moved::Bytes(n) = moved {
                    pipe.held += n;
                }
                moved
            }
            Self::Buffer { bytes, from, to } => {
                let moved = moved(recv(raw(end), bytes, MsgFlags::empty()));
                if let Moved::Bytes(n) = moved {
                    (*from, *to) = (0, n);
                }
                moved
            }
        }
    }

    fn drain(&mut self, end: &TcpStream) -> Moved {
        match self {
            Self::Pipe(pipe) => {
                let moved = moved(splice(&pipe.read, None, end, None, pipe.held, flags()));
                if let Moved::Bytes(n) = moved {
                    pipe.held -= n;
                }
                moved
            }
            Self::Buffer { bytes, from, to } => {
                let moved = moved(send(raw(end), &bytes[*from..*to], MsgFlags::MSG_NOSIGNAL));
                if let Moved::Bytes(n) = moved {
                    *from += n;
                }
                moved
            }
        }
    }
}

fn flags() -> SpliceFFlags {
    SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK
}

pub(super) fn run(listener: &TcpListener, backend: SocketAddr, pipes: bool) -> io::Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    let edges = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
    let mut flows: Vec<Option<Flow>> = Vec::new();
    let mut queue: Vec<usize> = Vec::new();
    let mut events = vec![EpollEvent::empty(); 256];
    loop {
        let timeout = if queue.is_empty() { EpollTimeout::NONE } else { EpollTimeout::ZERO };
        let n = match epoll.wait(&mut events, timeout) {
            Err(nix::errno::Errno::EINTR) => continue,
            waited => waited?,
        };
        for event in &events[..n] {
            if event.data() == LISTENER {
                while let Some(ends) = accept(listener, backend)? {
                    for (side, end) in ends.iter().enumerate() {
                        end.set_nonblocking(true)?;
                        epoll.add(end, EpollEvent::new(edges, flows.len() as u64 * 2 + side as u64))?;
                    }
                    let room = [Room::new(pipes)?, Room::new(pipes)?];
                    let (readable, writable, over) = ([false; 2], [false; 2], [false; 2]);
                    flows.push(Some(Flow { ends, readable, writable, over, room, queued: false }));
                }
                continue;
            }
            let (key, side) = (event.data() as usize / 2, event.data() as usize % 2);
            let Some(flow) = &mut flows[key] else { continue };
            let told = event.events();
            flow.readable[side] |=
                told.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP);
            flow.writable[side] |= told.intersects(EpollFlags::EPOLLOUT | EpollFlags::EPOLLERR);
            if !std::mem::replace(&mut flow.queued, true) {
                queue.push(key);
            }
        }
        for key in std::mem::take(&mut queue) {
            let Some(flow) = &mut flows[key] else { continue };
            flow.queued = turn(flow, 0) | turn(flow, 1);
            if flow.over == [true; 2] {
                flows[key] = None;
            } else if flow.queued {
                queue.push(key);
            }
        }
    }
}

/// Moves what it can from one end to the other; true if there may be more at once.
fn turn(flow: &mut Flow, side: usize) -> bool {
    let (room, from, to) = (&mut flow.room[side], &flow.ends[side], &flow.ends[1 - side]);
    for _ in 0..TURN {
        if room.held() == 0 {
            if !flow.readable[side] || flow.over[side] {
                return false;
            }
            match room.fill(from) {
                Moved::Bytes(_) => {}
                Moved::Nothing => flow.readable[side] = false,
                Moved::End => {
                    flow.over[side] = true;
                    let _ = to.shutdown(Shutdown::Write);
                }
            }
            continue;
        }
        if !flow.writable[1 - side] {
            return false;
        }
        match room.drain(to) {
            Moved::Bytes(_) => {}
            Moved::Nothing => flow.writable[1 - side] = false,
            Moved::End => {
                flow.over = [true; 2];
                return false;
            }
        }
    }
    true
}
