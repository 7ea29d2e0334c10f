//! What `top` knows and what keys do to it. No terminal and no socket here.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Instant;

use mksgate_common::verdict::Verdict;
use ratatui::crossterm::event::{KeyCode, KeyModifiers};

use crate::admin::{StatusView, TenantView};
use crate::cli::hist::{Snapshot, difference};
use crate::metrics::{Percentiles, Stage};
use crate::session::SessionView;

/// Looks that the latency bars cover, and that the heat strip shows.
const WINDOW: usize = 10;
const STRIP: usize = 60;
/// Looks that a message stays.
const MESSAGE_LOOKS: u8 = 3;

/// Everything of one moment.
pub struct Sample {
    /// `GET /v1/status`
    pub status: StatusView,
    /// `GET /v1/sessions`
    pub sessions: Vec<SessionView>,
    /// `GET /v1/tenants`
    pub tenants: Vec<TenantView>,
    /// `GET /v1/hist?format=log`
    pub latencies: Snapshot,
    /// `GET /metrics`
    pub metrics: String,
    /// When.
    pub at: Instant,
}

/// What the screen shows.
pub struct Model {
    pub(super) status: StatusView,
    pub(super) tenants: Vec<(TenantView, Rates)>,
    pub(super) total: Rates,
    /// New sessions each second.
    pub(super) opened: f64,
    /// Refusals each second, by reason; most first.
    pub(super) refused: Vec<(String, f64)>,
    /// Of the last looks; without sessions' lengths, which are no latency.
    pub(super) latencies: Vec<Percentiles>,
    /// The 99th percentile of each look in seconds, newest last; `None` where nothing happened.
    pub(super) heat: BTreeMap<Stage, VecDeque<Option<f64>>>,
    pub(super) sort: Sort,
    pub(super) reverse: bool,
    pub(super) filter: String,
    pub(super) mode: Mode,
    pub(super) message: String,
    message_looks: u8,
    rows: Vec<SessionRow>,
    selected: Option<u64>,
    seen: Seen,
    past: VecDeque<Snapshot>,
}

/// Bytes each second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) up: f64,
    pub(super) down: f64,
}

/// A session and how fast it is.
#[derive(Clone, Debug)]
pub(super) struct SessionRow {
    pub(super) view: SessionView,
    pub(super) rates: Rates,
}

/// What the next look is compared with.
struct Seen {
    at: Instant,
    /// A restarted service counts from the beginning again.
    started: String,
    bytes: HashMap<u64, (u64, u64)>,
    opened: f64,
    refused: BTreeMap<String, f64>,
}

/// What the sessions are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// Number: oldest first.
    Id,
    /// Tenant's name.
    Tenant,
    /// Person's name.
    User,
    /// Fastest first, both directions.
    Rate,
    /// Most bytes first, both directions.
    Bytes,
    /// Longest silent first.
    Idle,
}

/// What keys mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Browse,
    /// Typing the filter.
    Filter,
    /// Asked whether this session is to be closed.
    Confirm(u64),
}

/// What the loop is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing but drawing.
    None,
    /// Leave.
    Quit,
    /// Close this session.
    Close(u64),
}

impl Sort {
    const ALL: [Sort; 6] = [Self::Id, Self::Tenant, Self::User, Self::Rate, Self::Bytes, Self::Idle];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Tenant => "tenant",
            Self::User => "user",
            Self::Rate => "rate",
            Self::Bytes => "bytes",
            Self::Idle => "idle",
        }
    }

    fn next(self) -> Self {
        let at = Self::ALL.iter().position(|sort| *sort == self).unwrap_or(0);
        Self::ALL[(at + 1) % Self::ALL.len()]
    }

    fn compare(self, a: &SessionRow, b: &SessionRow) -> Ordering {
        let order = match self {
            Self::Id => Ordering::Equal,
            Self::Tenant => a.view.tenant.cmp(&b.view.tenant),
            Self::User => a.view.user.cmp(&b.view.user),
            Self::Rate => b.rates.sum().total_cmp(&a.rates.sum()),
            Self::Bytes => b.bytes().cmp(&a.bytes()),
            Self::Idle => b.view.idle_seconds.total_cmp(&a.view.idle_seconds),
        };
        order.then(a.view.id.cmp(&b.view.id))
    }
}

