//! HdrHistogram V2 interval logs: one file per suite, nanoseconds, the tag says what.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, anyhow};
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

use super::Ran;

/// Maxima in the log are milliseconds.
const DIVISOR: f64 = 1e6;

/// The log of one suite; `None` if it kept no distribution.
pub fn log(ran: &Ran, began: u64) -> Result<Option<Vec<u8>>> {
    if ran.outcome.histograms.is_empty() {
        return Ok(None);
    }
    let (mut out, mut serializer) = (Vec::new(), V2DeflateSerializer::new());
    let began = UNIX_EPOCH + Duration::from_secs(began);
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment("mksgate benchmark, nanoseconds")
        .with_start_time(began)
        .with_max_value_divisor(DIVISOR)
        .begin_log_with(&mut out, &mut serializer)?;
    let start = began.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    for (name, histogram) in &ran.outcome.histograms {
        // A tag has no blanks and no commas.
        let name = name.replace([' ', ','], "_");
        let tag = Tag::new(&name).ok_or_else(|| anyhow!("{name:?} cannot be a tag"))?;
        let length = Duration::from_secs_f64(ran.seconds);
        log.write_histogram(histogram, start, length, Some(tag)).map_err(|error| anyhow!("{error:?}"))?;
    }
    Ok(Some(out))
}
