//! The loop of an engine thread, the same for both drivers.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::config::TurnHook;
use super::core::Core;
use super::mailbox::{Command, Mailbox};
use crate::session::CloseReason;

/// One turn in so many is reported to the hook.
const TURN_SAMPLE: u64 = 16;

/// What waits for sockets and moves what need not be pumped.
pub(super) trait Driver {
    /// Begins to move the bytes of a flow that was just admitted.
    fn start(&mut self, core: &mut Core, key: u32);
    /// Ends a flow, at once or as soon as nothing of it is in flight.
    fn close(&mut self, core: &mut Core, key: u32, reason: CloseReason);
    /// Gives a flow out (`Core::export`), at once or as soon as nothing of it is in flight.
    fn export(&mut self, core: &mut Core, key: u32);
    /// Waits for events and takes them in; returns whether the mailbox has something.
    fn wait(&mut self, core: &mut Core, patience: Option<Duration>) -> io::Result<bool>;
    /// After the pump: changes of stage, what could not be armed before.
    fn settle(&mut self, core: &mut Core);
    /// The driver's own limit to the next wait.
    fn patience(&self) -> Option<Duration>;
}

/// Runs until the mailbox says stop and the last flow has ended.
pub(super) fn run(mut driver: impl Driver, mut core: Core, mailbox: &Arc<Mailbox>, hook: Option<TurnHook>) {
    let mut stopping = false;
    while !(stopping && core.flows.len() == 0) {
        let patience = [core.patience(), driver.patience()].into_iter().flatten().min();
        let woken = driver.wait(&mut core, patience).unwrap_or_else(|error| {
            // Nothing known can bring this about; the thread must not spin on it silently.
            tracing::error!(%error, "flow engine: waiting failed");
            std::thread::sleep(Duration::from_millis(10));
            true
        });
        bury(&mut driver, &mut core);
        if woken {
            stopping |= obey(&mut driver, &mut core, mailbox.take());
        }
        core.sweep();
        core.pump();
        core.expire();
        driver.settle(&mut core);
        bury(&mut driver, &mut core);
        core.publish();
        if core.stats.turns.load(Relaxed).is_multiple_of(TURN_SAMPLE)
            && let Some(hook) = &hook
        {
            hook(core.now.elapsed());
        }
    }
}

fn obey(driver: &mut impl Driver, core: &mut Core, commands: impl IntoIterator<Item = Command>) -> bool {
    let mut stop = false;
    for command in commands {
        match command {
            Command::Submit(flow) => {
                let key = core.admit(flow);
                driver.start(core, key);
                // Before another flow can have its number.
                bury(driver, core);
            }
            Command::Close(id, reason) => {
                if let Some(key) = core.find(id) {
                    driver.close(core, key, reason);
                }
            }
            Command::Export(to, most) => {
                for key in core.begin_export(to, most) {
                    driver.export(core, key);
                }
            }
            Command::Stop => {
                stop = true;
                for key in core.flows.keys() {
                    driver.close(core, key, CloseReason::Drain);
                }
            }
        }
    }
    stop
}

fn bury(driver: &mut impl Driver, core: &mut Core) {
    for (key, reason) in std::mem::take(&mut core.doomed) {
        driver.close(core, key, reason);
    }
}
