//! A tenant's set-up latency while another tenant's side attacks: SYNs, spoofed and not, TLS handshakes that go no further, and
//! consoles past the limit. And what the same SYNs do to all other traffic.
//!
//! Three appliances with one configuration, each in a namespace of its own, and a fourth namespace that takes the same flood where
//! it is nobody's business of ours, so that what the generator costs this machine is in the comparison:
//!
//! | contender | gate | attack |
//! |---|---|---|
//! | quiet | XDP | none |
//! | elsewhere | XDP | to a host that takes no notice |
//! | xdp | XDP | to the appliance |
//! | nftables | the same policy as rules | to the appliance |
//! | without | none; the limits in userspace | to the appliance |
//!
//! All appliances have the first core, clients and hosts the others. Contenders take turns in spans of less than a second, and a
//! percentile is that of all consoles of all spans: of one span it would be that of one or two consoles. How sure a ratio is, is
//! said by spans drawn anew from those that were measured (bootstrap). How much two such figures differ where nothing differs
//! is in the report, too: every other span with the flood elsewhere against the spans between them.
//!
//! Other traffic (TCP, UDP, ICMP, ARP, neighbour discovery) is offered at a fixed pace below saturation, in windows of a tenth of a
//! second: the generator, the receiving side of the wire and the senders share two cores, and at saturation a rate says who got the
//! core. What is untouched loses nothing and keeps the pace.

mod attack;
mod exchange;
mod neighbour;
mod site;
mod traffic;

use std::fmt;

use anyhow::{Result, bail};
use hdrhistogram::Histogram;
use mksgate::xdp::{OBJECT, missing_capabilities};
use serde::Serialize;

use crate::load::arrivals::Arrivals;
use crate::load::cost::{cores, hurry, pin};
use crate::load::crowd::histogram;
use crate::load::goals::Goal;
use crate::load::trace::Random;
use crate::report::goals::figure;
use crate::run::process::find;
use crate::run::rounds::of;
use crate::run::{Chart, Context, Outcome, Series, Skip, Spread, Table};
use attack::Force;
use site::{Gate, HELD, LIMIT, Land, Site};

const SUITE: &str = "flood";
/// Consoles of the other tenant that arrive per second.
const RATE: f64 = 150.0;
/// Spans of each contender in a round.
const SPANS: usize = 5;
/// Draws of spans for the confidence of a ratio.
const DRAWS: usize = 400;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contender {
    Quiet,
    Elsewhere,
    Xdp,
    Nftables,
    Without,
}

impl Contender {
    fn gate(self) -> Gate {
        match self {
            Self::Quiet | Self::Elsewhere | Self::Xdp => Gate::Xdp,
            Self::Nftables => Gate::Nftables,
            Self::Without => Gate::Without,
        }
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quiet => "quiet",
            Self::Elsewhere => "elsewhere",
            Self::Xdp => "xdp",
            Self::Nftables => "nftables",
            Self::Without => "without",
        })
    }
}

/// One span of one contender, or several together.
#[derive(Clone, Debug, Serialize)]
struct Span {
    /// Seconds.
    time: f64,
    /// Milliseconds from when a console was due until its first byte.
    p50: f64,
    p99: f64,
    opened: u64,
    /// Consoles that could not be opened.
    failed: u64,
    /// Consoles that stood before and did not answer any more.
    lost: usize,
    /// Proxy CPU per console, ms.
    proxy: f64,
    #[serde(flatten)]
    force: Force,
    #[serde(skip)]
    total: Histogram<u64>,
}

impl Span {
    fn together<'a>(spans: impl IntoIterator<Item = &'a Span>) -> Result<Self> {
        let empty = Span {
            time: 0.0,
            p50: f64::NAN,
            p99: f64::NAN,
            opened: 0,
            failed: 0,
            lost: 0,
            proxy: 0.0,
            force: Force::default(),
            total: histogram()?,
        };
        let mut all = spans.into_iter().try_fold(empty, |mut all, span| {
            all.total.add(&span.total)?;
            anyhow::Ok(Span {
                time: all.time + span.time,
                opened: all.opened + span.opened,
                failed: all.failed + span.failed,
                lost: all.lost + span.lost,
                proxy: all.proxy + span.proxy * span.opened as f64,
                force: all.force.and(span.force),
                ..all
            })
        })?;
        if all.opened > 0 {
            [all.p50, all.p99] = [0.5, 0.99].map(|q| all.total.value_at_quantile(q) as f64 / 1e6);
            all.proxy /= all.opened as f64;
        }
        Ok(all)
    }
}

