//! What an upgrade costs consoles in full use: how long each stands still at most, in spans with an upgrade and in spans of the
//! same length without, in turns.

use std::fmt;
use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::io::Interest;

use crate::load::appliance::Appliance;
use crate::load::goals::{Goal, median};
use crate::load::visitor::{self, Door, Way, client_config};
use crate::run::rounds::differences;
use crate::run::{Context, Outcome, Series, Spread, Table};
use crate::sim::{Esxi, EsxiConfig, Screen, Ticket, Vm};

const SUITE: &str = "upgrade";
const MACHINE: &str = "[bench] echo/echo.vmx";
/// Consoles at full rate, and as many that say nothing but now and then a word.
const EACH: usize = 100;
/// Bytes of one console on their way: splice has always something to move, and the host's buffers do not fill.
const WINDOW: u64 = 256 << 10;
/// What a console sends, again and again. A prime, so that no lost piece goes unnoticed.
const PERIOD: usize = 65_521;
/// Until all consoles are at full rate.
const SETTLE: Duration = Duration::from_secs(1);
/// How long an upgrade may take until all consoles are moved.
const PATIENCE: Duration = Duration::from_secs(60);
/// The bound: what an upgrade may add, ms.
const ADDED: f64 = 50.0;

/// Spans with an upgrade, or without.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Span {
    Upgrade,
    Plain,
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Upgrade { "with an upgrade" } else { "without" })
    }
}

/// One span.
#[derive(Clone, Debug, Serialize)]
struct Round {
    /// 50th and 99th percentile and maximum of the consoles' longest pauses, ms.
    pause: [f64; 3],
    megabytes: f64,
    /// From the command until the last console had moved, ms.
    took: f64,
    /// Of the silent ones, those that did not answer.
    mute: usize,
}

/// Measures it.
pub fn run(context: &Context, out: &mut Outcome) -> Result<()> {
    // The younger process is nobody's child otherwise, and its work would count as a stranger's.
    set_child_subreaper(true)?;
    let config = EsxiConfig::default().vm(Vm::plain(MACHINE, Screen::echo()));
    let host = Esxi::start(config.ticket(Ticket::new("echo", MACHINE))).context("the simulated host")?;
    let mut service = Service(Appliance::start(context, None)?);
    out.version("mksgate", env!("CARGO_PKG_VERSION"));
    let way = service.0.way(Door::Authd, &host, MACHINE, "echo")?;
    let mut silent = open(&way, EACH)?;
    let crowd = Crowd::start(open(&way, EACH)?)?;
    context.stop.sleep(SETTLE)?;
    let (rounds, seconds) = (context.rounds(10, 3), context.seconds(3.0, 2.0));
    let mut spans = [Span::Upgrade, Span::Plain];
    let series = context.alternate(out, rounds, &mut spans, |span| {
        one(context, &service, &crowd, &mut silent, *span, Duration::from_secs_f64(seconds))
    })?;
    let wrong = crowd.finish()?;
    out.table(table(&series));
    out.raw("spans", json!({ "series": series, "wrong": wrong }));
    goals(&series, wrong, out);
    drop(service);
    set_child_subreaper(false)?;
    Ok(())
}

/// The appliance, whichever process it is.
struct Service(Appliance);

