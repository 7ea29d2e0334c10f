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
    packet::{self, Frame, Kind, Syn},
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

    /// Nanoseconds of CLOCK_MONOTONIC; asked at most once, and only for a protected SYN.
    fn now(&self) -> u64;
    /// `None` before userspace has published anything: everything passes.
    fn globals(&self) -> Option<&Globals>;
    /// The port is protected on some address.
    fn port(&self, port: u16) -> bool;
    /// The tenant of a protected address and port (0 = the shared one), `None` if it is not protected.
    fn destination(&self, key: &Destination) -> Option<u32>;
    /// The longest configured prefix around the source: a tenant, or [`BALANCER`].
    fn prefix(&self, source: &Address) -> Option<u32>;
    /// What a valid ticket has taught of the source.
    fn learned(&self, key: SourceKey) -> Option<Learned>;
    /// The source's bucket, if it has one already. Counts what [`Tables::count_source`] is told.
    fn source(&self, key: SourceKey) -> Option<&Self::Word>;
    /// Gives the source a bucket; what cannot be stored is counted, and the source goes unlimited.
    fn add_source(&self, key: SourceKey, full_at: u64);
    /// Tells whether the bucket behind `word` gave a token.
    fn count_source(&self, word: &Self::Word, passed: bool);
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

/// The verdict on a frame that is not a SYN, or `None` for one that is.
///
/// The kernel asks this first: for the packets of established connections nothing else of the reader is kept, and the
/// SYN's own path is a function apart that looks at the frame again.
#[inline(always)]
pub fn unless_syn<F: Frame + ?Sized>(frame: &F) -> Option<Verdict> {
    match packet::look(frame).kind {
        Kind::Syn => None,
        Kind::Established => Some(Verdict::Established),
        Kind::NotIp => Some(Verdict::NotIp),
        Kind::OtherProtocol => Some(Verdict::OtherProtocol),
        Kind::LaterFragment => Some(Verdict::LaterFragment),
        Kind::Unparsable => Some(Verdict::Unparsable),
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
    let Some(owner) = tables.destination(&destination) else { return Judgement::UNPROTECTED };

    let now = tables.now();
    let origin = origin(syn, owner, globals, tables, now);
    let verdict = limits(syn, &origin, globals, tables, now);
    let shed = verdict.sheds();
    Judgement {
        verdict,
        tenant: origin.tenant,
        now,
        reset: shed && resets(syn, globals, tables, now),
        event: shed && spare(tables, shared::EVENTS, &globals.events, now),
    }
}

/// Whose SYN it is.
struct Origin {
    tenant: u32,
    balancer: bool,
}

#[inline(always)]
fn origin<T: Tables>(syn: &Syn, owner: u32, globals: &Globals, tables: &T, now: u64) -> Origin {
    let prefix =
        if globals.flags & Globals::PREFIXES != 0 { tables.prefix(&syn.source).unwrap_or(0) } else { 0 };
    let balancer = prefix == BALANCER;
    let tenant = if owner != 0 {
        owner
    } else if balancer {
        0
    } else if prefix != 0 {
        prefix
    } else if globals.flags & Globals::LEARNED != 0 {
        match tables.learned(syn.key) {
            Some(learned) if learned.expires > now => learned.tenant,
            _ => 0,
        }
    } else {
        0
    };
    Origin { tenant, balancer }
}

#[inline(always)]
fn limits<T: Tables>(syn: &Syn, origin: &Origin, globals: &Globals, tables: &T, now: u64) -> Verdict {
    if !origin.balancer && !source_gives(syn.key, globals, tables, now) {
        return Verdict::SourceRate;
    }
    if let Some(tenant) = tables.tenant(origin.tenant) {
        if tenant.active >= tenant.max && tenant.max != u32::MAX {
            return Verdict::TenantFull;
        }
        if let Some(word) = tables.tenant_word(origin.tenant)
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
fn source_gives<T: Tables>(key: SourceKey, globals: &Globals, tables: &T, now: u64) -> bool {
    if globals.source.interval == 0 {
        return true;
    }
    if let Some(word) = tables.source(key) {
        let given = bucket::take(word, &globals.source, now);
        tables.count_source(word, given);
        return given;
    }
    let Some(full_at) = globals.source.next(0, now) else { return false };
    tables.add_source(key, full_at);
    true
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
    match tables.shared(index) {
        Some(word) => bucket::take(word, rate, now),
        None => true,
    }
}
