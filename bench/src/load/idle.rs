//! Idle sessions: connected, used once, then silent.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::contender::Running;
use super::cost::resident;
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
    let before = resident(pid);
    let ends = wire::connect(through.address, listener, sessions)?;
    let limit = Instant::now() + Duration::from_secs(60);
    for (client, backend) in &ends {
        for (from, to) in [(client, backend), (backend, client)] {
            wire::put(from, &[1; 32])?;
            while wire::get(to, &mut [0; 32])? == 0 {
                ensure!(Instant::now() < limit, "a message does not come through");
                std::thread::yield_now();
            }
        }
    }
    let with = resident(pid);
    let per_session = with.saturating_sub(before) as f64 / sessions as f64;
    Ok(IdleRound { sessions, before, with, per_session })
}
