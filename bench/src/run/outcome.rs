//! What a suite hands back. It fills its outcome as it goes, so that an interruption keeps what was measured.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::{Map, Value};

use super::rounds::Spread;
use crate::load::goals::Goal;

/// Results of one suite.
#[derive(Default)]
pub struct Outcome {
    /// The promises, kept or not.
    pub goals: Vec<Goal>,
    /// Every round of every case, by the name of the case or kind.
    pub raw: Map<String, Value>,
    /// For people.
    pub tables: Vec<Table>,
    /// For the report.
    pub charts: Vec<Chart>,
    /// What a reader has to know: who was left out, limits that were met.
    pub notes: Vec<String>,
    /// What took part, and its version.
    pub versions: BTreeMap<String, String>,
    /// mksgate itself could not take part: there is no result, whatever the peers did.
    pub broken: Option<String>,
    /// Latencies, nanoseconds, by name; written as HdrHistogram V2 logs.
    pub histograms: Vec<(String, Histogram<u64>)>,
}

impl Outcome {
    /// Prints a remark and keeps it.
    pub fn note(&mut self, text: impl Into<String>) {
        let text = text.into();
        println!("  note: {text}");
        self.notes.push(text);
    }

    /// Prints a table and keeps it.
    pub fn table(&mut self, table: Table) {
        print!("\n{table}");
        self.tables.push(table);
    }

    /// Keeps raw rounds under a name; several under one name make a list.
    pub fn raw(&mut self, name: &str, rounds: impl Serialize) {
        // Numbers, strings and lists of this crate's own types always have a JSON form.
        let value = serde_json::to_value(rounds).unwrap_or_default();
        let entry = self.raw.entry(name).or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(list) = entry {
            list.push(value);
        }
    }

    /// Keeps who took part.
    pub fn version(&mut self, who: impl Into<String>, version: impl Into<String>) {
        self.versions.insert(who.into(), version.into());
    }
}

/// Rows under a head.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// What it shows.
    pub title: String,
    /// Names of the columns; the first is the row's own name.
    pub head: Vec<String>,
    /// The cells.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty one.
    pub fn new<H: Into<String>>(title: impl Into<String>, head: impl IntoIterator<Item = H>) -> Self {
        Self { title: title.into(), head: head.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row<C: Into<String>>(&mut self, cells: impl IntoIterator<Item = C>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }
}

impl std::fmt::Display for Table {
    /// The first column to the left, figures to the right.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rows = || std::iter::once(&self.head).chain(&self.rows);
        let width = |n: usize| rows().filter_map(|r| r.get(n)).map(|c| c.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        writeln!(f, "{}", self.title)?;
        for row in rows() {
            f.write_str(" ")?;
            for (n, (cell, width)) in row.iter().zip(&widths).enumerate() {
                if n == 0 { write!(f, " {cell:<width$}")? } else { write!(f, "  {cell:>width$}")? }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// A picture in the report.
#[derive(Clone, Debug)]
pub enum Chart {
    /// Bars with their spread, in groups.
    Bars {
        /// What it shows.
        title: String,
        /// Unit of the values.
        unit: String,
        /// Which side is good: `higher is better`.
        better: &'static str,
        /// One per case.
        groups: Vec<Group>,
    },
    /// Latency over percentile, the percentiles on HdrHistogram's scale: each nine as wide as the one before.
    Percentiles {
        /// What it shows.
        title: String,
        /// Name and distribution, nanoseconds.
        series: Vec<(String, Histogram<u64>)>,
    },
    /// A figure over a size, the sizes on a logarithmic scale.
    Scale {
        /// What it shows.
        title: String,
        /// What the sizes are.
        sizes: String,
        /// Unit of the values.
        unit: String,
        /// Values on a logarithmic scale, too.
        logarithmic: bool,
        /// One line each.
        lines: Vec<Line>,
    },
}

/// Bars of one case.
#[derive(Clone, Debug)]
pub struct Group {
    /// The case.
    pub name: String,
    /// One per contender.
    pub bars: Vec<Bar>,
}

/// One contender's bar.
#[derive(Clone, Debug)]
pub struct Bar {
    /// Who.
    pub name: String,
    /// How much.
    pub value: Spread,
}

/// One contender's line.
#[derive(Clone, Debug)]
pub struct Line {
    /// Who.
    pub name: String,
    /// Sizes and what was found.
    pub points: Vec<(f64, Spread)>,
}
