//! Drawing: a head line, tenants, latencies and refusals above, the sessions below.

use std::collections::VecDeque;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Table, TableState};

use super::model::{Mode, Model, Rates};
use crate::admin::{ServiceState, TenantView};
use crate::cli::output::{age, bytes, latency, limit, printable};
use crate::metrics::Percentiles;

/// The latency scale: 1 µs at the left end, 10 s at the right one, each decade equally wide.
const SHORTEST: f64 = 1e-6;
const DECADES: f64 = 7.0;
const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const HEAT: [Color; 8] = [
    Color::Blue,
    Color::Cyan,
    Color::Green,
    Color::LightGreen,
    Color::Yellow,
    Color::LightYellow,
    Color::LightRed,
    Color::Red,
];

/// Draws the model.
pub fn draw(frame: &mut Frame, model: &Model) {
    let upper = (model.latencies.len() + 3).clamp(6, 13) as u16;
    let [head, top, sessions, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(upper),
        Constraint::Min(4),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let [tenants, latencies, refused] =
        Layout::horizontal([Constraint::Min(42), Constraint::Percentage(50), Constraint::Length(30)])
            .areas(top);
    frame.render_widget(head_line(model), head);
    draw_tenants(frame, model, tenants);
    draw_latencies(frame, model, latencies);
    draw_refused(frame, model, refused);
    draw_sessions(frame, model, sessions);
    frame.render_widget(foot_line(model), foot);
}

fn head_line(model: &Model) -> Line<'static> {
    let status = &model.status;
    let state = match (&status.service.state, status.ready) {
        (ServiceState::Starting, _) => "starting".yellow(),
        (ServiceState::Serving, true) => "serving".green(),
        (ServiceState::Serving, false) => "not ready".red(),
        (ServiceState::Draining, _) => "draining".yellow(),
    };
    Line::from(vec![
        Span::from(format!("mksgate {}  ", status.version)).bold(),
        state,
        Span::from(format!(
            "  up {}  {} sessions  +{:.1}/s  {}  {}",
            age(status.uptime_seconds),
            status.sessions,
            model.opened,
            rates(model.total),
            printable(&status.service.flow_driver),
        )),
    ])
}

fn foot_line(model: &Model) -> Line<'static> {
    match &model.mode {
        Mode::Confirm(id) => Line::from(format!("close session {id}? y / n")).black().on_yellow(),
        Mode::Filter => Line::from(format!("filter: {}▏  Enter keep  Esc clear", printable(&model.filter))),
        Mode::Browse if !model.message.is_empty() => Line::from(printable(&model.message)).yellow(),
        Mode::Browse => {
            Line::from("q quit  ↑↓ select  s sort  r reverse  / filter  x close session").dark_gray()
        }
    }
}

fn draw_tenants(frame: &mut Frame, model: &Model, area: Rect) {
    let row = |(tenant, rates): &(TenantView, Rates)| {
        let full = tenant.limits.max_sessions.is_some_and(|max| tenant.sessions >= max as usize);
        let style = if full { Style::new().fg(Color::Red) } else { Style::new() };
        let sessions = format!("{}/{}", tenant.sessions, limit(tenant.limits.max_sessions));
        let cells = [printable(&tenant.limits.name), sessions, per_second(rates.up), per_second(rates.down)];
        Row::new(cells).style(style)
    };
    let widths = [Constraint::Min(10), Constraint::Length(9), Constraint::Length(11), Constraint::Length(11)];
    let table = Table::new(model.tenants.iter().map(row), widths)
        .header(Row::new(["tenant", "sessions", "up", "down"]).bold())
        .block(Block::bordered().title(format!("tenants ({})", model.tenants.len())));
    frame.render_widget(table, area);
}

fn draw_latencies(frame: &mut Frame, model: &Model, area: Rect) {
    let inner = usize::from(area.width.saturating_sub(2));
    // Name, three numbers and their gaps take 46 columns; bar and strip share the rest.
    let bar = (inner.saturating_sub(46) / 2).max(8);
    let strip = inner.saturating_sub(46 + bar);
    let mut lines = vec![Line::from(format!("{:<18}{:>9}{:>9}{:>9} ", "", "p50", "p90", "p99")).bold()];
    for p in &model.latencies {
        let mut spans = vec![Span::from(format!("{:<18}", p.stage.as_str()))];
        let time = |t| if p.count == 0 { "-".to_owned() } else { latency(t) };
        spans.push(Span::from(format!("{:>9}{:>9}{:>9} ", time(p.p50), time(p.p90), time(p.p99))));
        spans.extend(bar_of(p, bar));
        if let Some(heat) = model.heat.get(&p.stage) {
            spans.extend(strip_of(heat, strip));
        }
        lines.push(Line::from(spans));
    }
    let block = Block::bordered().title("latency of the last looks  1 µs … 10 s, p99 over time");
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

/// Solid up to p50, then lighter up to p90 and p99.
fn bar_of(p: &Percentiles, width: usize) -> Vec<Span<'static>> {
    let at = |time| if p.count == 0 { 0 } else { (scale(time) * width as f64).round() as usize };
    let (p50, p90, p99) = (at(p.p50), at(p.p90), at(p.p99));
    let part = |c: &str, n: usize, color| Span::styled(c.repeat(n), Style::new().fg(color));
    vec![
        part("█", p50, Color::Green),
        part("▓", p90.saturating_sub(p50), Color::Yellow),
        part("░", p99.saturating_sub(p90.max(p50)), Color::Red),
        Span::from(" ".repeat(width - p99.max(p90).max(p50).min(width) + 1)),
    ]
}