impl Rates {
    fn sum(self) -> f64 {
        self.up + self.down
    }

    fn add(&mut self, other: Self) {
        self.up += other.up;
        self.down += other.down;
    }
}

impl SessionRow {
    fn bytes(&self) -> u64 {
        self.view.up_bytes.saturating_add(self.view.down_bytes)
    }

    fn contains(&self, text: &str) -> bool {
        let v = &self.view;
        let fields = [&v.tenant, &v.user, &v.vm, &v.jti, &v.source, &v.client.peer, &v.backend.peer];
        fields.iter().any(|field| field.to_lowercase().contains(text))
    }
}

impl Model {
    /// From the first look; rates begin with the second.
    pub fn new(first: Sample) -> Self {
        let mut model = Self {
            status: first.status.clone(),
            tenants: Vec::new(),
            total: Rates::default(),
            opened: 0.0,
            refused: Vec::new(),
            latencies: Vec::new(),
            heat: BTreeMap::new(),
            sort: Sort::Id,
            reverse: false,
            filter: String::new(),
            mode: Mode::Browse,
            message: String::new(),
            message_looks: 0,
            rows: Vec::new(),
            selected: None,
            seen: Seen::of(&first),
            past: VecDeque::new(),
        };
        model.update(first);
        model
    }

    /// Takes the next look.
    pub fn update(&mut self, sample: Sample) {
        let now = Seen::of(&sample);
        if now.started != self.seen.started {
            self.past.clear();
            self.seen =
                Seen { bytes: HashMap::new(), opened: 0.0, refused: BTreeMap::new(), ..Seen::of(&sample) };
        }
        let seconds = now.at.saturating_duration_since(self.seen.at).as_secs_f64();
        let rate =
            |before: f64, after: f64| if seconds > 0.0 { (after - before).max(0.0) / seconds } else { 0.0 };

        self.rows = sample.sessions.into_iter().map(|view| self.seen.row(view, rate)).collect();
        let mut by_tenant: HashMap<&str, Rates> = HashMap::new();
        self.total = Rates::default();
        for row in &self.rows {
            by_tenant.entry(&row.view.tenant).or_default().add(row.rates);
            self.total.add(row.rates);
        }
        let with_rates = |tenant: TenantView| {
            let rates = by_tenant.get(tenant.limits.name.as_str()).copied().unwrap_or_default();
            (tenant, rates)
        };
        self.tenants = sample.tenants.into_iter().map(with_rates).collect();
        self.tenants.sort_by_key(|(tenant, _)| Reverse(tenant.sessions));
        self.opened = rate(self.seen.opened, now.opened);
        self.refused = now
            .refused
            .iter()
            .map(|(reason, &count)| {
                (reason.clone(), rate(self.seen.refused.get(reason).copied().unwrap_or(0.0), count))
            })
            .collect();
        self.refused.sort_by(|a, b| b.1.total_cmp(&a.1));
        self.look_at_latencies(sample.latencies);
        self.status = sample.status;
        self.seen = now;
        self.message_looks = self.message_looks.saturating_sub(1);
        if self.message_looks == 0 {
            self.message.clear();
        }
        self.keep_selection();
    }

    fn look_at_latencies(&mut self, now: Snapshot) {
        if let Some(before) = self.past.back() {
            for (stage, added) in difference(before, &now) {
                let strip = self.heat.entry(stage).or_default();
                strip.push_back((!added.is_empty()).then(|| Percentiles::of(stage, &added).p99));
                if strip.len() > STRIP {
                    strip.pop_front();
                }
            }
        }
        let nothing = Snapshot::new();
        let window = difference(self.past.front().unwrap_or(&nothing), &now);
        let shown = window.iter().filter(|(stage, _)| **stage != Stage::Session);
        self.latencies = shown.map(|(stage, histogram)| Percentiles::of(*stage, histogram)).collect();
        self.past.push_back(now);
        if self.past.len() > WINDOW {
            self.past.pop_front();
        }
    }

    /// What a key does.
    pub fn key(&mut self, code: KeyCode, modifiers: KeyModifiers) -> Action {
        if code == KeyCode::Char('c') && modifiers.contains(KeyModifiers::CONTROL) {
            return Action::Quit;
        }
        match self.mode.clone() {
            Mode::Browse => return self.browse(code),
            Mode::Filter => self.type_filter(code),
            Mode::Confirm(id) => {
                self.mode = Mode::Browse;
                if matches!(code, KeyCode::Char('y' | 'Y')) {
                    return Action::Close(id);
                }
            }
        }
        Action::None
    }

