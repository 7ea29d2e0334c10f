//! The report as one HTML file: nothing is fetched from anywhere.

use std::fmt::Write as _;

use super::Ran;
use super::goals::{figure, remarks, verdict};
use super::svg::{draw, escape};
use crate::run::Table;
use crate::run::facts::Host;

const STYLE: &str = "
:root{color-scheme:light dark;--soft:#57606a;--line:#d0d7de;--ok:#1a7f37;--short:#cf222e;--noisy:#9a6700;--back:#f6f8fa}
@media(prefers-color-scheme:dark){:root{--soft:#9198a1;--line:#3d444d;--ok:#3fb950;--short:#ff7b72;--noisy:#d29922;--back:#151b23}}
body{font:15px/1.5 system-ui,sans-serif;max-width:960px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.7rem;margin-bottom:.2rem}h2{margin-top:2.6rem;border-bottom:1px solid var(--line);padding-bottom:.3rem}
h3{font-size:1rem;margin:1.6rem 0 .4rem}
table{border-collapse:collapse;font-size:13px;width:100%;display:block;overflow-x:auto}
th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap;font-variant-numeric:tabular-nums}
th:first-child,td:first-child{text-align:left;white-space:normal}th{color:var(--soft);font-weight:600}
tbody tr:hover{background:var(--back)}
.ok{color:var(--ok)}.short{color:var(--short)}.noisy{color:var(--noisy)}.soft{color:var(--soft)}
.cards{display:flex;gap:1rem;flex-wrap:wrap;margin:1.2rem 0}.card{background:var(--back);border-radius:8px;padding:.7rem 1.1rem;min-width:8rem}
.card b{display:block;font-size:1.6rem;line-height:1.2}
.note{background:var(--back);border-left:3px solid var(--noisy);padding:.35rem .8rem;margin:.4rem 0}
figure{margin:1.2rem 0}svg{width:100%;height:auto}
details{margin:.6rem 0}summary{cursor:pointer;color:var(--soft)}nav a{margin-right:.9rem}
";

/// All of it.
pub fn page(host: &Host, suites: &[Ran]) -> String {
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>mksgate benchmark</title><style>{STYLE}</style><h1>mksgate benchmark</h1>"
    );
    let _ = write!(
        page,
        "<p class=\"soft\">Linux {} · {} · {} cores · {:.0} GiB{} · load at the start {}</p>",
        escape(&host.kernel),
        escape(&host.cpu),
        host.cores,
        host.memory as f64 / (1u64 << 30) as f64,
        if host.virtual_machine { " · virtual machine" } else { "" },
        escape(&host.load)
    );
    cards(&mut page, suites);
    for remark in remarks(suites) {
        let _ = write!(page, "<p class=\"note\">{}</p>", escape(&remark));
    }
    page.push_str("<nav>");
    for ran in shown(suites) {
        let _ = write!(page, "<a href=\"#{0}\">{0}</a>", ran.name);
    }
    page.push_str("</nav>");
    goals(&mut page, suites);
    shown(suites).for_each(|ran| suite(&mut page, ran));
    facts(&mut page, host);
    page
}

fn shown(suites: &[Ran]) -> impl Iterator<Item = &Ran> {
    suites.iter().filter(|ran| !ran.outcome.tables.is_empty() || !ran.outcome.notes.is_empty())
}

fn cards(page: &mut String, suites: &[Ran]) {
    let goals: Vec<_> = suites.iter().flat_map(|ran| &ran.outcome.goals).collect();
    let count = |of: &dyn Fn(bool, bool) -> bool| goals.iter().filter(|goal| of(goal.ok, goal.noisy)).count();
    let minutes = suites.iter().map(|ran| ran.seconds).sum::<f64>() / 60.0;
    let cards = [
        ("ok", "goals kept", count(&|ok, noisy| ok && !noisy).to_string()),
        ("short", "goals short", count(&|ok, noisy| !ok && !noisy).to_string()),
        ("noisy", "too noisy to conclude", count(&|_, noisy| noisy).to_string()),
        ("soft", "minutes", format!("{minutes:.1}")),
    ];
    page.push_str("<div class=\"cards\">");
    for (class, what, number) in cards {
        let _ = write!(page, "<div class=\"card\"><b class=\"{class}\">{number}</b>{what}</div>");
    }
    page.push_str("</div>");
}

fn goals(page: &mut String, suites: &[Ran]) {
    page.push_str(
        "<h2>Goals</h2><table><thead><tr><th>goal<th>bound<th>measured<th>from<th>to<th>verdict</tr></thead><tbody>",
    );
    for goal in suites.iter().flat_map(|ran| &ran.outcome.goals) {
        let class = match (goal.noisy, goal.ok) {
            (true, _) => "noisy",
            (_, true) => "ok",
            _ => "short",
        };
        let _ = write!(
            page,
            "<tr><td>{}: {}<td>{}<td>{}<td>{}<td>{}<td class=\"{class}\">{}</tr>",
            goal.suite,
            escape(&goal.name),
            escape(&goal.goal),
            figure(goal.measured),
            figure(goal.spread[0]),
            figure(goal.spread[1]),
            verdict(goal)
        );
    }
    page.push_str("</tbody></table>");
}

fn suite(page: &mut String, ran: &Ran) {
    let _ = write!(
        page,
        "<h2 id=\"{}\">{}</h2><p>{}. <span class=\"soft\">{:.0} s; others had {:.1} % of the machine in the median round.</span></p>",
        ran.name,
        ran.name,
        escape(&capitalised(ran.about)),
        ran.seconds,
        ran.noise() * 100.0
    );
    let versions: Vec<String> = ran.outcome.versions.iter().map(|(who, v)| format!("{who}: {v}")).collect();
    if !versions.is_empty() {
        let _ = write!(page, "<p class=\"soft\">{}</p>", escape(&versions.join(" · ")));
    }
    for note in &ran.outcome.notes {
        let _ = write!(page, "<p class=\"note\">{}</p>", escape(note));
    }
    for chart in &ran.outcome.charts {
        let _ = write!(page, "<figure>{}</figure>", draw(chart));
    }
    for shown in &ran.outcome.tables {
        let _ = write!(page, "<h3>{}</h3>{}", escape(&shown.title), table(shown));
    }
}

/// The first letter large.
pub(super) fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn table(table: &Table) -> String {
    let row = |cells: &[String], kind: &str| {
        cells.iter().fold("<tr>".to_owned(), |row, cell| row + "<" + kind + ">" + &escape(cell)) + "</tr>"
    };
    let body: String = table.rows.iter().map(|cells| row(cells, "td")).collect();
    format!("<table><thead>{}</thead><tbody>{body}</tbody></table>", row(&table.head, "th"))
}

fn facts(page: &mut String, host: &Host) {
    page.push_str("<h2>The machine</h2><table><tbody>");
    let governor = host.governor.clone().unwrap_or_else(|| "none".to_owned());
    let own = [("open files per process", host.open_files.to_string()), ("governor", governor)];
    let sysctls = host.sysctls.iter().map(|(name, value)| (*name, value.clone()));
    for (name, value) in own.into_iter().chain(sysctls) {
        let _ = write!(page, "<tr><td>{}<td>{}</tr>", escape(name), escape(&value));
    }
    page.push_str("</tbody></table>");
}