impl Service {
    fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.0.ask(&["status", "--json"])?)?)
    }

    /// Lets a younger process take over, and waits until the older one has nothing left.
    fn upgrade(&self, context: &Context) -> Result<Duration> {
        let began = Instant::now();
        self.0.ask(&["upgrade"])?;
        while self.status()?["service"]["sessions_elsewhere"] != 0 {
            context.stop.check()?;
            if began.elapsed() > PATIENCE {
                bail!("consoles are still in the old process after {} s", PATIENCE.as_secs());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(began.elapsed())
    }

    /// Ends the process that is in charge.
    fn end(&self) {
        let pid = self.status().ok().and_then(|status| status["pid"].as_i64());
        if let Some(pid) = pid.and_then(|pid| i32::try_from(pid).ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.end();
    }
}

fn one(
    context: &Context,
    service: &Service,
    crowd: &Crowd,
    silent: &mut [TcpStream],
    span: Span,
    time: Duration,
) -> Result<Round> {
    crowd.take();
    let began = Instant::now();
    let took = if span == Span::Upgrade { service.upgrade(context)? } else { Duration::ZERO };
    context.stop.sleep(time.saturating_sub(began.elapsed()))?;
    let (mut pauses, bytes) = crowd.take();
    let wall = began.elapsed().as_secs_f64();
    pauses.sort_by(f64::total_cmp);
    let mute = silent.iter_mut().filter_map(|console| word(console).err()).count();
    Ok(Round {
        pause: [pauses[pauses.len() / 2], pauses[pauses.len() * 99 / 100 - 1], pauses[pauses.len() - 1]],
        megabytes: bytes as f64 / wall / 1e6,
        took: took.as_secs_f64() * 1e3,
        mute,
    })
}

/// Says a word and hears it.
fn word(console: &mut TcpStream) -> io::Result<()> {
    use std::io::{Read as _, Write as _};
    console.write_all(b"word")?;
    let mut heard = [0; 4];
    console.read_exact(&mut heard)?;
    if &heard == b"word" { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Opens consoles through the raw door.
fn open(way: &Way, count: usize) -> Result<Vec<TcpStream>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = client_config()?;
    let one = || async {
        let (console, _) = visitor::open(way, client.clone()).await?;
        let raw = console.into_raw().context("not a raw console")?.into_std()?;
        raw.set_nonblocking(false)?;
        raw.set_read_timeout(Some(PATIENCE))?;
        anyhow::Ok(raw)
    };
    (0..count).map(|_| runtime.block_on(one())).collect()
}

/// What is known of a console.
#[derive(Default)]
struct Console {
    /// Longest pause between two reads since somebody asked, and the end of the last one; ns since `Crowd::epoch`.
    longest: AtomicU64,
    last: AtomicU64,
    bytes: AtomicU64,
    /// It broke, or a byte was wrong or missing.
    wrong: AtomicBool,
}

/// Consoles at full rate, all on one thread.
struct Crowd {
    consoles: Arc<Vec<Console>>,
    epoch: Instant,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Crowd {
    fn start(streams: Vec<TcpStream>) -> Result<Self> {
        let consoles: Arc<Vec<Console>> = Arc::new(streams.iter().map(|_| Console::default()).collect());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (epoch, stop) = (Instant::now(), Arc::new(AtomicBool::new(false)));
        let (all, over) = (consoles.clone(), stop.clone());
        let thread = std::thread::Builder::new().name("crowd".into()).spawn(move || {
            let block: Arc<Vec<u8>> = Arc::new((0..PERIOD * 3).map(|n| pattern(n % PERIOD)).collect());
            runtime.block_on(async {
                let mut tasks = tokio::task::JoinSet::new();
                for (n, stream) in streams.into_iter().enumerate() {
                    let (all, over, block) = (all.clone(), over.clone(), block.clone());
                    tasks.spawn(async move {
                        if converse(stream, &all[n], &block, epoch, &over).await.is_err() {
                            all[n].wrong.store(true, Relaxed);
                        }
                    });
                }
                tasks.join_all().await;
            });
        })?;
        Ok(Self { consoles, epoch, stop, thread: Some(thread) })
    }

    /// The longest pause of each console since the last call, ms, and the bytes of all.
    fn take(&self) -> (Vec<f64>, u64) {
        let now = self.epoch.elapsed().as_nanos() as u64;
        let pause = |console: &Console| {
            // One that lasts still counts as far as it has come.
            let open = now.saturating_sub(console.last.fetch_max(now, Relaxed));
            console.longest.swap(0, Relaxed).max(open) as f64 / 1e6
        };
        let pauses = self.consoles.iter().map(pause).collect();
        (pauses, self.consoles.iter().map(|console| console.bytes.swap(0, Relaxed)).sum())
    }

    /// Ends them all; how many lost something.
    fn finish(mut self) -> Result<usize> {
        self.stop.store(true, Relaxed);
        let joined = self.thread.take().map(JoinHandle::join).transpose();
        joined.map_err(|_| anyhow::anyhow!("the crowd panicked"))?;
        Ok(self.consoles.iter().filter(|console| console.wrong.load(Relaxed)).count())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // Its thread ends by itself.
        self.stop.store(true, Relaxed);
    }
}

fn pattern(n: usize) -> u8 {
    ((n as u32).wrapping_mul(2_654_435_761) >> 24) as u8
}

/// Sends as fast as the echo comes back, and compares every byte of it.
async fn converse(
    stream: TcpStream,
    console: &Console,
    block: &[u8],
    epoch: Instant,
    over: &AtomicBool,
) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let stream = tokio::net::TcpStream::from_std(stream)?;
    let (mut sent, mut heard, mut buffer) = (0u64, 0u64, vec![0; 64 << 10]);
    while !over.load(Relaxed) || heard < sent {
        let full = sent - heard >= WINDOW || over.load(Relaxed);
        let interest = if full { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
        let ready = stream.ready(interest).await?;
        if ready.is_writable() && !full {
            let room = (WINDOW - (sent - heard)).min(PERIOD as u64) as usize;
            match stream.try_write(&block[sent as usize % PERIOD..][..room]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                n => sent += n? as u64,
            }
        }
        if ready.is_readable() {
            let n = match stream.try_read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                n => n?,
            };
            if n == 0 || buffer[..n] != block[heard as usize % PERIOD..][..n] {
                return Err(io::ErrorKind::InvalidData.into());
            }
            heard += n as u64;
            console.bytes.fetch_add(n as u64, Relaxed);
            let now = epoch.elapsed().as_nanos() as u64;
            let pause = now.saturating_sub(console.last.swap(now, Relaxed));
            console.longest.fetch_max(pause, Relaxed);
        }
    }
    Ok(())
}

fn table(series: &[Series<Round>]) -> Table {
    let head = ["", "p50 ms", "p99 ms", "longest ms", "MB/s", "upgrade ms"];
    let mut table = Table::new(
        format!("the longest pause of each of {EACH} consoles at full rate, beside {EACH} idle ones"),
        head,
    );
    for s in series {
        let figures = [0, 1, 2].map(|n| format!("{:.1}", s.median(|r| r.pause[n])));
        let rest = [format!("{:.0}", s.median(|r| r.megabytes)), format!("{:.0}", s.median(|r| r.took))];
        table.row([s.contender.clone()].into_iter().chain(figures).chain(rest));
    }
    table
}

fn goals(series: &[Series<Round>], wrong: usize, out: &mut Outcome) {
    let [with, without] = series else { return };
    let added: Spread = differences(with, without, |round| round.pause[1]);
    out.goals.push(Goal::at_most(SUITE, "pause that an upgrade adds at p99, ms", added, ADDED));
    out.goals.push(Goal::at_most(SUITE, "consoles that lost a byte or broke", wrong as f64, 0.0));
    let mute: usize = series.iter().flat_map(|s| &s.rounds).map(|round| round.mute).sum();
    out.goals.push(Goal::at_most(SUITE, "idle consoles that did not answer", mute as f64, 0.0));
    let took = median(with.rounds.iter().map(|round| round.took));
    out.note(format!(
        "{} upgrades, each over {took:.0} ms from the command to the last console",
        with.rounds.len()
    ));
}
