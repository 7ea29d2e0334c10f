//! The last thing on the screen: which promises were kept.

use super::Ran;
use crate::load::goals::Goal;
use crate::run::Table;

/// `goal | measured | ok/short`, for all suites.
pub fn table(suites: &[Ran]) -> Table {
    let mut table = Table::new("Goals", ["goal", "bound", "measured", "from", "to", "verdict"]);
    for goal in suites.iter().flat_map(|ran| &ran.outcome.goals) {
        let figures = [goal.measured, goal.spread[0], goal.spread[1]].map(figure);
        let [measured, low, high] = figures;
        table.row([
            format!("{}: {}", goal.suite, goal.name),
            goal.goal.clone(),
            measured,
            low,
            high,
            verdict(goal),
        ]);
    }
    table
}

/// `ok` or `short`, and whether that can be relied on.
pub fn verdict(goal: &Goal) -> String {
    let verdict = if goal.ok { "ok" } else { "short" };
    if goal.noisy { format!("{verdict} (too noisy)") } else { verdict.to_owned() }
}

/// Three or four digits that matter.
pub fn figure(value: f64) -> String {
    match value.abs() {
        _ if value.is_nan() => "-".to_owned(),
        a if a >= 1000.0 => format!("{value:.0}"),
        a if a >= 100.0 => format!("{value:.1}"),
        a if a >= 10.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Lines under the table: what was left out, what could not be concluded.
pub fn remarks(suites: &[Ran]) -> Vec<String> {
    let noisy = suites.iter().filter(|ran| ran.too_noisy()).map(|ran| {
        format!(
            "{}: too noisy to conclude; others had {:.0} % of the machine in its median round",
            ran.name,
            ran.noise() * 100.0
        )
    });
    suites.iter().filter_map(Ran::remark).chain(noisy).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Ended;
    use crate::run::Outcome;
    use crate::run::context::Foreign;

    fn ran(noise: f64) -> Ran {
        let goals = vec![Goal::at_most("flow", "cpu", 0.5, 0.6), Goal::at_least("flow", "speed", 0.9, 1.0)];
        let outcome = Outcome { goals, ..Outcome::default() };
        let foreign = vec![Foreign { noise, steal: 0.0 }; 3];
        let mut ran = Ran { name: "flow", about: "", ended: Ended::Complete, seconds: 1.0, outcome, foreign };
        ran.judge();
        ran
    }

    #[test]
    fn the_table_says_ok_and_short() {
        let text = table(&[ran(0.01)]).to_string();
        assert!(text.contains("flow: cpu") && text.contains("<= 0.6") && text.contains("ok"), "{text}");
        assert!(text.lines().any(|line| line.contains("speed") && line.ends_with("short")), "{text}");
        assert!(remarks(&[ran(0.01)]).is_empty());
    }

    #[test]
    fn a_noisy_machine_concludes_nothing() {
        let noisy = [ran(0.3)];
        assert!(table(&noisy).to_string().contains("ok (too noisy)"));
        assert!(remarks(&noisy)[0].contains("too noisy to conclude; others had 30 %"));
    }
}
