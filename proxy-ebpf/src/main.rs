//! The XDP program of mksgate: reads the frame, asks `mksgate_common::verdict`, counts, and acts.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod maps;
mod tables;

use aya_ebpf::{
    bindings::{
        xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
        xdp_md,
    },
    helpers::generated::{bpf_xdp_adjust_tail, bpf_xdp_get_buff_len},
    macros::xdp,
    programs::XdpContext,
};
use mksgate_common::{
    map::Event,
    packet::{self, Frame, Look, Syn},
    reset,
    verdict::{self, Judgement, Verdict},
};

/// For drivers and kernels with multi-buffer frames (5.18).
#[inline(always)]
#[xdp(frags)]
pub fn mksgate(ctx: XdpContext) -> u32 {
    gate::<true>(&ctx)
}

/// The same for those without.
#[inline(always)]
#[xdp]
pub fn mksgate_plain(ctx: XdpContext) -> u32 {
    gate::<false>(&ctx)
}

/// Does nothing: what the bench measures the others against.
#[inline(always)]
#[xdp]
pub fn mksgate_empty(_ctx: XdpContext) -> u32 {
    XDP_PASS
}

#[inline(always)]
fn gate<const FRAGS: bool>(ctx: &XdpContext) -> u32 {
    match verdict::unless_syn(&Linear::of(ctx)) {
        Ok(verdict) => {
            count(verdict);
            XDP_PASS
        }
        Err(look) => gate_syn::<FRAGS>(ctx.ctx, look.pack()),
    }
}

/// A function apart, so that its registers and its stack cost the other packets nothing.
#[inline(never)]
fn gate_syn<const FRAGS: bool>(ctx: *mut xdp_md, look: u64) -> u32 {
    let ctx = &XdpContext::new(ctx);
    let frame = Linear::of(ctx);
    let look = Look::unpack(look);
    let Some(syn) = packet::syn(&frame, &look) else {
        count(Verdict::Unparsable);
        return XDP_PASS;
    };
    let judgement = verdict::judge(&syn, &tables::Maps);
    let verdict = judgement.verdict;
    count(verdict);
    if verdict.syn_index().is_some() {
        count_tenant(&judgement);
    }
    if !verdict.sheds() {
        return XDP_PASS;
    }
    if judgement.event {
        tell(ctx, &syn, &judgement);
    }
    if judgement.reset { answer::<FRAGS>(ctx, &syn, u64::from(look.l4 + look.length)) } else { XDP_DROP }
}

/// The linear part of the frame.
struct Linear {
    start: usize,
    end: usize,
}

impl Linear {
    #[inline(always)]
    fn of(ctx: &XdpContext) -> Linear {
        let start = ctx.data();
        // SAFETY: a frame has an address. Told to the compiler because it would otherwise test every reference against
        // null, and the verifier refuses such a comparison of a packet pointer.
        unsafe { core::hint::assert_unchecked(start != 0) };
        Linear { start, end: ctx.data_end() }
    }
}

impl Frame for Linear {
    #[inline(always)]
    fn bytes<const N: usize>(&self, at: usize) -> Option<&[u8; N]> {
        let from = self.start + at;
        if from + N > self.end {
            return None;
        }
        // SAFETY: the sum does not wrap, addresses of frames and offsets into them are far from it.
        unsafe { core::hint::assert_unchecked(from != 0) };
        // SAFETY: the N bytes lie before data_end; the verifier proves it again from the comparison above. Nothing
        // writes to the frame while the reader lives.
        Some(unsafe { &*(from as *const [u8; N]) })
    }
}

#[inline(always)]
fn count(verdict: Verdict) {
    if let Some(counters) = maps::COUNTERS.get_ptr_mut(0) {
        // SAFETY: this CPU's copy. The index is a verdict, so it is below the length.
        unsafe { *(&raw mut (*counters).packets).cast::<u64>().add(verdict as usize) += 1 }
    }
}

