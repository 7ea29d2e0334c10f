//! The clock: tickets count in seconds.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Finding;
use crate::sys::{self, ClockState};

const CHECK: &str = "clock";
/// 2026-01-01: this program is younger than that.
const EARLIEST: Duration = Duration::from_secs(1_767_225_600);
/// Half of what tickets allow by default.
const TOLERABLE: Duration = Duration::from_secs(1);

pub(super) fn examine(now: SystemTime) -> Finding {
    judge(now, sys::clock_state().ok())
}

fn judge(now: SystemTime, state: Option<ClockState>) -> Finding {
    let remedy = "run a time service (systemd-timesyncd, chrony); tickets hold for seconds";
    let age = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    if age < EARLIEST {
        return Finding::fail(
            CHECK,
            format!("stands {} days before this program was written", (EARLIEST - age).as_secs() / 86_400),
            remedy,
        );
    }
    match state {
        Some(state) if state.synchronised && state.error > TOLERABLE => Finding::warn(
            CHECK,
            format!("synchronised, but may be wrong by {:.1} s", state.error.as_secs_f64()),
            remedy,
        ),
        Some(state) if state.synchronised => {
            Finding::ok(CHECK, format!("synchronised, wrong by {} ms at most", state.error.as_millis()))
        }
        Some(_) => Finding::warn(CHECK, "the kernel's clock is not synchronised", remedy),
        None => Finding::warn(CHECK, "whether it is synchronised cannot be seen here", remedy),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_clock_is_judged_by_the_kernels_word() {
        let now = UNIX_EPOCH + EARLIEST + Duration::from_secs(1);
        let state = |synchronised, ms| Some(ClockState { synchronised, error: Duration::from_millis(ms) });
        assert_eq!(judge(UNIX_EPOCH, state(true, 1)).verdict, Verdict::Fail);
        assert_eq!(judge(now, state(false, 1)).verdict, Verdict::Warn);
        assert_eq!(judge(now, state(true, 1500)).verdict, Verdict::Warn);
        assert_eq!(judge(now, None).verdict, Verdict::Warn);
        assert_eq!(judge(now, state(true, 20)).verdict, Verdict::Ok);
    }

    #[test]
    fn this_kernel_answers() {
        assert!(sys::clock_state().is_ok());
    }
}
