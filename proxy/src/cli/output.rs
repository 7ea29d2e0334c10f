//! How the operator's commands print: tables for people, numbers with units, nothing that a terminal would obey.

use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::admin::DEFAULT_SOCKET;
use crate::admin::client::Client;

/// What a command ends with.
pub type Outcome = Result<(), Box<dyn Error>>;
/// What a command has to say.
pub type Report = Result<String, Box<dyn Error>>;

/// Which appliance is asked.
#[derive(Args, Clone, Debug)]
pub struct SocketArg {
    /// The admin socket of the running service
    #[arg(long, value_name = "PATH", env = "MKSGATE_ADMIN_SOCKET", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
}

impl SocketArg {
    /// A client of it.
    pub fn client(&self) -> Client {
        Client::new(&self.socket)
    }
}

/// Prints. A reader that went away (`| head`) is no error.
///
/// # Errors
/// Standard output cannot be written.
pub fn print(text: &str) -> Outcome {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// As JSON for other programs.
///
/// # Errors
/// The value cannot be JSON.
pub fn to_json(value: &impl Serialize) -> Report {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// Which way a column is aligned.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// A table with a head line. Control characters of the cells are shown as their escapes, for a name comes from a ticket and must not
/// command the terminal.
pub fn table(head: &[(&str, Align)], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| printable(cell)).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].0.len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut out = String::new();
    let names: Vec<String> = head.iter().map(|(name, _)| (*name).to_owned()).collect();
    for row in [&names].into_iter().chain(&rows) {
        let mut line = String::new();
        for ((cell, width), (_, align)) in row.iter().zip(&widths).zip(head) {
            let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
            line += &if *align == Align::Left { format!("{cell}{pad}  ") } else { format!("{pad}{cell}  ") };
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// The text with control characters escaped.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || is_bidi_control(c) { out.extend(c.escape_unicode()) } else { out.push(c) }
    }
    out
}

/// Characters that change the direction of the text around them: they could make one name look like another.
fn is_bidi_control(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Bytes with a binary unit: `1.5 MiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A long time in two units: `2d 3h`, `4m 5s`, `12s`.
pub fn age(seconds: f64) -> String {
    let s = seconds.max(0.0) as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m {}s", s / 60, s % 60),
        3600..86_400 => format!("{}h {}m", s / 3600, s / 60 % 60),
        _ => format!("{}d {}h", s / 86_400, s / 3600 % 24),
    }
}

/// A latency with three digits: `12.3 µs`, `4.56 ms`, `1.20 s`.
pub fn latency(seconds: f64) -> String {
    let (value, unit) = match seconds {
        s if s < 1e-6 => (s * 1e9, "ns"),
        s if s < 1e-3 => (s * 1e6, "µs"),
        s if s < 1.0 => (s * 1e3, "ms"),
        s if s < 1000.0 => (s, "s"),
        s => return age(s),
    };
    match value {
        v if v < 10.0 => format!("{v:.2} {unit}"),
        v if v < 100.0 => format!("{v:.1} {unit}"),
        v => format!("{v:.0} {unit}"),
    }
}

/// A limit, or `-` where there is none.
pub fn limit(value: Option<u32>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_terminals_not_commanded() {
        let rows = [vec!["ann".to_owned(), "5".to_owned()], vec!["\u{1b}[2J".to_owned(), "1234".to_owned()]];
        let text = table(&[("USER", Align::Left), ("N", Align::Right)], &rows);
        assert_eq!(text, "USER          N\nann           5\n\\u{1b}[2J  1234\n");
    }

    #[test]
    fn numbers_have_units() {
        assert_eq!(
            [bytes(0), bytes(1023), bytes(1536), bytes(u64::MAX)],
            ["0 B", "1023 B", "1.5 KiB", "16.0 EiB"]
        );
        assert_eq!(bytes(1024 * 1024 - 1), "1.0 MiB");
        assert_eq!([age(59.9), age(61.0), age(7260.0), age(90_000.0)], ["59s", "1m 1s", "2h 1m", "1d 1h"]);
        assert_eq!(
            [
                latency(5e-8),
                latency(1.23e-5),
                latency(0.00456),
                latency(0.25),
                latency(12.0),
                latency(7260.0)
            ],
            ["50.0 ns", "12.3 µs", "4.56 ms", "250 ms", "12.0 s", "2h 1m"]
        );
    }
}