    fn browse(&mut self, code: KeyCode) -> Action {
        match code {
            KeyCode::Char('q') => return Action::Quit,
            KeyCode::Esc if self.filter.is_empty() => return Action::Quit,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Char('r') => self.reverse = !self.reverse,
            KeyCode::Char('/') => self.mode = Mode::Filter,
            KeyCode::Char('x') | KeyCode::Delete => {
                if let Some(id) = self.selected {
                    self.mode = Mode::Confirm(id);
                }
            }
            KeyCode::Down | KeyCode::Char('j') => self.step(1),
            KeyCode::Up | KeyCode::Char('k') => self.step(-1),
            KeyCode::PageDown => self.step(20),
            KeyCode::PageUp => self.step(-20),
            KeyCode::Home => self.step(isize::MIN),
            KeyCode::End => self.step(isize::MAX),
            _ => {}
        }
        self.keep_selection();
        Action::None
    }

    fn type_filter(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.mode = Mode::Browse,
            KeyCode::Esc => {
                self.filter.clear();
                self.mode = Mode::Browse;
            }
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Char(c) => self.filter.push(c),
            _ => {}
        }
        self.keep_selection();
    }

    /// Shows a message for the next looks.
    pub fn say(&mut self, message: impl Into<String>) {
        self.message = message.into();
        self.message_looks = MESSAGE_LOOKS;
    }

    /// The sessions that the filter lets through, sorted.
    pub(super) fn visible(&self) -> Vec<&SessionRow> {
        let wanted = self.filter.to_lowercase();
        let mut rows: Vec<_> = self.rows.iter().filter(|row| row.contains(&wanted)).collect();
        rows.sort_by(|a, b| self.sort.compare(a, b));
        if self.reverse {
            rows.reverse();
        }
        rows
    }

    /// Where the selected session stands among the visible ones.
    pub(super) fn selection(&self) -> Option<usize> {
        self.visible().iter().position(|row| Some(row.view.id) == self.selected)
    }

    fn step(&mut self, by: isize) {
        let visible = self.visible();
        let Some(last) = visible.len().checked_sub(1) else { return };
        let to = self.selection().unwrap_or(0).saturating_add_signed(by).min(last);
        self.selected = Some(visible[to].view.id);
    }

    /// The selected session stays selected wherever it moves; one that is gone or filtered out gives way to the first.
    fn keep_selection(&mut self) {
        if self.selection().is_none() {
            self.selected = self.visible().first().map(|row| row.view.id);
        }
    }
}

impl Seen {
    fn of(sample: &Sample) -> Self {
        let bytes = sample.sessions.iter().map(|s| (s.id, (s.up_bytes, s.down_bytes))).collect();
        Self {
            at: sample.at,
            started: sample.status.started.clone(),
            bytes,
            opened: sum_by(&sample.metrics, "mksgate_sessions_opened_total", "tenant").values().sum(),
            refused: turned_away(&sample.metrics),
        }
    }

    fn row(&self, view: SessionView, rate: impl Fn(f64, f64) -> f64) -> SessionRow {
        let (up, down) = self.bytes.get(&view.id).copied().unwrap_or((0, 0));
        let rates = Rates {
            up: rate(up as f64, view.up_bytes as f64),
            down: rate(down as f64, view.down_bytes as f64),
        };
        SessionRow { view, rates }
    }
}

/// Refusals by reason, and what the XDP gate shed by verdict.
fn turned_away(metrics: &str) -> BTreeMap<String, f64> {
    let mut all = sum_by(metrics, "mksgate_refusals_total", "reason");
    let by_verdict = sum_by(metrics, "mksgate_xdp_packets_total", "verdict");
    let shed = Verdict::ALL.into_iter().filter(|verdict| verdict.sheds());
    all.extend(shed.filter_map(|verdict| {
        let packets = by_verdict.get(verdict.as_str()).filter(|packets| **packets > 0.0)?;
        Some((format!("xdp {}", verdict.as_str()), *packets))
    }));
    all
}