/// Runs every contender in turn.
pub fn run(context: &Context, out: &mut Outcome) -> Result<()> {
    let missing = missing_capabilities();
    if OBJECT.is_none() || !missing.is_empty() {
        bail!(Skip::because("needs root and a build with the XDP program"));
    }
    let mut gates = vec![Gate::Xdp, Gate::Nftables, Gate::Without];
    if find("nft").is_none() {
        gates.remove(1);
        out.note("nft is not installed; left out");
    }
    let pinned = Pinned::new(out);
    let land = Land::new(&gates)?;
    let done = land.with_sites(context, |sites| {
        set_up(context, &land, sites, out)?;
        traffic::others(context, &land, out)
    });
    drop(pinned);
    done
}

/// This process on all cores but the first, until it is dropped.
struct Pinned;

impl Pinned {
    fn new(out: &mut Outcome) -> Self {
        if cores() > 1 {
            pin(std::process::id(), 1..cores());
        } else {
            out.note("one core: appliances and clients share it");
        }
        Self
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        pin(std::process::id(), 0..cores());
    }
}

fn set_up(context: &Context, land: &Land, sites: &[Site], out: &mut Outcome) -> Result<()> {
    let (spans, seconds) = (context.rounds(5, 1) * SPANS, context.seconds(4.0, 1.6) / SPANS as f64);
    let all =
        [Contender::Quiet, Contender::Elsewhere, Contender::Xdp, Contender::Nftables, Contender::Without];
    let site = |contender: Contender| sites.iter().find(|site| site.gate == contender.gate());
    let mut turns: Vec<_> =
        all.into_iter().filter_map(|who| Some(Turn { who, site: site(who)?, n: 0 })).collect();
    let series = context.alternate(out, spans, &mut turns, |turn| {
        turn.n += 1;
        span(context, land, turn, seconds)
    })?;
    out.table(table(&series)?);
    out.raw("spans", &series);
    out.table(compared(&series, context.options.seed)?);
    goals(&series, sites, context.options.seed, out)?;
    let mut curves = Vec::new();
    for s in series.iter().filter(|s| !s.rounds.is_empty()) {
        curves.push((s.contender.clone(), Span::together(&s.rounds)?.total));
    }
    out.histograms.extend(curves.iter().cloned());
    out.charts
        .push(Chart::Percentiles { title: "Set-up of the other tenant's consoles".into(), series: curves });
    Ok(())
}

/// Whose turn it is.
struct Turn<'a> {
    who: Contender,
    site: &'a Site,
    n: u64,
}

impl fmt::Display for Turn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.who.fmt(f)
    }
}

fn span(context: &Context, land: &Land, turn: &Turn<'_>, seconds: f64) -> Result<Span> {
    let site = turn.site;
    let arrivals = Arrivals { rate: RATE, seconds, span: turn.n };
    let visits = || {
        land.world.run(|| {
            hurry();
            arrivals.run(context, &site.way, Some(site.pid()), &site.client)
        })
    };
    let (met, force) = match turn.who {
        Contender::Quiet => (visits()?, Force::default()),
        who => attack::during(land, site, who == Contender::Elsewhere, visits)?,
    };
    let total = met.met.map_or_else(histogram, |met| Ok(met.total.clone()))?;
    let (time, opened) = (seconds, total.len());
    let proxy = if opened > 0 { met.proxy } else { 0.0 };
    Ok(Span {
        time,
        p50: met.total[0],
        p99: met.total[2],
        opened,
        failed: met.failed,
        lost: site.lost(),
        proxy,
        force,
        total,
    })
}

/// p99 of all of ours over that of all of theirs, and between what it lies in 95 of 100 draws of as many pairs of spans.
fn ratio<'a>(pairs: &[(&'a Span, &'a Span)], seed: u64) -> Result<Spread> {
    let p99 = |pairs: &[(&Span, &Span)]| {
        let (ours, theirs): (Vec<&Span>, Vec<&Span>) = pairs.iter().copied().unzip();
        anyhow::Ok(Span::together(ours)?.p99 / Span::together(theirs)?.p99)
    };
    let mut random = Random::new(seed);
    let mut draw = || {
        let drawn: Vec<_> = pairs.iter().map(|_| pairs[random.below(pairs.len())]).collect();
        p99(&drawn)
    };
    let mut drawn = (0..DRAWS).map(|_| draw()).collect::<Result<Vec<f64>>>()?;
    drawn.sort_by(f64::total_cmp);
    Ok(Spread { median: p99(pairs)?, low: drawn[DRAWS / 40], high: drawn[DRAWS - 1 - DRAWS / 40] })
}