#[inline(always)]
fn count_tenant(judgement: &Judgement) {
    let Some(index) = judgement.verdict.syn_index() else { return };
    let Some(counters) = maps::TENANT_COUNTERS.get_ptr_mut(judgement.tenant) else { return };
    if index < Verdict::SYN_COUNT {
        // SAFETY: this CPU's copy; the index is below the length.
        unsafe { *(&raw mut (*counters).syns).cast::<u64>().add(index) += 1 }
    }
    if judgement.reset {
        // SAFETY: as above.
        unsafe { (*counters).resets += 1 }
    }
}

/// Writes a drop event; when userspace does not keep up, the loss is counted.
#[inline(always)]
fn tell(ctx: &XdpContext, syn: &Syn, judgement: &Judgement) {
    let event = Event {
        at: judgement.now,
        source: syn.source,
        destination: syn.destination,
        tenant: judgement.tenant,
        verdict: judgement.verdict as u32,
        port: u32::from(syn.destination_port),
        interface: ctx.ingress_ifindex() as u32,
    };
    if maps::EVENTS.output::<Event>(&event, 0).is_err()
        && let Some(counters) = maps::COUNTERS.get_ptr_mut(0)
    {
        // SAFETY: this CPU's copy.
        unsafe { (*counters).events_lost += 1 }
    }
}

/// Turns the SYN, which ends at `end`, into its reset and sends it back; if that cannot be done, it is dropped.
#[inline(always)]
fn answer<const FRAGS: bool>(ctx: &XdpContext, syn: &Syn, end: u64) -> u32 {
    let done = if syn.v6 {
        place::<FRAGS, _>(ctx, syn.l3, reset::v6(syn), end)
    } else {
        place::<FRAGS, _>(ctx, syn.l3, reset::v4(syn), end)
    };
    if done {
        return XDP_TX;
    }
    if let Some(counters) = maps::COUNTERS.get_ptr_mut(0) {
        // SAFETY: this CPU's copy.
        unsafe { (*counters).resets_failed += 1 }
    }
    XDP_DROP
}

/// The offsets as constants, for the verifier.
#[inline(always)]
fn place<const FRAGS: bool, const N: usize>(ctx: &XdpContext, l3: u32, packet: [u32; N], end: u64) -> bool {
    match l3 {
        14 => rewrite::<FRAGS, 14, N>(ctx, packet, end),
        18 => rewrite::<FRAGS, 18, N>(ctx, packet, end),
        _ => rewrite::<FRAGS, 22, N>(ctx, packet, end),
    }
}

/// Swaps the Ethernet addresses, writes `packet` at `L3`, cuts the rest off.
#[inline(always)]
fn rewrite<const FRAGS: bool, const L3: usize, const N: usize>(
    ctx: &XdpContext,
    packet: [u32; N],
    packet_end: u64,
) -> bool {
    let (start, end) = (ctx.data(), ctx.data_end());
    let reset = L3 + N * 4;
    if start + reset > end {
        return false;
    }
    // A frame of several buffers is longer than what lies between start and end. If the packet is not, what the other
    // buffers hold is padding, and no matter.
    let length = if FRAGS && packet_end > (end - start) as u64 {
        // SAFETY: the context is the program's own.
        unsafe { bpf_xdp_get_buff_len(ctx.ctx) as usize }
    } else {
        end - start
    };
    let ethernet = start as *mut [u8; 6];
    // SAFETY: so many bytes lie before data_end, and no reference to the frame is alive.
    unsafe {
        let to = ethernet.read_unaligned();
        ethernet.write_unaligned(ethernet.add(1).read_unaligned());
        ethernet.add(1).write_unaligned(to);
        ((start + L3) as *mut [u32; N]).write_unaligned(packet);
    }
    // SAFETY: the context is the program's own; every pointer into the frame is dead from here on.
    length == reset || unsafe { bpf_xdp_adjust_tail(ctx.ctx, reset as i32 - length as i32) } == 0
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // A loop without end: the verifier refuses the program if any path leads here, so "no panic" is a proof.
    loop {}
}

/// The kernel asks for it: ring buffers and helpers are for GPL-compatible programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
