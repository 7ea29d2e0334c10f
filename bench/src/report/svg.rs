//! Charts as SVG: no script, no font, nothing from elsewhere. Each stands by itself and follows the reader's light or dark page.

use std::fmt::Write as _;

use hdrhistogram::Histogram;

use crate::run::{Chart, Group, Line, Spread};

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 330.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 18.0;
const TOP: f64 = 62.0;
const BOTTOM: f64 = 48.0;

/// Colours by name, so that a contender looks the same in every chart; what has no name here takes the rest in turn.
const COLOURS: &[(&str, &str)] = &[
    ("mksgate", "#1f6feb"),
    ("mksgate authd", "#1f6feb"),
    ("mksgate mks", "#0b3d91"),
    ("mksgate web", "#6fa8ff"),
    ("direct", "#8b949e"),
    ("haproxy", "#e36209"),
    ("nginx", "#2da44e"),
    ("stunnel", "#a371f7"),
    ("websockify", "#d4a72c"),
];
const OTHERS: &[&str] =
    &["#1f6feb", "#e36209", "#2da44e", "#a371f7", "#d4a72c", "#cf222e", "#1b7c83", "#bf3989"];

const STYLE: &str = "<style>\
    .chart{font:12px system-ui,sans-serif}.chart text{fill:#24292f}.chart .soft{fill:#57606a}\
    .chart .tiny{font-size:10px;fill:#57606a}.chart .title{font-size:15px;font-weight:600}.chart .grid{stroke:#d8dee4;stroke-width:1}\
    .chart .axis{stroke:#8c959f;stroke-width:1}.chart .whisker{stroke:#24292f;stroke-width:1.2;fill:none}\
    @media(prefers-color-scheme:dark){.chart text{fill:#e6edf3}.chart .soft,.chart .tiny{fill:#9198a1}.chart .grid{stroke:#30363d}\
    .chart .axis{stroke:#656c76}.chart .whisker{stroke:#e6edf3}}</style>";

/// Draws a chart.
pub fn draw(chart: &Chart) -> String {
    match chart {
        Chart::Bars { title, unit, better, groups } => bars(title, unit, better, groups),
        Chart::Percentiles { title, series } => percentiles(title, series),
        Chart::Scale { title, sizes, unit, logarithmic, lines } => {
            scale(title, sizes, unit, *logarithmic, lines)
        }
    }
}

/// Text that stands in XML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn colour(name: &str, nth: usize) -> &'static str {
    let named = COLOURS.iter().find(|(known, _)| *known == name).map(|(_, colour)| *colour);
    named.unwrap_or(OTHERS[nth % OTHERS.len()])
}

/// A picture with its title and legend; the drawing is added to it.
struct Canvas(String);

impl Canvas {
    fn new(title: &str, beside: &str, names: &[String]) -> Self {
        let mut canvas = Self(format!(
            "<svg class=\"chart\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
             aria-label=\"{}\">{STYLE}",
            escape(title)
        ));
        canvas.text(LEFT, 20.0, "title", "start", title);
        canvas.text(WIDTH - RIGHT, 20.0, "soft", "end", beside);
        let mut x = LEFT;
        for (n, name) in names.iter().enumerate() {
            let _ = write!(
                canvas.0,
                "<rect x=\"{x:.1}\" y=\"33\" width=\"12\" height=\"12\" rx=\"2\" fill=\"{}\"/>",
                colour(name, n)
            );
            canvas.text(x + 17.0, 43.0, "", "start", name);
            x += 34.0 + 6.6 * name.chars().count() as f64;
        }
        canvas
    }

    fn text(&mut self, x: f64, y: f64, class: &str, anchor: &str, text: &str) {
        let _ = write!(
            self.0,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\" text-anchor=\"{anchor}\">{}</text>",
            escape(text)
        );
    }

    fn line(&mut self, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        let _ = write!(
            self.0,
            "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
        );
    }

    fn path(&mut self, points: &[(f64, f64)], colour: &str) {
        let mut d = String::new();
        for (n, (x, y)) in points.iter().enumerate() {
            let _ = write!(d, "{}{x:.1} {y:.1}", if n == 0 { "M" } else { "L" });
        }
        let _ = write!(self.0, "<path d=\"{d}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>");
    }

