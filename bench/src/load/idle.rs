//! Idle sessions: connected, used once, then silent.

use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::contender::Running;
use super::cost::resident;
use super::pingpong::End;
use super::wire;

/// One measurement.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct IdleRound {
    /// Sessions held.
    pub sessions: usize,
    /// Resident memory before the first, bytes.
    pub before: u64,
    /// Resident memory with all of them, bytes.
    pub with: u64,
    /// Bytes per session.
    pub per_session: f64,
}

/// Opens `sessions` through a contender, sends a message each way on every one, and looks at the proxy's memory.
pub fn run(through: &Running, listener: &TcpListener, sessions: usize) -> Result<IdleRound> {
    let pid = through.pid().context("no process to look at")?;
    measure(pid, || wire::connect(through.address, listener, sessions))
}

/// The same with connections that `open` opens.
pub fn measure<C: End>(pid: u32, open: impl FnOnce() -> Result<Vec<(C, TcpStream)>>) -> Result<IdleRound> {
    held(pid, || {
        let mut ends = open()?;
        let limit = Instant::now() + Duration::from_secs(60);
        for (client, backend) in &mut ends {
            client.put(&[1; 32])?;
            while wire::get(backend, &mut [0; 32])? == 0 {
                ensure!(Instant::now() < limit, "a message does not come through");
                std::thread::yield_now();
            }
            wire::put(backend, &[1; 32])?;
            while client.get(&mut [0; 32])? == 0 {
                ensure!(Instant::now() < limit, "a message does not come back");
                std::thread::yield_now();
            }
        }
        Ok(ends)
    })
}

/// What the proxy's memory grows by while what `open` opened is held, one session each.
pub fn held<T>(pid: u32, open: impl FnOnce() -> Result<Vec<T>>) -> Result<IdleRound> {
    let before = resident(pid);
    let held = open()?;
    let with = resident(pid);
    let sessions = held.len();
    let per_session = with.saturating_sub(before) as f64 / sessions as f64;
    Ok(IdleRound { sessions, before, with, per_session })
}
