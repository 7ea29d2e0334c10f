//! Consoles that play: the machine's side draws a seeded desktop, the viewer's side watches, asks for more, and measures how
//! late each update is against the time at which it was due. A stall delays all that was due in it, and all of them count.

use std::io;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hdrhistogram::Histogram;
use rustls::ClientConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{mpsc, watch};

use super::cost::hurry;
use super::trace::{Random, Trace};
use super::visitor::{self, Console, Way};
use crate::run::{Context, Stop};
use crate::sim::{Screen, Stream};

/// The first byte of a console: the machine plays a trace, whose seed follows in eight bytes.
pub const TRACE: u8 = b'T';
/// The first byte of a console: the machine sends back what it gets.
pub const ECHO: u8 = b'E';
/// Head of an update: due time in nanoseconds, length of all of it.
const HEAD: usize = 12;
/// FramebufferUpdateRequest (RFC 6143, 7.5.3).
const REQUEST: [u8; 10] = [3, 1, 0, 0, 0, 0, 4, 0, 3, 0];
/// Consoles being opened at once.
const OPENING: usize = 32;
/// Received at once.
const SCRATCH: usize = 32 << 10;

/// The clock of both sides.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Nanoseconds since this program's first look.
pub fn now() -> u64 {
    u64::try_from(EPOCH.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn stamp(at: Instant) -> u64 {
    u64::try_from(at.saturating_duration_since(*EPOCH).as_nanos()).unwrap_or(u64::MAX)
}

/// Calls `tick` at seeded, independent times, `rate` per second for `time`, with the time it was called at. It waits for
/// nobody, so what the ticks lead to cannot hold the next ones up. Returns their number.
pub fn metronome(rate: f64, time: Duration, seed: u64, stop: &Stop, mut tick: impl FnMut(u64)) -> u64 {
    let mut random = Random::new(seed);
    let (mut due, end) = (now(), now() + time.as_nanos() as u64);
    for ticks in 0.. {
        due += (random.exponential(1.0 / rate) * 1e9) as u64;
        if due > end || stop.asked() {
            return ticks;
        }
        std::thread::sleep(Duration::from_nanos(due.saturating_sub(now())));
        tick(now());
    }
    0
}

/// A machine whose consoles play or echo, as the viewer asks.
pub fn screen() -> Screen {
    LazyLock::force(&EPOCH);
    Screen::raw(|mut stream| async move {
        match stream.read_u8().await? {
            TRACE => {
                let seed = stream.read_u64().await?;
                play(stream, seed).await
            }
            _ => echo(stream).await,
        }
    })
}

async fn echo(mut stream: Stream) -> io::Result<()> {
    let mut buffer = vec![0; 4096];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return stream.shutdown().await,
            n => stream.send(&buffer[..n]).await?,
        }
    }
}

async fn play(stream: Stream, seed: u64) -> io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let listen = async {
        let mut buffer = [0; 256];
        while reader.read(&mut buffer).await? > 0 {}
        Ok(())
    };
    let began = Instant::now();
    let draw = async {
        let mut update = Vec::new();
        for next in Trace::new(seed) {
            let at = began + next.at;
            let behind = Instant::now() > at;
            tokio::time::sleep_until(at.into()).await;
            // Timers are a millisecond coarse: that is the generator's lateness. A write that was held up is the proxy's.
            let due = if behind { stamp(at) } else { now() };
            update.clear();
            update.extend(due.to_be_bytes());
            update.extend((next.bytes as u32).to_be_bytes());
            update.resize(next.bytes.max(HEAD), 0x5a);
            writer.write_all(&update).await?;
            writer.flush().await?;
        }
        Ok(())
    };
    tokio::select! { done = listen => done, done = draw => done }
}

/// What a crowd saw.
#[derive(Clone)]
pub struct Tally {
    /// Whole updates.
    pub updates: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Due until whole at the viewer, nanoseconds.
    pub late: Histogram<u64>,
    /// Consoles that ended although nobody closed them.
    pub lost: u64,
}

impl Tally {
    fn new() -> Result<Self> {
        Ok(Self { updates: 0, bytes: 0, late: histogram()?, lost: 0 })
    }
}

