//! The verdict: what becomes of a packet, as a pure function of the packet, the maps and the time.
//!
//! ```text
//! frame ─ packet::read ─┬─ not a SYN ──────────────────────────────────────────────→ pass
//!                       └─ SYN ─ protected? ─┬─ no ────────────────────────────────→ pass
//!                                            └─ whose? destination, prefix, learned, shared
//!                                                 → source rate → tenant full → tenant rate → global rate → pass
//! ```

use crate::{
    bucket::{self, Cell},
    map::{Address, BALANCER, Destination, Globals, Learned, SourceKey, Tenant, shared},
    packet::{self, Frame, Kind, Look, Syn},
    sources::{self, Place, Seat},
};

/// What becomes of a packet. The numbers are indexes of counters.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Passes: neither IPv4 nor IPv6.
    NotIp = 0,
    /// Passes: not TCP.
    OtherProtocol = 1,
    /// Passes: a fragment without TCP header.
    LaterFragment = 2,
    /// Passes: could not be read.
    Unparsable = 3,
    /// Passes: TCP, not a first packet.
    Established = 4,
    /// Passes: a SYN to an address or port that is not protected.
    Unprotected = 5,
    /// Passes: a SYN within all limits.
    Pass = 6,
    /// Shed: its source sends too many.
    SourceRate = 7,
    /// Shed: its tenant has all the sessions it may have.
    TenantFull = 8,
    /// Shed: its tenant gets too many.
    TenantRate = 9,
    /// Shed: all together are too many.
    GlobalRate = 10,
}

impl Verdict {
    /// How many there are.
    pub const COUNT: usize = 11;
    /// How many of them concern a SYN to a protected port.
    pub const SYN_COUNT: usize = 5;
    /// All, in the order of their numbers.
    pub const ALL: [Verdict; Self::COUNT] = [
        Verdict::NotIp,
        Verdict::OtherProtocol,
        Verdict::LaterFragment,
        Verdict::Unparsable,
        Verdict::Established,
        Verdict::Unprotected,
        Verdict::Pass,
        Verdict::SourceRate,
        Verdict::TenantFull,
        Verdict::TenantRate,
        Verdict::GlobalRate,
    ];

    /// The packet does not reach the stack.
    #[inline(always)]
    pub const fn sheds(self) -> bool {
        self as u32 > Verdict::Pass as u32
    }

    /// The index among the verdicts on a protected SYN, see [`crate::map::TenantCounters`].
    #[inline(always)]
    pub const fn syn_index(self) -> Option<usize> {
        (self as usize).checked_sub(Verdict::Pass as usize)
    }

    /// Its name in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Verdict::NotIp => "not_ip",
            Verdict::OtherProtocol => "other_protocol",
            Verdict::LaterFragment => "later_fragment",
            Verdict::Unparsable => "unparsable",
            Verdict::Established => "established",
            Verdict::Unprotected => "unprotected",
            Verdict::Pass => "pass",
            Verdict::SourceRate => "source_rate",
            Verdict::TenantFull => "tenant_full",
            Verdict::TenantRate => "tenant_rate",
            Verdict::GlobalRate => "global_rate",
        }
    }
}

/// The maps and the clock, as the verdict sees them: BPF maps in the kernel, collections in tests.
pub trait Tables {
    /// A bucket's word.
    type Word: Cell;
    /// A place of `SOURCES`.
    type Place: Place;

    /// Nanoseconds of CLOCK_MONOTONIC; asked at most once, and only for a protected SYN.
    fn now(&self) -> u64;
    /// `None` before userspace has published anything: everything passes.
    fn globals(&self) -> Option<&Globals>;
    /// The port is protected on some address.
    fn port(&self, port: u16) -> bool;
    /// The tenant of a protected address and port (0 = the shared one), `None` if it is not protected.
    fn destination(&self, key: &Destination, globals: &Globals) -> Option<u32>;
    /// The longest configured prefix around the source: a tenant, or [`BALANCER`].
    fn prefix(&self, source: &Address) -> Option<u32>;
    /// What a valid ticket has taught of the source.
    fn learned(&self, key: SourceKey, globals: &Globals) -> Option<Learned>;
    /// The places of a line of `SOURCES`.
    fn line(&self, index: u32) -> Option<(&Self::Place, &Self::Place)>;
    /// Counts a source that got no place and goes on without a limit of its own.
    fn no_place(&self);
    /// A tenant by number.
    fn tenant(&self, number: u32) -> Option<&Tenant>;
    /// A tenant's bucket.
    fn tenant_word(&self, number: u32) -> Option<&Self::Word>;
    /// A bucket of [`shared`].
    fn shared(&self, index: u32) -> Option<&Self::Word>;
}

/// The verdict on a SYN, and what to do beside. For an unprotected SYN the rest is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// What becomes of the packet.
    pub verdict: Verdict,
    /// Whose it is: the number of a tenant, or 0.
    pub tenant: u32,
    /// When it was judged.
    pub now: u64,
    /// Answer by a reset instead of silence.
    pub reset: bool,
    /// Write a drop event.
    pub event: bool,
}

