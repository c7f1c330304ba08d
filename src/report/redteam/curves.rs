//! The charts of a red-team report.

use crate::redteam::{AttackKind, AttackResult, Goal, Point, Results};
use crate::report::attacks::{self, Group};
use crate::report::plot::{Chart, Limit, Series};
use crate::report::units::percent;

/// Runs drawn in one chart, those that got furthest.
const MOST_RUNS: usize = 6;

const RESTRICTED: usize = 0;
const UTILITY: usize = 1;

/// A chart for each attack that trains, the one that got furthest first: restricted score and utility against steps. The
/// trials of a search share one.
pub(super) fn along(results: &Results, groups: &[Group]) -> Vec<Chart> {
    let mut charts: Vec<(f64, Chart)> = Vec::new();
    for group in groups.iter().filter(|group| group.first.trial.is_none() && attacks::trains(group.first.kind)) {
        charts.extend(chart(&results.goal, group.first.name.clone(), group.curves().map(|(_, curve)| curve).collect()));
    }
    for kind in [AttackKind::Full, AttackKind::Lora] {
        let trials = groups.iter().filter(|group| group.first.trial.is_some() && group.first.kind == kind);
        let curves = trials.flat_map(|group| group.curves().map(|(_, curve)| curve)).collect();
        charts.extend(chart(&results.goal, format!("Search: {}", attacks::kind(kind)), curves));
    }
    charts.sort_by(|a, b| b.0.total_cmp(&a.0));
    charts.into_iter().map(|(_, chart)| chart).collect()
}

/// The chart of some runs with the score that it is sorted by; none where nothing was measured.
fn chart(goal: &Goal, title: String, mut curves: Vec<&[Point]>) -> Option<(f64, Chart)> {
    let score = |curve: &[Point]| goal.best(curve).map_or(-1.0, |point| point.scores.restricted);
    curves.retain(|curve| !curve.is_empty());
    curves.sort_by(|a, b| score(b).total_cmp(&score(a)));
    let all = curves.len();
    let shown = curves.len().min(MOST_RUNS);
    let highest = score(curves.first()?);
    let line = |name: &str, style, of: fn(&Point) -> f64, curve: &[Point]| {
        let points = curve.iter().map(|point| (point.cost.steps as f64, of(point))).collect();
        Series { thin: all > 1, ..Series::new(name, style, points) }
    };
    let mut series = Vec::new();
    for curve in curves.iter().take(shown) {
        series.push(line("restricted score", RESTRICTED, |point| point.scores.restricted, curve));
        series.push(line("utility", UTILITY, |point| point.scores.utility, curve));
    }
    let note = match (all, shown) {
        (1, _) => String::new(),
        (all, shown) if all == shown => format!("{all} runs"),
        (all, shown) => format!("the {shown} of {all} runs that got furthest"),
    };
    let x = "attack steps".to_string();
    Some((highest, Chart { title, x, series, limits: vec![threshold(goal), floor(goal)], note, ..Chart::default() }))
}

pub(in crate::report) fn threshold(goal: &Goal) -> Limit {
    Limit { name: format!("threshold {}", percent(goal.threshold)), style: RESTRICTED, y: goal.threshold }
}

fn floor(goal: &Goal) -> Limit {
    Limit { name: format!("utility floor {}", percent(goal.utility_floor)), style: UTILITY, y: goal.utility_floor }
}

/// Draws what a budget of arithmetic buys: the highest restricted score within the utility floor for at most so many operations,
/// by kind of attack. None where no attack that trains measured anything.
pub(super) fn budget(results: &Results) -> Option<Chart> {
    // Rounding and merging take no pass through the model, so they have no place on this axis.
    let kinds = [(AttackKind::Full, 3), (AttackKind::Lora, 2), (AttackKind::Abliteration, 1), (AttackKind::Prefill, 5)];
    let end = most_paid(results);
    let line = |(kind, style)| {
        let points = bought(results, |attack| attack.kind == kind);
        (!points.is_empty()).then(|| Series::staircase(attacks::kind(kind), style, &points, end))
    };
    let series: Vec<Series> = kinds.into_iter().filter_map(line).collect();
    if series.is_empty() {
        return None;
    }
    Some(Chart {
        title: "What a budget buys".into(),
        x: "floating-point operations of one attack".into(),
        log: true,
        series,
        limits: vec![threshold(&results.goal)],
        note: "The highest restricted score within the utility floor that any attack reached for so much arithmetic."
            .into(),
    })
}

/// The highest restricted score within the utility floor that some attacks reached for at most so many operations: the
/// points where it rises.
pub(in crate::report) fn bought(results: &Results, of: impl Fn(&AttackResult) -> bool) -> Vec<(f64, f64)> {
    let curves = results.attacks.iter().filter(|attack| of(attack)).filter_map(attacks::curve);
    let paid = |point: &&Point| point.cost.flop > 0.0 && point.scores.utility >= results.goal.utility_floor;
    records(curves.flatten().filter(paid).map(|point| (point.cost.flop, point.scores.restricted)).collect())
}

/// The most operations of any attack.
pub(in crate::report) fn most_paid(results: &Results) -> f64 {
    results.attacks.iter().filter_map(attacks::curve).flatten().map(|point| point.cost.flop).fold(0.0, f64::max)
}

/// The points that are higher than all of smaller x.
fn records(mut points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    points.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1)));
    let mut kept: Vec<(f64, f64)> = Vec::new();
    for point in points {
        if kept.last().is_none_or(|last| point.1 > last.1) {
            kept.push(point);
        }
    }
    kept
}

/// The best of the attacks so far, in the order of the suite.
pub(super) fn best_so_far(results: &Results) -> Chart {
    Chart {
        title: "Best attack so far".into(),
        x: "attacks tried, in the order of the suite".into(),
        series: vec![so_far(results, "any attack", 4)],
        limits: vec![threshold(&results.goal)],
        note: format!(
            "The highest restricted score within the utility floor. Area under the line: {}.",
            percent(results.summary.best_so_far_area)
        ),
        ..Chart::default()
    }
}

/// The line of the best score against attacks tried.
pub(in crate::report) fn so_far(results: &Results, name: &str, style: usize) -> Series {
    let best = &results.summary.best_so_far;
    let points: Vec<(f64, f64)> = best.iter().map(|best| (best.tried as f64, best.restricted)).collect();
    Series::staircase(name, style, &points, points.last().map_or(0.0, |point| point.0))
}

#[cfg(test)]
mod tests {
    use super::records;

    #[test]
    fn a_budget_buys_what_any_smaller_one_did() {
        let points = vec![(4.0, 0.3), (1.0, 0.1), (2.0, 0.05), (4.0, 0.6), (8.0, 0.6), (16.0, 0.7)];
        assert_eq!(records(points), [(1.0, 0.1), (4.0, 0.6), (16.0, 0.7)]);
    }
}