/// One column for each look, the newest at the right.
fn strip_of(heat: &VecDeque<Option<f64>>, width: usize) -> Vec<Span<'static>> {
    let column = |p99: &Option<f64>| match p99 {
        None => Span::from(" "),
        Some(p99) => {
            let level = ((scale(*p99) * LEVELS.len() as f64) as usize).min(LEVELS.len() - 1);
            Span::styled(LEVELS[level].to_string(), Style::new().fg(HEAT[level]))
        }
    };
    heat.iter().skip(heat.len().saturating_sub(width)).map(column).collect()
}

/// Where a time lies on the scale, 0 to 1.
fn scale(seconds: f64) -> f64 {
    ((seconds.max(SHORTEST) / SHORTEST).log10() / DECADES).clamp(0.0, 1.0)
}

fn draw_refused(frame: &mut Frame, model: &Model, area: Rect) {
    let row = |(reason, rate): &(String, f64)| {
        let style = if *rate > 0.0 { Style::new().fg(Color::Red) } else { Style::new().fg(Color::DarkGray) };
        Row::new([reason.clone(), format!("{rate:.1}/s")]).style(style)
    };
    let table = Table::new(model.refused.iter().map(row), [Constraint::Min(16), Constraint::Length(9)])
        .block(Block::bordered().title("refused and shed"));
    frame.render_widget(table, area);
}

fn draw_sessions(frame: &mut Frame, model: &Model, area: Rect) {
    let visible = model.visible();
    let rows = visible.iter().map(|row| {
        let v = &row.view;
        let cells = [
            v.id.to_string(),
            printable(&v.tenant),
            printable(&v.user),
            printable(machine(&v.vm)),
            v.source.clone(),
            v.backend.peer.clone(),
            age(v.age_seconds),
            age(v.idle_seconds),
            per_second(row.rates.up),
            per_second(row.rates.down),
            bytes(v.up_bytes.saturating_add(v.down_bytes)),
        ];
        Row::new(cells.map(Cell::from))
    });
    let widths = [
        Constraint::Length(7),
        Constraint::Max(14),
        Constraint::Max(16),
        Constraint::Min(12),
        Constraint::Max(26),
        Constraint::Max(26),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Length(11),
        Constraint::Length(11),
        Constraint::Length(10),
    ];
    let order = if model.reverse { ", reversed" } else { "" };
    let filter = if model.filter.is_empty() {
        String::new()
    } else {
        format!(", filter {}", printable(&model.filter))
    };
    let title = format!("sessions ({}), by {}{order}{filter}", visible.len(), model.sort.as_str());
    let head = ["id", "tenant", "user", "vm", "source", "backend", "age", "idle", "up", "down", "bytes"];
    let table = Table::new(rows, widths)
        .header(Row::new(head).bold())
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
        .block(Block::bordered().title(title));
    let mut state = TableState::new().with_selected(model.selection());
    frame.render_stateful_widget(table, area, &mut state);
}

/// The name at the end of a configuration file's path: the beginning is the same for all of a datastore.
fn machine(vm: &str) -> &str {
    let name = vm.rsplit('/').next().unwrap_or(vm);
    if name.is_empty() { vm } else { name }
}

fn rates(total: Rates) -> String {
    format!("▲ {}  ▼ {}", per_second(total.up), per_second(total.down))
}

fn per_second(rate: f64) -> String {
    if rate < 0.5 { "-".to_owned() } else { format!("{}/s", bytes(rate as u64)) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::testing::{sample, session};
    use super::*;
    use crate::metrics::{Metrics, Stage, read_log};

    fn screen(model: &Model, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, model)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn everything_is_on_the_screen_and_names_command_nothing() {
        let metrics = Metrics::new();
        let mut first = sample(0, vec![session(1, "acme", "ann\u{1b}[2J", 0)]);
        first.latencies = read_log(&metrics.hist_log(std::time::SystemTime::now())).unwrap();
        let mut model = Model::new(first);
        for _ in 0..100 {
            metrics.record(Stage::FlowTurn, Duration::from_micros(100));
        }
        let mut second =
            sample(1, vec![session(1, "acme", "ann\u{1b}[2J", 4096), session(2, "globex", "bob", 0)]);
        second.latencies = read_log(&metrics.hist_log(std::time::SystemTime::now())).unwrap();
        second.metrics = "mksgate_refusals_total{door=\"mks\",tenant=\"\",reason=\"source_rate\"} 5\n".into();
        model.update(second);
        let text = screen(&model, 160, 40);
        for part in
            ["serving", "acme", "globex", "1/5", "4.0 KiB/s", "flow_turn", "source_rate", "5.0/s", "bob"]
        {
            assert!(text.contains(part), "{part} is not on\n{text}");
        }
        assert!(text.contains("ann\\u{1b}") && !text.contains('\u{1b}'), "{text}");
        assert!(text.contains('█'), "{text}");
    }

    #[test]
    fn any_size_of_terminal_will_do() {
        let model = Model::new(sample(0, vec![session(1, "acme", "ann", 1)]));
        for (width, height) in [(1, 1), (20, 5), (80, 24), (400, 100)] {
            screen(&model, width, height);
        }
    }
}
