//! io_uring. One operation per direction is in flight (with zero copy: one, and the notices of those before it).
#![expect(unsafe_code, reason = "submitting operations by hand")]

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

use io_uring::types::Fd;
use io_uring::{IoUring, cqueue, opcode, squeue};
use nix::fcntl::{SpliceFFlags, splice};

use super::{Moved, Pipe, ROOM, accept, moved, raw};
use crate::flow::probe::open_ring;

/// Entries of the submission queue.
const ENTRIES: u32 = 4096;
const LISTENER: u64 = u64::MAX;
/// Buffers of a direction: zero copy holds some until the receiver has read them.
const BUFFERS: usize = 4;
const FLAGS: u32 = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Moves {
    OpSplice,
    Splice,
    Send,
    SendZc,
}

/// What a direction waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Waits {
    /// Its source to be readable.
    Readable,
    /// Its destination to be writable.
    Writable,
    /// `IORING_OP_SPLICE` into the pipe, and out of it.
    In,
    Out,
    /// A receive; a send.
    Recv,
    Send,
    /// A notice that gives a buffer back.
    Buffer,
    /// Nothing any more.
    Over,
}

struct Direction {
    pipe: Option<Pipe>,
    buffers: Vec<Box<[u8]>>,
    /// Buffers that the kernel does not hold.
    free: Vec<usize>,
    /// The one being filled or sent, and how much is in it.
    now: usize,
    to: usize,
    waits: Waits,
}

struct Flow {
    ends: [TcpStream; 2],
    directions: [Direction; 2],
}

struct Study {
    ring: IoUring,
    moves: Moves,
    flows: Vec<Flow>,
}

pub(super) fn run(listener: &TcpListener, backend: SocketAddr, moves: Moves) -> io::Result<()> {
    let mut study = Study { ring: open_ring(ENTRIES)?, moves, flows: Vec::new() };
    let waiting =
        opcode::PollAdd::new(Fd(raw(listener)), libc::POLLIN as u32).multi(true).build().user_data(LISTENER);
    study.push(&waiting)?;
    let mut done = Vec::new();
    loop {
        study.ring.submit_and_wait(1)?;
        done.clear();
        done.extend(study.ring.completion().map(|c| (c.user_data(), c.result(), c.flags())));
        for (tag, result, flags) in &done {
            if *tag == LISTENER {
                while let Some(ends) = accept(listener, backend)? {
                    study.begin(ends)?;
                }
                if !cqueue::more(*flags) {
                    study.push(&waiting)?;
                }
            } else {
                study.completed(*tag, *result, *flags)?;
            }
        }
    }
}

impl Study {
    fn begin(&mut self, ends: [TcpStream; 2]) -> io::Result<()> {
        // A receive on a non-blocking socket would end at once with nothing; the ring waits instead.
        let polls = matches!(self.moves, Moves::Splice | Moves::OpSplice);
        ends.iter().try_for_each(|end| end.set_nonblocking(polls))?;
        let direction = || -> io::Result<Direction> {
            let buffers = match self.moves {
                Moves::Send => 1,
                Moves::SendZc => BUFFERS,
                _ => 0,
            };
            Ok(Direction {
                pipe: polls.then(Pipe::open).transpose()?,
                buffers: (0..buffers).map(|_| vec![0; ROOM / buffers].into_boxed_slice()).collect(),
                free: (0..buffers).collect(),
                now: 0,
                to: 0,
                waits: Waits::Over,
            })
        };
        self.flows.push(Flow { ends, directions: [direction()?, direction()?] });
        let key = self.flows.len() - 1;
        (0..2).try_for_each(|side| self.next(key, side))
    }

    /// Starts what a direction with nothing in hand does first.
    fn next(&mut self, key: usize, side: usize) -> io::Result<()> {
        match self.moves {
            Moves::Splice | Moves::OpSplice => self.poll(key, side, Waits::Readable),
            Moves::Send | Moves::SendZc => self.receive(key, side),
        }
    }

    fn poll(&mut self, key: usize, side: usize, waits: Waits) -> io::Result<()> {
        let flow = &self.flows[key];
        let (end, events) = match waits {
            Waits::Readable => (&flow.ends[side], libc::POLLIN | libc::POLLRDHUP),
            _ => (&flow.ends[1 - side], libc::POLLOUT),
        };
        let entry = opcode::PollAdd::new(Fd(raw(end)), events as u32).build();
        self.launch(key, side, waits, entry)
    }

    fn receive(&mut self, key: usize, side: usize) -> io::Result<()> {
        let flow = &mut self.flows[key];
        let direction = &mut flow.directions[side];
        let Some(free) = direction.free.pop() else {
            direction.waits = Waits::Buffer;
            return Ok(());
        };
        direction.now = free;
        let buffer = &mut direction.buffers[free];
        let (at, len) = (buffer.as_mut_ptr(), buffer.len() as u32);
        let entry = opcode::Recv::new(Fd(raw(&flow.ends[side])), at, len).build();
        self.launch(key, side, Waits::Recv, entry)
    }

