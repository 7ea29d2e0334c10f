//! Any bytes as the ticket journal: never a panic, no more remembered than may be, no more memory than that; and what was read is
//! what a journal written from it says.
#![no_main]

use std::alloc::System;
use std::time::UNIX_EPOCH;

use cap::Cap;
use libfuzzer_sys::fuzz_target;
use mksgate::ticket::TicketPolicy;
use mksgate::ticket::journal::{line, replay, write};

#[global_allocator]
static MEMORY: Cap<System> = Cap::new(System, usize::MAX);

/// A line, what stands in it, and the table's first entries.
const BASE: usize = 64 << 10;
/// For each byte of a record; the shortest use has some 150.
const TIMES: usize = 16;

fuzz_target!(|bytes: &[u8]| {
    let Some((&how, rest)) = bytes.split_first() else { return };
    // As they are, or each line with the checksum that lets it through.
    let bytes = match how & 1 {
        0 => rest.to_vec(),
        _ => rest.split(|byte| *byte == b'\n').flat_map(line).collect(),
    };
    let policy = TicketPolicy { max_tracked: 64, ..TicketPolicy::default() };
    MEMORY.set_limit(MEMORY.allocated() + BASE + TIMES * bytes.len()).expect("more than there is");
    let read = replay(&*bytes, &policy, UNIX_EPOCH);
    MEMORY.set_limit(usize::MAX).expect("more than there is");
    let (state, found) = read.expect("memory can be read");
    assert!(!(found.foreign && found.records > 0), "{found:?}");
    if bytes.len() > 2048 {
        // A record may be written longer than it was read, and so beyond what is read again.
        return;
    }
    let (again, found) = replay(&*write(state.clone()), &policy, UNIX_EPOCH).expect("memory can be read");
    assert_eq!((found.broken, found.torn, found.left_out), (0, 0, 0));
    // The order is a hash map's.
    let sorted = |state: &_| {
        let mut letters = format!("{state:?}").into_bytes();
        letters.sort_unstable();
        letters
    };
    assert_eq!(sorted(&again), sorted(&state));
});
