//! `mksgate hist`: latency percentiles, now or from a saved log, and the HdrHistogram V2 export.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use clap::Args;
use hdrhistogram::Histogram;

use super::output::{Align, Outcome, Report, SocketArg, latency, print, table, to_json};
use crate::admin::HistView;
use crate::admin::client::Client;
use crate::metrics::{Percentiles, Stage, read_log, write_log};

/// `mksgate hist`
#[derive(Args, Debug)]
pub struct HistCommand {
    #[command(flatten)]
    socket: SocketArg,
    /// Print JSON, times in seconds
    #[arg(long, conflicts_with = "log")]
    json: bool,
    /// Write an HdrHistogram V2 interval log (nanoseconds; the tag is the stage) instead; "-" is standard output
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// With --log: an interval every so many seconds, rather than one since the start
    #[arg(long, value_name = "SECONDS", requires = "log", value_parser = clap::value_parser!(u64).range(1..))]
    every: Option<u64>,
    /// With --every: stop after so many intervals
    #[arg(long, value_name = "N", requires = "every")]
    count: Option<u64>,
    /// Read a saved log rather than asking the service
    #[arg(long, value_name = "FILE", conflicts_with = "log")]
    from: Option<PathBuf>,
}

impl HistCommand {
    /// Runs it.
    ///
    /// # Errors
    /// The appliance does not answer, or a file cannot be read or written.
    pub fn run(&self) -> Outcome {
        print(&self.report()?)
    }

    /// What [`HistCommand::run`] prints; empty where it wrote a log.
    ///
    /// # Errors
    /// As there.
    pub fn report(&self) -> Report {
        let client = self.socket.client();
        match (&self.log, self.every, &self.from) {
            (Some(file), Some(seconds), _) => {
                self.record(&client, file, Duration::from_secs(seconds))?;
                Ok(String::new())
            }
            (Some(file), None, _) => {
                write(file, client.get_text("/v1/hist?format=log")?.as_bytes())?;
                Ok(String::new())
            }
            (None, _, Some(saved)) => {
                let text = fs::read(saved).map_err(|error| at(saved, error))?;
                let stages = read_log(&text).map_err(|error| format!("{}: {error}", saved.display()))?;
                self.show(&stages.iter().map(|(stage, h)| Percentiles::of(*stage, h)).collect::<Vec<_>>())
            }
            (None, _, None) => {
                let view: HistView = client.get("/v1/hist")?;
                if self.json { to_json(&view) } else { self.show(&view.stages) }
            }
        }
    }

    fn show(&self, stages: &[Percentiles]) -> Report {
        if self.json { to_json(&stages) } else { Ok(render(stages)) }
    }

    /// Writes what was added to the histograms in each interval.
    fn record(&self, client: &Client, file: &Path, every: Duration) -> Outcome {
        let mut before = snapshot(client)?;
        let mut out = open(file)?;
        let mut began = SystemTime::now();
        for round in 0.. {
            if self.count.is_some_and(|count| round >= count) {
                break;
            }
            sleep(every);
            let (now, after) = (SystemTime::now(), snapshot(client)?);
            let added = difference(&before, &after);
            let mut text = Vec::new();
            write_log(&mut text, began, now, added.iter().map(|(stage, h)| (*stage, h)))?;
            if round > 0 {
                text = without_head(&text);
            }
            out.write_all(&text).and_then(|()| out.flush()).map_err(|error| at(file, error))?;
            (before, began) = (after, now);
        }
        Ok(())
    }
}

/// The distributions of all stages since the service began to count.
pub(super) type Snapshot = BTreeMap<Stage, Histogram<u64>>;

pub(super) fn snapshot(client: &Client) -> Result<Snapshot, Box<dyn std::error::Error>> {
    let text = client.get_text("/v1/hist?format=log")?;
    Ok(read_log(text.as_bytes())?)
}

/// What `after` has and `before` had not; all of `after` where the service was restarted in between.
pub(super) fn difference(before: &Snapshot, after: &Snapshot) -> Snapshot {
    let subtract = |(stage, after): (&Stage, &Histogram<u64>)| {
        let mut added = after.clone();
        if let Some(before) = before.get(stage)
            && added.subtract(before).is_err()
        {
            added.clone_from(after);
        }
        (*stage, added)
    };
    after.iter().map(subtract).collect()
}

/// The intervals of a log: a file has one head.
fn without_head(text: &[u8]) -> Vec<u8> {
    text.split_inclusive(|&byte| byte == b'\n')
        .filter(|line| line.starts_with(b"Tag="))
        .flatten()
        .copied()
        .collect()
}

pub(super) fn render(stages: &[Percentiles]) -> String {
    let head = [
        ("STAGE", Align::Left),
        ("COUNT", Align::Right),
        ("MIN", Align::Right),
        ("P50", Align::Right),
        ("P90", Align::Right),
        ("P99", Align::Right),
        ("P99.9", Align::Right),
        ("MAX", Align::Right),
        ("MEAN", Align::Right),
    ];
    let rows: Vec<_> = stages
        .iter()
        .map(|p| {
            let times = [p.min, p.p50, p.p90, p.p99, p.p999, p.max, p.sum / p.count as f64];
            let cell = |time: f64| if p.count == 0 { "-".to_owned() } else { latency(time) };
            let mut row = vec![p.stage.as_str().to_owned(), p.count.to_string()];
            row.extend(times.map(cell));
            row
        })
        .collect();
    table(&head, &rows)
}

fn write(file: &Path, text: &[u8]) -> Outcome {
    let mut out = open(file)?;
    out.write_all(text).and_then(|()| out.flush()).map_err(|error| at(file, error).into())
}

fn open(file: &Path) -> Result<Box<dyn Write>, io::Error> {
    if file == Path::new("-") {
        return Ok(Box::new(io::stdout()));
    }
    Ok(Box::new(fs::File::create(file).map_err(|error| at(file, error))?))
}

fn at(file: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}; choose another file", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn an_interval_holds_what_was_added_in_it() {
        let metrics = Metrics::new();
        let read = || read_log(&metrics.hist_log(SystemTime::now())).unwrap();
        metrics.record(Stage::Ticket, Duration::from_micros(10));
        let before = read();
        for _ in 0..5 {
            metrics.record(Stage::Ticket, Duration::from_millis(10));
        }
        let after = read();
        let added = &difference(&before, &after)[&Stage::Ticket];
        assert_eq!(added.len(), 5);
        assert!(Percentiles::of(Stage::Ticket, added).p50 > 0.009);
        let restarted = &difference(&after, &before)[&Stage::Ticket];
        assert_eq!(restarted.len(), 1);
    }
}
