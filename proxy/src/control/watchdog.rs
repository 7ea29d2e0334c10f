//! The watchdog: the manager hears of life only while every flow thread turns. A thread with nothing to do is woken and
//! has to turn too, so silence always means that one is stuck; then the manager ends the process and starts it again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Control;

/// Looks per period: a thread is given two of them to turn, and the manager hears twice in time.
const LOOKS: u32 = 4;

/// Feeds the manager's watchdog for as long as the control thread runs.
pub(super) async fn feed(control: Arc<Control>) {
    let (manager, engines) = (&control.manager, &control.gate.engines);
    let Some(period) = manager.watchdog() else { return };
    let mut pulse = Pulse::default();
    loop {
        engines.nudge();
        tokio::time::sleep((period / LOOKS).max(Duration::from_millis(1))).await;
        let turns: Vec<u64> =
            engines.stats().iter().map(|stats| stats.turns.load(Ordering::Relaxed)).collect();
        match pulse.beat(&turns) {
            Ok(()) => manager.alive(),
            Err(thread) => {
                tracing::error!(thread = format!("flow-{thread}"), "a flow thread makes no progress")
            }
        }
    }
}

/// The turns of each thread at the last look.
#[derive(Default)]
struct Pulse(Vec<u64>);

impl Pulse {
    /// Whether all have turned since; else the first that has not.
    fn beat(&mut self, turns: &[u64]) -> Result<(), usize> {
        let before = std::mem::replace(&mut self.0, turns.to_vec());
        before.iter().zip(turns).position(|(before, now)| before == now).map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_that_stands_still_is_enough() {
        let mut pulse = Pulse::default();
        assert_eq!(pulse.beat(&[0, 0]), Ok(()), "nothing is known yet");
        assert_eq!(pulse.beat(&[1, 900]), Ok(()));
        assert_eq!(pulse.beat(&[2, 900]), Err(1));
        assert_eq!(pulse.beat(&[2, 900]), Err(0));
        assert_eq!(pulse.beat(&[3, 901]), Ok(()), "it came back in time");
    }
}