/// For latencies: nanoseconds up to a minute, three digits.
pub fn histogram() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1_000, 60_000_000_000, 3)?)
}

/// Consoles that play, on a thread of their own; closed when dropped.
pub struct Crowd {
    thread: Option<JoinHandle<()>>,
    closing: watch::Sender<bool>,
    tally: Arc<Mutex<Tally>>,
}

impl Crowd {
    /// Opens `count` consoles and lets them play once all are open: who plays already does not slow the opening down.
    pub fn open(context: &Context, way: &Way, count: usize, config: &Arc<ClientConfig>) -> Result<Self> {
        let (closing, closed) = watch::channel(false);
        let (playing, all_open) = watch::channel(false);
        let tally = Arc::new(Mutex::new(Tally::new()?));
        let (opened, mut outcomes) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let work = {
            let (way, config, tally) = (way.clone(), config.clone(), tally.clone());
            let seed = context.options.seed << 32;
            async move {
                let gate = Arc::new(tokio::sync::Semaphore::new(OPENING));
                let one = |n: usize| {
                    let (way, config, gate) = (way.clone(), config.clone(), gate.clone());
                    let (tally, opened, mut closed) = (tally.clone(), opened.clone(), closed.clone());
                    let mut all_open = all_open.clone();
                    async move {
                        let permit = gate.acquire().await;
                        let console = visitor::open(&way, config).await;
                        drop(permit);
                        let told = console.as_ref().map(drop).map_err(ToString::to_string);
                        let _ = opened.send(told);
                        let Ok((mut console, _)) = console else { return };
                        let play = async {
                            let _ = all_open.wait_for(|open| *open).await;
                            watch_updates(&mut console, seed + n as u64, &tally).await
                        };
                        tokio::select! {
                            _ = play => lock(&tally).lost += 1,
                            _ = closed.wait_for(|closed| *closed) => {}
                        }
                        console.close().await;
                    }
                };
                let tasks: Vec<_> = (0..count).map(|n| tokio::spawn(one(n))).collect();
                for task in tasks {
                    let _ = task.await;
                }
            }
        };
        let thread = std::thread::Builder::new().name("crowd".to_owned());
        let thread = Some(thread.spawn(move || runtime.block_on(work))?);
        let crowd = Self { thread, closing, tally };
        for _ in 0..count {
            context.stop.check()?;
            match outcomes.blocking_recv().context("the crowd's thread is gone")? {
                Ok(()) => {}
                Err(error) => bail!("a console was not opened: {error}"),
            }
        }
        playing.send_replace(true);
        Ok(crowd)
    }

    /// What was seen since the last call.
    pub fn take(&self) -> Result<Tally> {
        Ok(std::mem::replace(&mut *lock(&self.tally), Tally::new()?))
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.closing.send_replace(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn watch_updates(console: &mut Console, seed: u64, tally: &Mutex<Tally>) -> io::Result<()> {
    let mut begin = vec![TRACE];
    begin.extend(seed.to_be_bytes());
    console.write(&begin).await?;
    let (mut scratch, mut got) = (vec![0; SCRATCH], Vec::new());
    let mut left = 0;
    let mut due = 0;
    while console.read(&mut scratch, &mut got).await? {
        let mut at = 0;
        while at < got.len() {
            if left == 0 {
                let Some(head) = got.get(at..at + HEAD) else { break };
                due = u64::from_be_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|n| head[n]));
                left = u32::from_be_bytes([8, 9, 10, 11].map(|n| head[n])) as usize;
                if left < HEAD {
                    return Err(io::Error::other("an update that is shorter than its head"));
                }
                lock(tally).bytes += left as u64;
            }
            let n = left.min(got.len() - at);
            (at, left) = (at + n, left - n);
            if left == 0 {
                {
                    let mut tally = lock(tally);
                    tally.updates += 1;
                    tally.late.saturating_record(now().saturating_sub(due));
                }
                console.write(&REQUEST).await?;
            }
        }
        got.drain(..at);
    }
    Ok(())
}

/// Keys pressed at known times, and how long their echo takes.
pub struct Keys {
    /// Consoles that share them.
    pub consoles: usize,
    /// Keys per second, all consoles together.
    pub rate: f64,
}

impl Keys {
    /// Presses keys for `time`. Every key has its time beforehand, whatever became of those before it; its echo is measured
    /// from that time. Returns the echo times and the keys that never came back.
    pub fn press(
        &self,
        context: &Context,
        way: &Way,
        config: &Arc<ClientConfig>,
        time: Duration,
    ) -> Result<(Histogram<u64>, u64)> {
        let typing = std::thread::scope(|scope| {
            let typing = scope.spawn(|| {
                // Where it is not allowed, the rig has said so.
                hurry();
                self.type_for(context, way, config, time)
            });
            typing.join()
        });
        typing.map_err(|_| anyhow::anyhow!("the thread that types panicked"))?
    }