    fn send(&mut self, key: usize, side: usize) -> io::Result<()> {
        let flow = &self.flows[key];
        let direction = &flow.directions[side];
        let left = &direction.buffers[direction.now][..direction.to];
        let (at, len, to) = (left.as_ptr(), left.len() as u32, Fd(raw(&flow.ends[1 - side])));
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let entry = match self.moves {
            Moves::SendZc => opcode::SendZc::new(to, at, len).flags(flags).build(),
            _ => opcode::Send::new(to, at, len).flags(flags).build(),
        };
        self.launch(key, side, Waits::Send, entry)
    }

    fn hop(&mut self, key: usize, side: usize, waits: Waits) -> io::Result<()> {
        let flow = &self.flows[key];
        let Some(pipe) = &flow.directions[side].pipe else { return Ok(()) };
        let (from, to, len) = match waits {
            Waits::In => (raw(&flow.ends[side]), raw(&pipe.write), ROOM),
            _ => (raw(&pipe.read), raw(&flow.ends[1 - side]), pipe.held),
        };
        let entry = opcode::Splice::new(Fd(from), -1, Fd(to), -1, len as u32).flags(FLAGS).build();
        self.launch(key, side, waits, entry)
    }

    fn launch(&mut self, key: usize, side: usize, waits: Waits, entry: squeue::Entry) -> io::Result<()> {
        let direction = &mut self.flows[key].directions[side];
        direction.waits = waits;
        let tag = (key as u64) << 16 | (direction.now as u64) << 1 | side as u64;
        self.push(&entry.user_data(tag))
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: buffers, pipes and sockets belong to `flows`, from which nothing is taken away while the ring lives; a
            // buffer is not touched between its operation and that operation's completion, or its notice.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.ring.submit()?;
        }
    }

    fn completed(&mut self, tag: u64, result: i32, flags: u32) -> io::Result<()> {
        let (key, buffer, side) = ((tag >> 16) as usize, (tag >> 1 & 0x7fff) as usize, (tag & 1) as usize);
        let direction = &mut self.flows[key].directions[side];
        if cqueue::notif(flags) {
            direction.free.push(buffer);
            return if direction.waits == Waits::Buffer { self.receive(key, side) } else { Ok(()) };
        }
        match direction.waits {
            Waits::Readable if self.moves == Moves::OpSplice => self.hop(key, side, Waits::In),
            Waits::Writable if self.moves == Moves::OpSplice => self.hop(key, side, Waits::Out),
            Waits::Readable | Waits::Writable => self.pump(key, side),
            Waits::In | Waits::Out => self.hopped(key, side, result),
            Waits::Recv if result > 0 => {
                direction.to = result as usize;
                self.send(key, side)
            }
            Waits::Recv => self.end(key, side),
            Waits::Send if result > 0 => self.sent(key, side, result as usize, cqueue::more(flags)),
            Waits::Send => self.end(key, side),
            Waits::Buffer | Waits::Over => Ok(()),
        }
    }

    /// `noticed`: the buffer comes back with a notice of its own.
    fn sent(&mut self, key: usize, side: usize, n: usize, noticed: bool) -> io::Result<()> {
        let direction = &mut self.flows[key].directions[side];
        if n < direction.to {
            // MSG_WAITALL: only the receiver's end cuts a send short.
            return self.end(key, side);
        }
        if !noticed {
            direction.free.push(direction.now);
        }
        self.receive(key, side)
    }

    fn hopped(&mut self, key: usize, side: usize, result: i32) -> io::Result<()> {
        let direction = &mut self.flows[key].directions[side];
        let (waits, Some(pipe)) = (direction.waits, &mut direction.pipe) else { return Ok(()) };
        match (waits, result) {
            (Waits::In, 1..) => {
                pipe.held += result as usize;
                self.hop(key, side, Waits::Out)
            }
            (Waits::Out, 1..) => {
                pipe.held -= result as usize;
                let next = if pipe.held > 0 { Waits::Out } else { Waits::In };
                self.hop(key, side, next)
            }
            (Waits::In, code) if code == -libc::EAGAIN => self.poll(key, side, Waits::Readable),
            (Waits::Out, code) if code == -libc::EAGAIN => self.poll(key, side, Waits::Writable),
            _ => self.end(key, side),
        }
    }

    /// splice(2) until nothing moves, then the ring says when it goes on.
    fn pump(&mut self, key: usize, side: usize) -> io::Result<()> {
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        loop {
            let flow = &mut self.flows[key];
            let Some(pipe) = &mut flow.directions[side].pipe else { return Ok(()) };
            if pipe.held == 0 {
                match moved(splice(&flow.ends[side], None, &pipe.write, None, ROOM, flags)) {
                    Moved::Bytes(n) => pipe.held = n,
                    Moved::Nothing => return self.poll(key, side, Waits::Readable),
                    Moved::End => return self.end(key, side),
                }
            }
            match moved(splice(&pipe.read, None, &flow.ends[1 - side], None, pipe.held, flags)) {
                Moved::Bytes(n) => pipe.held -= n,
                Moved::Nothing => return self.poll(key, side, Waits::Writable),
                Moved::End => return self.end(key, side),
            }
        }
    }

    /// The end is passed on. Sockets and buffers stay with the study until it ends: it is a study.
    fn end(&mut self, key: usize, side: usize) -> io::Result<()> {
        let flow = &mut self.flows[key];
        flow.directions[side].waits = Waits::Over;
        let _ = flow.ends[1 - side].shutdown(Shutdown::Write);
        Ok(())
    }
}