    fn whisker(&mut self, x: f64, low: f64, high: f64) {
        if (low - high).abs() > 1.0 {
            self.line("whisker", (x, low), (x, high));
            self.line("whisker", (x - 3.0, low), (x + 3.0, low));
            self.line("whisker", (x - 3.0, high), (x + 3.0, high));
        }
    }

    /// Lines across for these values.
    fn across(&mut self, axis: &Axis, unit: &str) {
        for value in axis.ticks() {
            let y = axis.y(value);
            self.line("grid", (LEFT, y), (WIDTH - RIGHT, y));
            self.text(LEFT - 7.0, y + 4.0, "soft", "end", &short(value));
        }
        self.text(LEFT - 7.0, TOP - 9.0, "soft", "end", unit);
        self.line("axis", (LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, HEIGHT - BOTTOM));
    }

    fn done(mut self) -> String {
        self.0.push_str("</svg>");
        self.0
    }
}

/// The upright axis.
struct Axis {
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Axis {
    /// That holds these values: from nought, or between powers of ten.
    fn over(values: impl Iterator<Item = f64>, logarithmic: bool) -> Self {
        let (mut low, mut high) = (f64::INFINITY, 0.0f64);
        for value in values.filter(|v| v.is_finite() && (*v > 0.0 || !logarithmic)) {
            (low, high) = (low.min(value), high.max(value));
        }
        if high <= 0.0 || !low.is_finite() {
            (low, high) = (0.1, 1.0);
        }
        if logarithmic {
            // Down and up to 1, 2 or 5 times a power of ten.
            let (low, high) = (round_down(low), round_up(high * 1.001));
            Self { low, high: if high > low { high } else { low * 10.0 }, logarithmic }
        } else {
            Self { low: 0.0, high: high * 1.08, logarithmic }
        }
    }

    fn y(&self, value: f64) -> f64 {
        let share = if self.logarithmic {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        HEIGHT - BOTTOM - share.clamp(0.0, 1.0) * (HEIGHT - BOTTOM - TOP)
    }

    fn ticks(&self) -> Vec<f64> {
        if !self.logarithmic {
            let step = round_up(self.high / 5.0);
            let count = (self.high / step) as usize;
            return (0..=count).map(|n| n as f64 * step).collect();
        }
        let decades = (self.high / self.low).log10();
        let mut ticks = Vec::new();
        let mut power = 10f64.powf(self.low.log10().floor());
        while power <= self.high * 1.0001 {
            let steps: &[f64] = if decades > 3.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
            ticks.extend(steps.iter().map(|step| step * power));
            power *= 10.0;
        }
        ticks.retain(|tick| (self.low * 0.999..=self.high * 1.001).contains(tick));
        ticks
    }
}

fn round_up(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * power).find(|n| *n >= value * 0.999_999).unwrap_or(value)
}

fn round_down(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    [5.0, 2.0, 1.0].into_iter().map(|n| n * power).find(|n| *n <= value * 1.000_001).unwrap_or(power)
}

/// A number for an axis or a bar.
fn short(value: f64) -> String {
    let text = match value.abs() {
        0.0 => return "0".to_owned(),
        a if a >= 10_000.0 => return format!("{:.0}k", value / 1000.0),
        a if a >= 100.0 => return format!("{value:.0}"),
        a if a >= 10.0 => format!("{value:.1}"),
        a if a >= 1.0 => format!("{value:.2}"),
        a if a >= 0.01 => format!("{value:.3}"),
        _ => format!("{value:.5}"),
    };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// Two digits that matter, where bars are narrow.
fn two_digits(value: f64) -> String {
    if !(value > 0.0 && value < 100.0) {
        return short(value);
    }
    let places = (1.0 - value.log10().floor()).max(0.0) as usize;
    let text = format!("{value:.places$}");
    text.strip_prefix('0').map_or(text.clone(), str::to_owned)
}

fn bars(title: &str, unit: &str, better: &str, groups: &[Group]) -> String {
    let mut names: Vec<String> = Vec::new();
    for bar in groups.iter().flat_map(|group| &group.bars) {
        if !names.contains(&bar.name) {
            names.push(bar.name.clone());
        }
    }
    let values = groups.iter().flat_map(|group| &group.bars).map(|bar| bar.value.high);
    let axis = Axis::over(values, false);
    let mut canvas = Canvas::new(title, better, &names);
    canvas.across(&axis, unit);
    let each = (WIDTH - LEFT - RIGHT) / groups.len().max(1) as f64;
    let wide = (each * 0.8 / names.len().max(1) as f64).min(64.0);
    for (g, group) in groups.iter().enumerate() {
        let middle = LEFT + each * (g as f64 + 0.5);
        let begins = middle - wide * group.bars.len() as f64 / 2.0;
        for (b, bar) in group.bars.iter().enumerate() {
            let nth = names.iter().position(|name| *name == bar.name).unwrap_or(b);
            let (x, y) = (begins + wide * b as f64, axis.y(bar.value.median));
            let _ = write!(
                canvas.0,
                "<rect x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"2\" fill=\"{}\"><title>{}: {} {}</title></rect>",
                x + 1.0,
                (wide - 2.0).max(1.0),
                HEIGHT - BOTTOM - y,
                colour(&bar.name, nth),
                escape(&bar.name),
                short(bar.value.median),
                escape(unit)
            );
            let (low, high) = (axis.y(bar.value.low), axis.y(bar.value.high));
            canvas.whisker(x + wide / 2.0, low, high);
            if wide >= 24.0 {
                let text = if wide >= 40.0 { short(bar.value.median) } else { two_digits(bar.value.median) };
                canvas.text(x + wide / 2.0, high.min(y) - 4.0, "tiny", "middle", &text);
            }
        }
        canvas.text(middle, HEIGHT - BOTTOM + 18.0, "", "middle", &group.name);
    }
    canvas.done()
}

/// Where HdrHistogram puts a percentile: each nine as wide as the one before.
fn nines(quantile: f64) -> f64 {
    -(1.0 - quantile).log10()
}

fn percentiles(title: &str, series: &[(String, Histogram<u64>)]) -> String {
    let names: Vec<String> = series.iter().map(|(name, _)| name.clone()).collect();
    let ms = |nanoseconds: u64| nanoseconds as f64 / 1e6;
    let filled = || series.iter().filter(|(_, h)| !h.is_empty());
    let ends = filled().flat_map(|(_, h)| [ms(h.min()), ms(h.max())]);
    let axis = Axis::over(ends, true);
    // Not beyond what the largest number of values can tell.
    let most = filled().map(|(_, h)| h.len()).max().unwrap_or(10) as f64;
    let last = most.log10().clamp(1.0, 6.0);
    let x = |q: f64| LEFT + nines(q).min(last) / last * (WIDTH - LEFT - RIGHT);
    let mut canvas = Canvas::new(title, "lower is better", &names);
    canvas.across(&axis, "ms");
    for (label, quantile) in [
        ("0", 0.0),
        ("50", 0.5),
        ("90", 0.9),
        ("99", 0.99),
        ("99.9", 0.999),
        ("99.99", 0.9999),
        ("99.999", 0.99999),
    ] {
        if nines(quantile) <= last {
            let x = x(quantile);
            canvas.line("grid", (x, TOP), (x, HEIGHT - BOTTOM));
            canvas.text(x, HEIGHT - BOTTOM + 18.0, "soft", "middle", label);
        }
    }
    canvas.text((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 10.0, "soft", "middle", "percentile");
    for (n, (name, histogram)) in series.iter().enumerate().filter(|(_, (_, h))| !h.is_empty()) {
        let limit = 1.0 - 1.0 / histogram.len() as f64;
        let mut points: Vec<(f64, f64)> = histogram
            .iter_quantiles(8)
            .take_while(|step| step.quantile_iterated_to() < 1.0)
            .map(|step| (x(step.quantile_iterated_to().min(limit)), axis.y(ms(step.value_iterated_to()))))
            .collect();
        points.push((x(limit), axis.y(ms(histogram.max()))));
        canvas.path(&points, colour(name, n));
    }
    canvas.done()
}

fn scale(title: &str, sizes: &str, unit: &str, logarithmic: bool, lines: &[Line]) -> String {
    let names: Vec<String> = lines.iter().map(|line| line.name.clone()).collect();
    let spreads = || lines.iter().flat_map(|line| line.points.iter().map(|(_, spread)| *spread));
    let axis = Axis::over(spreads().flat_map(|Spread { low, high, .. }| [low, high]), logarithmic);
    let mut all: Vec<f64> = lines.iter().flat_map(|line| line.points.iter().map(|(size, _)| *size)).collect();
    all.sort_by(f64::total_cmp);
    all.dedup();
    // Nought has no place on such a scale: it stands a decade before the first size.
    let smallest = all.iter().copied().find(|size| *size > 0.0).unwrap_or(1.0);
    let place = |size: f64| if size > 0.0 { size } else { smallest / 10.0 };
    let first = all.first().map_or(1.0, |size| place(*size));
    let last = all.last().map_or(10.0, |size| place(*size));
    let room = (last / first).ln().max(f64::MIN_POSITIVE);
    let x = |size: f64| LEFT + 24.0 + (place(size) / first).ln() / room * (WIDTH - LEFT - RIGHT - 60.0);
    let mut canvas = Canvas::new(title, "", &names);
    canvas.across(&axis, unit);
    for size in &all {
        canvas.line("grid", (x(*size), TOP), (x(*size), HEIGHT - BOTTOM));
        canvas.text(x(*size), HEIGHT - BOTTOM + 18.0, "soft", "middle", &short(*size));
    }
    canvas.text((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 10.0, "soft", "middle", sizes);
    for (n, line) in lines.iter().enumerate() {
        let colour = colour(&line.name, n);
        let points: Vec<(f64, f64)> =
            line.points.iter().map(|(size, s)| (x(*size), axis.y(s.median))).collect();
        canvas.path(&points, colour);
        for ((size, spread), (px, py)) in line.points.iter().zip(&points) {
            canvas.whisker(x(*size), axis.y(spread.low), axis.y(spread.high));
            let _ = write!(
                canvas.0,
                "<circle cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"4\" fill=\"{colour}\"><title>{}, {}: {} {}</title></circle>",
                escape(&line.name),
                short(*size),
                short(spread.median),
                escape(unit)
            );
        }
    }
    canvas.done()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::Bar;

    #[test]
    fn axes_hold_what_they_show() {
        let axis = Axis::over([3.0, 47.0].into_iter(), true);
        assert_eq!((axis.low, axis.high), (2.0, 50.0));
        assert_eq!(axis.ticks(), [2.0, 5.0, 10.0, 20.0, 50.0]);
        assert!(axis.y(3.0) > axis.y(47.0));
        let axis = Axis::over([0.0, 9.0].into_iter(), false);
        assert_eq!(axis.ticks()[0], 0.0);
        assert!((axis.y(0.0) - (HEIGHT - BOTTOM)).abs() < 1e-9);
        // Nothing, and what is no number, still make an axis.
        for empty in [vec![], vec![f64::NAN], vec![0.0]] {
            assert!(Axis::over(empty.into_iter(), true).high > 0.0);
        }
    }

    #[test]
    fn numbers_are_short() {
        let all = [0.0, 0.25, 1.0, 9.87, 64.0, 150.0, 5000.0, 12_000.0, 0.0004];
        assert_eq!(all.map(short), ["0", "0.25", "1", "9.87", "64", "150", "5000", "12k", "0.0004"]);
    }

    #[test]
    fn narrow_bars_have_two_digits() {
        assert_eq!([0.5513, 0.0421, 4.87, 63.4, 150.0].map(two_digits), [".55", ".042", "4.9", "63", "150"]);
    }

    #[test]
    fn nines_are_as_wide_as_each_other() {
        assert!((nines(0.9) - 1.0).abs() < 1e-9 && (nines(0.999) - 3.0).abs() < 1e-9);
    }

    #[test]
    fn every_bar_is_drawn_and_names_are_escaped() {
        let bar =
            |name: &str, median| Bar { name: name.into(), value: Spread { median, low: 1.0, high: 9.0 } };
        let groups = vec![Group { name: "a<b".into(), bars: vec![bar("mksgate", 5.0), bar("x&y", 2.0)] }];
        let chart = Chart::Bars { title: "t".into(), unit: "s".into(), better: "lower is better", groups };
        let svg = draw(&chart);
        assert_eq!(svg.matches("<title>").count(), 2);
        assert!(svg.contains("a&lt;b") && svg.contains("x&amp;y") && !svg.contains("x&y"));
        // The namespace is a name, not a place that anything is fetched from.
        assert_eq!(svg.matches("http").count(), 1);
    }

    #[test]
    fn an_empty_distribution_is_no_panic() {
        let empty = Histogram::new_with_bounds(1, 1000, 3).unwrap();
        let chart = Chart::Percentiles { title: "t".into(), series: vec![("a".into(), empty)] };
        assert!(draw(&chart).ends_with("</svg>"));
    }
}