/// Spans that were measured one after the other.
fn pairs<'a>(ours: &'a Series<Span>, theirs: &'a Series<Span>) -> Vec<(&'a Span, &'a Span)> {
    ours.rounds.iter().zip(&theirs.rounds).collect()
}

fn compared(series: &[Series<Span>], seed: u64) -> Result<Table> {
    let title = "p99 over that with the flood elsewhere, all consoles; from, to: 95 of 100 draws of spans";
    let mut table = Table::new(title, ["", "ratio", "from", "to"]);
    let mut row = |name: &str, r: Spread| {
        table.row([name.to_owned(), figure(r.median), figure(r.low), figure(r.high)]);
    };
    let Some(elsewhere) = of(series, "elsewhere") else { return Ok(table) };
    for s in series.iter().filter(|s| s.contender != "elsewhere" && !s.rounds.is_empty()) {
        row(&s.contender, ratio(&pairs(s, elsewhere), seed)?);
    }
    let (halves, _) = elsewhere.rounds.as_chunks::<2>();
    row("elsewhere, over itself", ratio(&halves.iter().map(|[a, b]| (a, b)).collect::<Vec<_>>(), seed)?);
    Ok(table)
}

fn table(series: &[Series<Span>]) -> Result<Table> {
    let head = [
        "",
        "p50",
        "p99",
        "opened",
        "failed",
        "lost",
        "proxy CPU",
        "attacker's consoles",
        "tried",
        "SYNs/s",
        "handshakes/s",
    ];
    let title =
        "set-up of the other tenant's consoles, ms; most consoles that the attacker's tenant had at once";
    let mut table = Table::new(title, head);
    for s in series.iter().filter(|s| !s.rounds.is_empty()) {
        let all = Span::together(&s.rounds)?;
        table.row([
            s.contender.clone(),
            format!("{:.2}", all.p50),
            format!("{:.2}", all.p99),
            all.opened.to_string(),
            all.failed.to_string(),
            all.lost.to_string(),
            format!("{:.2}", all.proxy),
            all.force.most.to_string(),
            all.force.tried.to_string(),
            format!("{:.0}", all.force.syns as f64 / all.time),
            format!("{:.0}", all.force.handshakes as f64 / all.time),
        ]);
    }
    Ok(table)
}

fn most(series: &Series<Span>) -> usize {
    series.rounds.iter().map(|r| r.force.most).max().unwrap_or(0)
}

fn goals(series: &[Series<Span>], sites: &[Site], seed: u64, out: &mut Outcome) -> Result<()> {
    let (Some(xdp), Some(elsewhere)) = (of(series, "xdp"), of(series, "elsewhere")) else { return Ok(()) };
    let ratio = ratio(&pairs(xdp, elsewhere), seed)?;
    out.goals.push(Goal::at_most(SUITE, "p99 with XDP / p99 with the flood elsewhere", ratio, 1.2));
    let failed: u64 = xdp.rounds.iter().map(|r| r.failed).sum();
    out.goals.push(Goal::at_most(SUITE, "consoles not opened with XDP", failed as f64, 0.0));
    let lost: usize = xdp.rounds.iter().map(|r| r.lost).sum();
    let broken: usize =
        sites.iter().filter(|s| s.gate == Gate::Xdp).map(Site::broken).sum::<Result<usize>>()?;
    let name = format!("consoles lost with XDP, of {HELD} that stood and all that came");
    out.goals.push(Goal::at_most(SUITE, name, lost.max(broken) as f64, 0.0));
    for s in [Some(xdp), of(series, "nftables"), of(series, "without")].into_iter().flatten() {
        let name = format!("{}: most consoles of the attacker's tenant", s.contender);
        out.goals.push(Goal::at_most(SUITE, name, most(s) as f64, LIMIT as f64));
    }
    Ok(())
}
