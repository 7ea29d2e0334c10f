//! The report as Markdown, its charts as SVG files beside it.

use std::fmt::Write as _;

use super::Ran;
use super::goals::{remarks, table};
use super::html::capitalised;
use super::svg::draw;
use crate::run::facts::Host;
use crate::run::{Chart, Table};

/// The text, and the name and content of each chart. `charts` is the charts' directory as the text names it.
pub fn document(host: &Host, suites: &[Ran], charts: &str) -> (String, Vec<(String, String)>) {
    let mut text = format!(
        "# mksgate benchmark\n\nLinux {}, {}, {} cores, {:.0} GiB{}.\n",
        host.kernel,
        host.cpu,
        host.cores,
        host.memory as f64 / (1u64 << 30) as f64,
        if host.virtual_machine { ", virtual machine" } else { "" },
    );
    for remark in remarks(suites) {
        let _ = write!(text, "\n> {remark}\n");
    }
    let _ = write!(text, "\n## Goals\n\n{}", rows(&table(suites)));
    let mut drawn = Vec::new();
    for ran in suites.iter().filter(|ran| !ran.outcome.tables.is_empty()) {
        let _ = write!(
            text,
            "\n## {}\n\n{}. Others had {:.1} % of the machine in the median round.\n\n    cargo xtask bench --suite {}\n",
            ran.name,
            capitalised(ran.about),
            ran.noise() * 100.0,
            ran.name
        );
        for note in &ran.outcome.notes {
            let _ = write!(text, "\n> {note}\n");
        }
        for (n, chart) in ran.outcome.charts.iter().enumerate() {
            let (Chart::Bars { title, .. } | Chart::Percentiles { title, .. } | Chart::Scale { title, .. }) =
                chart;
            let file = format!("{}-{}.svg", ran.name, n + 1);
            let _ = write!(text, "\n![{title}]({charts}/{file})\n");
            drawn.push((file, draw(chart)));
        }
        for shown in &ran.outcome.tables {
            let _ = write!(text, "\n**{}**\n\n{}", capitalised(&shown.title), rows(shown));
        }
    }
    (text, drawn)
}

fn rows(table: &Table) -> String {
    let line = |cells: &[String]| {
        let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let rule = "|---|".to_owned() + &"--:|".repeat(table.head.len().saturating_sub(1)) + "\n";
    line(&table.head) + &rule + &table.rows.iter().map(|cells| line(cells)).collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_as_many_columns_as_the_head() {
        let mut table = Table::new("t", ["", "a", "b"]);
        table.row(["x|y", "1", "2"]);
        assert_eq!(rows(&table), "|  | a | b |\n|---|--:|--:|\n| x\\|y | 1 | 2 |\n");
    }
}