/// The samples of a metric added up by one of its labels.
fn sum_by(text: &str, name: &str, label: &str) -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::new();
    let key = format!("{label}=\"");
    for line in text.lines() {
        let Some(labels) = line.strip_prefix(name).and_then(|rest| rest.strip_prefix('{')) else { continue };
        let Some((_, after)) = labels.split_once(&key) else { continue };
        let Some((value, _)) = after.split_once('"') else { continue };
        let count: f64 = line.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0.0);
        *sums.entry(value.to_owned()).or_default() += count;
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::super::testing::{sample, session};
    use super::*;

    fn press(model: &mut Model, text: &str) {
        for c in text.chars() {
            model.key(KeyCode::Char(c), KeyModifiers::NONE);
        }
    }

    fn ids(model: &Model) -> Vec<u64> {
        model.visible().iter().map(|row| row.view.id).collect()
    }

    #[test]
    fn rates_are_what_was_added_since_the_last_look() {
        let mut first = sample(0, vec![session(1, "acme", "ann", 1000)]);
        first.metrics = "mksgate_refusals_total{door=\"mks\",tenant=\"\",reason=\"source_rate\"} 10\n".into();
        let mut model = Model::new(first);
        assert_eq!(model.total.up, 0.0);
        let mut second = sample(2, vec![session(1, "acme", "ann", 3000), session(2, "acme", "bob", 500)]);
        second.metrics = "mksgate_refusals_total{door=\"mks\",tenant=\"\",reason=\"source_rate\"} 30\n\
            mksgate_xdp_packets_total{verdict=\"tenant_full\"} 8\n\
            mksgate_xdp_packets_total{verdict=\"pass\"} 900\n\
            mksgate_sessions_opened_total{tenant=\"acme\",door=\"mks\"} 4\n"
            .into();
        model.update(second);
        assert_eq!((model.total.up, model.opened), (1250.0, 2.0));
        let refused = [("source_rate".to_owned(), 10.0), ("xdp tenant_full".to_owned(), 4.0)];
        assert_eq!(model.refused, refused);
        assert_eq!(model.tenants[0].1.up, 1250.0);
    }

    #[test]
    fn sessions_are_sorted_filtered_and_chosen() {
        let sessions =
            vec![session(1, "acme", "bob", 5), session(2, "globex", "ann", 9), session(3, "acme", "eve", 7)];
        let mut model = Model::new(sample(0, sessions.clone()));
        assert_eq!(ids(&model), [1, 2, 3]);
        press(&mut model, "ss");
        assert_eq!((model.sort, ids(&model)), (Sort::User, vec![2, 1, 3]));
        press(&mut model, "ssr");
        assert_eq!((model.sort, ids(&model)), (Sort::Bytes, vec![1, 3, 2]));
        press(&mut model, "/ACME");
        model.key(KeyCode::Enter, KeyModifiers::NONE);
        assert_eq!(ids(&model), [1, 3]);
        press(&mut model, "j");
        assert_eq!(model.selection(), Some(1));
        model.update(sample(1, sessions[1..].to_vec()));
        assert_eq!((ids(&model), model.selection()), (vec![3], Some(0)));
    }

    #[test]
    fn a_session_is_closed_only_after_a_yes() {
        let mut model = Model::new(sample(0, vec![session(7, "acme", "ann", 0)]));
        let key = |model: &mut Model, c| model.key(KeyCode::Char(c), KeyModifiers::NONE);
        assert_eq!([key(&mut model, 'x'), key(&mut model, 'n')], [Action::None, Action::None]);
        assert_eq!([key(&mut model, 'x'), key(&mut model, 'y')], [Action::None, Action::Close(7)]);
        assert_eq!(key(&mut model, 'q'), Action::Quit);
        let mut empty = Model::new(sample(0, Vec::new()));
        key(&mut empty, 'x');
        assert_eq!((empty.mode.clone(), key(&mut empty, 'y')), (Mode::Browse, Action::None));
    }

    #[test]
    fn a_restarted_service_begins_anew() {
        let mut model = Model::new(sample(0, vec![session(1, "acme", "ann", 1_000_000)]));
        let mut restarted = sample(1, vec![session(1, "acme", "bob", 10)]);
        restarted.status.started = "2030-01-01T00:00:01.000Z".into();
        model.update(restarted);
        assert_eq!(model.total.up, 0.0);
    }
}
