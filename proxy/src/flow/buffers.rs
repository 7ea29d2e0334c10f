//! The provided buffers of one ring: the kernel picks one when a receive has bytes for it, so a silent flow owns none.
//!
//! The kernel reads the ring of descriptors (`struct io_uring_buf`, io_uring_register_buf_ring(3)) and writes into the
//! buffers. Both are mappings of this struct; it must be dropped after the ring that knows them.

#![expect(unsafe_code, reason = "memory shared with the kernel")]

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

use super::state::{Direction, NO_BUFFER};

/// The buffer group of the flows.
pub(super) const GROUP: u16 = 0;

#[derive(Clone, Copy)]
struct Held {
    next: u16,
    from: u32,
    to: u32,
}

struct Mapping {
    at: NonNull<u8>,
    bytes: usize,
}

impl Mapping {
    fn new(bytes: usize) -> io::Result<Self> {
        let (access, kind) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
        );
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, kind, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = NonNull::new(at.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Self { at, bytes })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody uses it any more: the ring was dropped before.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.bytes) };
    }
}

/// The buffers.
pub(super) struct Buffers {
    ring: Mapping,
    area: Mapping,
    held: Box<[Held]>,
    bytes: usize,
    tail: u16,
    in_use: usize,
}

impl Buffers {
    /// Maps `count` (a power of two) buffers of `bytes` each and registers them with `ring`.
    pub(super) fn register(ring: &IoUring, count: u16, bytes: usize) -> io::Result<Self> {
        let held = vec![Held { next: NO_BUFFER, from: 0, to: 0 }; count as usize].into_boxed_slice();
        let descriptors = Mapping::new(count as usize * size_of::<BufRingEntry>())?;
        let area = Mapping::new(count as usize * bytes)?;
        // SAFETY: the mapping holds `count` entries, is page-aligned, and outlives the ring (see the module).
        unsafe {
            let at = descriptors.at.as_ptr() as u64;
            ring.submitter().register_buf_ring_with_flags(at, count, GROUP, 0)?;
        }
        let mut buffers = Self { ring: descriptors, area, held, bytes, tail: 0, in_use: count as usize };
        (0..count).for_each(|id| buffers.release(id));
        Ok(buffers)
    }

    /// Size of one buffer.
    pub(super) fn size(&self) -> usize {
        self.bytes
    }

    /// Buffers with bytes in them.
    pub(super) fn in_use(&self) -> usize {
        self.in_use
    }

    /// Whether the kernel has one left.
    pub(super) fn available(&self) -> bool {
        self.in_use < self.held.len()
    }

    /// Takes note that the kernel filled buffer `id` with `n` bytes, and queues it in `dir`.
    pub(super) fn push(&mut self, dir: &mut Direction, id: u16, n: usize) {
        self.in_use += 1;
        self.held[id as usize] = Held { next: NO_BUFFER, from: 0, to: n as u32 };
        match dir.tail {
            NO_BUFFER => dir.head = id,
            tail => self.held[tail as usize].next = id,
        }
        dir.tail = id;
        dir.queued += 1;
    }

    /// What is left in the oldest buffer of `dir`.
    pub(super) fn front(&self, dir: &Direction) -> Option<&[u8]> {
        let held = self.held.get(dir.head as usize)?;
        let start = dir.head as usize * self.bytes;
        // SAFETY: the buffer is ours until it is released, and `from..to` was written by the kernel.
        Some(unsafe {
            let at = self.area.at.as_ptr().add(start + held.from as usize);
            std::slice::from_raw_parts(at, (held.to - held.from) as usize)
        })
    }

    /// What the kernel has just put into buffer `id`, which is in no queue; [`Buffers::discard`] gives it back.
    pub(super) fn filled(&self, id: u16, n: usize) -> &[u8] {
        let start = id as usize * self.bytes;
        // SAFETY: the kernel wrote `n` bytes and has no use of the buffer until it is released.
        unsafe { std::slice::from_raw_parts(self.area.at.as_ptr().add(start), n.min(self.bytes)) }
    }

    /// Marks `n` bytes of the oldest buffer as sent; gives it back to the kernel with the last.
    pub(super) fn advance(&mut self, dir: &mut Direction, n: usize) {
        let held = &mut self.held[dir.head as usize];
        held.from += n as u32;
        if held.from == held.to {
            self.pop(dir);
        }
    }

    /// Gives the oldest buffer of `dir` back; false if there was none.
    pub(super) fn pop(&mut self, dir: &mut Direction) -> bool {
        if dir.head == NO_BUFFER {
            return false;
        }
        let id = dir.head;
        dir.head = self.held[id as usize].next;
        dir.queued -= 1;
        if dir.head == NO_BUFFER {
            dir.tail = NO_BUFFER;
        }
        self.release(id);
        true
    }

    /// Gives a buffer back whose bytes nobody wants.
    pub(super) fn discard(&mut self, id: u16) {
        self.in_use += 1;
        self.release(id);
    }

    fn release(&mut self, id: u16) {
        let mask = self.held.len() - 1;
        let entries = self.ring.at.as_ptr().cast::<BufRingEntry>();
        // SAFETY: the masked index lies inside the mapping; the kernel does not read an entry before the tail passes
        // it; `id` is not in use any more.
        unsafe {
            let entry = &mut *entries.add(self.tail as usize & mask);
            entry.set_addr(self.area.at.as_ptr().add(id as usize * self.bytes) as u64);
            entry.set_len(self.bytes as u32);
            entry.set_bid(id);
        }
        self.tail = self.tail.wrapping_add(1);
        self.in_use -= 1;
        // SAFETY: the tail lies in the first entry's reserved field, is aligned, and is read by the kernel with acquire.
        unsafe {
            let tail = BufRingEntry::tail(entries).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }
}