    fn type_for(
        &self,
        context: &Context,
        way: &Way,
        config: &Arc<ClientConfig>,
        time: Duration,
    ) -> Result<(Histogram<u64>, u64)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let consoles = runtime.block_on(async {
            let mut consoles = Vec::new();
            for _ in 0..self.consoles {
                let (mut console, _) = visitor::open(way, config.clone()).await?;
                console.write(&[ECHO]).await?;
                consoles.push(console);
            }
            io::Result::Ok(consoles)
        })?;
        let times = Arc::new(Mutex::new(histogram()?));
        let (keys, tasks): (Vec<_>, Vec<_>) = consoles
            .into_iter()
            .map(|console| {
                let (key, pressed) = mpsc::unbounded_channel();
                (key, runtime.spawn(type_and_wait(console, pressed, times.clone())))
            })
            .unzip();
        let stop = context.stop.clone();
        let (rate, seed) = (self.rate, context.options.seed);
        let metronome = std::thread::Builder::new().name("metronome".to_owned()).spawn(move || {
            let mut random = Random::new(!seed);
            metronome(rate, time, seed, &stop, |stamp| {
                let _ = keys[random.below(keys.len())].send(stamp);
            })
        })?;
        let echoed = runtime.block_on(async {
            let mut echoed = 0u64;
            for task in tasks {
                echoed += task.await.unwrap_or(0);
            }
            echoed
        });
        let pressed = metronome.join().map_err(|_| anyhow::anyhow!("the metronome panicked"))?;
        let times = lock(&times).clone();
        Ok((times, pressed.saturating_sub(echoed)))
    }
}

/// How long the last echoes may take.
const LAST: Duration = Duration::from_secs(5);

/// One console's keys; returns how many came back.
async fn type_and_wait(
    mut console: Console,
    mut pressed: mpsc::UnboundedReceiver<u64>,
    times: Arc<Mutex<Histogram<u64>>>,
) -> u64 {
    let (mut scratch, mut got) = (vec![0; 4096], Vec::new());
    let (mut sent, mut echoed, mut over) = (0u64, 0u64, None);
    loop {
        let last = over.unwrap_or_else(|| tokio::time::Instant::now() + Duration::from_secs(3600));
        tokio::select! {
            key = pressed.recv(), if over.is_none() => match key {
                Some(key) if console.write(&key.to_be_bytes()).await.is_ok() => sent += 1,
                Some(_) => return echoed,
                None if sent == echoed => break,
                None => over = Some(tokio::time::Instant::now() + LAST),
            },
            more = console.read(&mut scratch, &mut got) => match more {
                Ok(true) => {
                    let (stamps, _) = got.as_chunks::<8>();
                    let (n, at) = (stamps.len(), now());
                    let mut times = lock(&times);
                    stamps.iter().for_each(|stamp| {
                        times.saturating_record(at.saturating_sub(u64::from_be_bytes(*stamp)));
                    });
                    echoed += n as u64;
                    got.drain(..n * 8);
                    if over.is_some() && sent == echoed {
                        break;
                    }
                }
                _ => return echoed,
            },
            () = tokio::time::sleep_until(last) => return echoed,
        }
    }
    console.close().await;
    echoed
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