impl Judgement {
    const UNPROTECTED: Judgement =
        Judgement { verdict: Verdict::Unprotected, tenant: 0, now: 0, reset: false, event: false };
}

/// The verdict on a frame that is not a SYN, or the look at one that is.
///
/// # Errors
/// It is a SYN: the kernel's program judges it in a function apart, so that the packets of established connections keep
/// nothing else of the reader.
#[inline(always)]
pub fn unless_syn<F: Frame + ?Sized>(frame: &F) -> Result<Verdict, Look> {
    let look = packet::look(frame);
    match look.kind {
        Kind::Syn => Err(look),
        Kind::Established => Ok(Verdict::Established),
        Kind::NotIp => Ok(Verdict::NotIp),
        Kind::OtherProtocol => Ok(Verdict::OtherProtocol),
        Kind::LaterFragment => Ok(Verdict::LaterFragment),
        Kind::Unparsable => Ok(Verdict::Unparsable),
    }
}

/// Judges a SYN.
#[inline(always)]
pub fn judge<T: Tables>(syn: &Syn, tables: &T) -> Judgement {
    if !tables.port(syn.destination_port) {
        return Judgement::UNPROTECTED;
    }
    let Some(globals) = tables.globals() else { return Judgement::UNPROTECTED };
    let destination = Destination::new(syn.destination, syn.destination_port);
    let Some(owner) = tables.destination(&destination, globals) else { return Judgement::UNPROTECTED };

    let now = tables.now();
    let limited = globals.source.interval != 0;
    let seat = if limited { sources::find(syn.key, globals, tables, now) } else { Seat::NONE };
    let prefix = prefix(syn, seat.of_it(), globals, tables);
    let tenant = tenant(syn, owner, prefix, globals, tables, now);
    let kept = kept(globals, prefix);
    let verdict =
        if limited && prefix != BALANCER && !sources::take(syn.key, &seat, kept, globals, tables, now) {
            Verdict::SourceRate
        } else {
            limits(tenant, globals, tables, now)
        };
    let shed = verdict.sheds();
    Judgement {
        verdict,
        tenant,
        now,
        reset: shed && resets(syn, globals, tables, now),
        event: shed && spare(tables, shared::EVENTS, &globals.events, now),
    }
}

/// What `PREFIXES` says of the source: a tenant, [`BALANCER`], or 0.
#[inline(always)]
fn prefix<T: Tables>(syn: &Syn, entry: Option<&T::Place>, globals: &Globals, tables: &T) -> u32 {
    if globals.flags & Globals::PREFIXES == 0 {
        return 0;
    }
    // Where the key does not tell the prefix, the trie is asked each time.
    let entry = if syn.v6 && globals.flags & Globals::LONG_PREFIXES != 0 { None } else { entry };
    if let Some(entry) = entry {
        let kept = entry.prefix();
        if (kept >> 32) as u32 == globals.generation {
            return kept as u32;
        }
    }
    let found = tables.prefix(&syn.source).unwrap_or(0);
    if let Some(entry) = entry {
        entry.set_prefix(kept(globals, found));
    }
    found
}

#[inline(always)]
fn kept(globals: &Globals, prefix: u32) -> u64 {
    (globals.generation as u64) << 32 | prefix as u64
}

/// Whose SYN it is: the destination's, else the prefix's, else what was learned, else the shared tenant's.
#[inline(always)]
fn tenant<T: Tables>(syn: &Syn, owner: u32, prefix: u32, globals: &Globals, tables: &T, now: u64) -> u32 {
    if owner != 0 {
        return owner;
    }
    if prefix == BALANCER {
        return 0;
    }
    if prefix != 0 {
        return prefix;
    }
    if globals.flags & Globals::LEARNED == 0 {
        return 0;
    }
    match tables.learned(syn.key, globals) {
        Some(learned) if learned.expires > now => learned.tenant,
        _ => 0,
    }
}

#[inline(always)]
fn limits<T: Tables>(number: u32, globals: &Globals, tables: &T, now: u64) -> Verdict {
    if let Some(tenant) = tables.tenant(number) {
        if tenant.active >= tenant.max && tenant.max != u32::MAX {
            return Verdict::TenantFull;
        }
        if tenant.rate.interval != 0
            && let Some(word) = tables.tenant_word(number)
            && !bucket::take(word, &tenant.rate, now)
        {
            return Verdict::TenantRate;
        }
    }
    if !spare(tables, shared::GLOBAL, &globals.global, now) {
        return Verdict::GlobalRate;
    }
    Verdict::Pass
}

#[inline(always)]
fn resets<T: Tables>(syn: &Syn, globals: &Globals, tables: &T, now: u64) -> bool {
    globals.flags & Globals::RESET != 0
        && syn.answerable
        && spare(tables, shared::RESETS, &globals.resets, now)
}

/// A token of a shared bucket.
#[inline(always)]
fn spare<T: Tables>(tables: &T, index: u32, rate: &bucket::Rate, now: u64) -> bool {
    if rate.interval == 0 {
        return true;
    }
    match tables.shared(index) {
        Some(word) => bucket::take(word, rate, now),
        None => true,
    }
}
