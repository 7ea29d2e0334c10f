//! Where the service's log goes, and in which form.

use std::error::Error;
use std::fmt;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

use super::lines::{Flush, Lines};
use crate::config::{Log, LogFormat};

/// The log that was started: its filter can be changed while it runs, and what waits is written when this is dropped.
type Started = (reload::Handle<EnvFilter, Registry>, Flush);

/// Starts the log.
pub(super) fn start(config: &Log) -> Result<Started, Box<dyn Error>> {
    let filter = EnvFilter::try_new(&config.filter).map_err(|error| format!("log.filter: {error}"))?;
    let (filter, handle) = reload::Layer::new(filter);
    let base = tracing_subscriber::registry().with(filter);
    let lines = Lines::to_stderr();
    let flush = Flush(lines.clone());
    let stderr = || tracing_subscriber::fmt::layer().with_writer(lines).with_ansi(false);
    match config.format {
        LogFormat::Json => base.with(stderr().json()).try_init()?,
        // systemd sets JOURNAL_STREAM for a service whose stderr is the journal.
        LogFormat::Auto if std::env::var_os("JOURNAL_STREAM").is_some() => {
            base.with(stderr().event_format(ForTheJournal::default())).try_init()?;
        }
        LogFormat::Journal => {
            let journal = tracing_journald::layer().map_err(|error| {
                format!("log.format = \"journal\", but there is no journal ({error}); use \"text\"")
            })?;
            base.with(journal).try_init()?;
        }
        LogFormat::Auto | LogFormat::Text => base.with(stderr()).try_init()?,
    }
    Ok((handle, flush))
}

/// Lines that `journalctl` shows as they are, fields included, with the level as the journal's own priority
/// (sd-daemon(3)). The journal has the time.
struct ForTheJournal(Format<Full, ()>);

impl Default for ForTheJournal {
    fn default() -> Self {
        Self(tracing_subscriber::fmt::format().without_time().with_target(false).with_level(false))
    }
}

impl<S, N> FormatEvent<S, N> for ForTheJournal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(writer, "<{}>", priority(*event.metadata().level()))?;
        self.0.format_event(context, writer, event)
    }
}

/// syslog(3): error 3, warning 4, informational 6, debug 7.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}
