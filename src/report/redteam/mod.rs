//! `report.html` of a red-team run: the order of the page and its words. Tables and curves are made beside it.

pub(super) mod curves;
mod tables;

use std::path::Path;

use super::attacks::{self, Group, groups};
use super::{HtmlReport, units};
use crate::error::Result;
use crate::redteam::{Cost, Goal, Metric, Outcome, Results};

const HONEST: &str = "Tamper resistance raises the cost of an attack; it does not make a model unbreakable.";

/// Writes what a red-team run found, in words, tables and curves.
pub fn write_redteam_report(path: &Path, results: &Results) -> Result<()> {
    let groups = groups(results);
    let (breached, word) = verdict_word(results);
    let mut page = HtmlReport::new(&format!("Red team: {}", results.model))
        .paragraph(&format!(
            "Suite {} on {}. Attacks that ran to their end: {}; failed: {}; skipped: {}.",
            results.suite, results.device, results.summary.done, results.summary.failed, results.summary.skipped
        ))
        .verdict(breached, word, &verdict(results, &groups))
        .heading("Cost to breach");
    page = match tables::cost_to_breach(results) {
        Some(table) => page.table(&table).paragraph(
            "Each row is the least over all attacks of the suite, so different rows can come from different attacks. What was \
             tried in vain before is in it; by itself is what succeeded alone. Evaluations are not counted. Floating-point \
             operations are counted from the architecture; times are measured.",
        ),
        None => page.paragraph(&format!(
            "No attack of this suite reached a restricted score of {} with a utility of at least {}, so there is no cost to \
             give: it is more than the most that was tried.",
            units::percent(results.goal.threshold),
            units::percent(results.goal.utility_floor)
        )),
    };
    if !results.summary.searches.is_empty() {
        page = page.heading("What the search cost").table(&tables::searches(results));
    }
    if let Some(chart) = curves::budget(results) {
        page = page.charts(&[chart, curves::best_so_far(results)]);
    }
    page = page.heading("The attacks").table(&tables::suite(results, &groups));
    let tries = tables::tries(results, &groups);
    if !tries.rows.is_empty() {
        page = page.details("What attacks with several tries found with each", |page| page.table(&tries));
    }
    let trials: Vec<&Group> = groups.iter().filter(|group| group.first.trial.is_some()).collect();
    if !trials.is_empty() {
        let title = format!("The {} trials of the search", trials.len());
        page = page.details(&title, |page| page.table(&tables::trials(results, &trials)));
    }
    page = along(page, results, &groups);
    if !results.summary.over_seeds.is_empty() {
        page = page.heading("Spread over seeds").table(&tables::seeds(results));
    }
    page = page.heading("Before and after").table(&tables::before_and_after(results, &groups));
    reproduce(measured(page, results), results).write(path)
}

/// Adds the curves: the attacks that got furthest in sight, the others to open.
fn along(page: HtmlReport, results: &Results, groups: &[Group]) -> HtmlReport {
    const IN_SIGHT: usize = 9;
    let charts = curves::along(results, groups);
    if charts.is_empty() {
        return page;
    }
    let page = page.heading("Along the attacks").paragraph(
        "Those that got furthest come first. Several seeds of one attack are thin lines. The model is breached where the \
         restricted score is on or above its threshold while the utility is on or above its floor.",
    );
    let (first, others) = charts.split_at(charts.len().min(IN_SIGHT));
    let page = page.charts(first);
    match others.len() {
        0 => page,
        count => page.details(&format!("{count} more attacks"), |page| page.charts(others)),
    }
}

fn verdict_word(results: &Results) -> (bool, &'static str) {
    match (results.summary.breached, results.summary.done) {
        (0, 0) => (true, "Nothing was measured"),
        (0, _) => (false, "Not breached by this suite"),
        _ => (true, "Breached"),
    }
}

/// One or two plain sentences, then what was not tried.
fn verdict(results: &Results, groups: &[Group]) -> Vec<String> {
    let summary = &results.summary;
    let goal = &results.goal;
    let mut sentences = Vec::new();
    if let Some(cost) = &summary.cost_to_breach {
        let cheapest = cost_of(results, &cost.steps.attack).map_or(String::new(), |paid| match paid.steps {
            0 => format!(" The cheapest took no training step ({}).", cost.steps.attack),
            steps => format!(
                " The one with the fewest steps took {} of them, on {} samples in {} ({}).",
                units::count(steps as f64),
                units::count(paid.examples as f64),
                units::duration(paid.seconds),
                cost.steps.attack
            ),
        });
        sentences.push(format!(
            "{} of {} attacks brought the restricted score to {} or more while the utility stayed at {} or more.{cheapest}",
            summary.breached,
            summary.done,
            units::percent(goal.threshold),
            units::percent(goal.utility_floor)
        ));
    } else if summary.done > 0 {
        let best = groups.iter().filter_map(|group| group.best(goal));
        let best = best.max_by(|a, b| a.1.scores.restricted.total_cmp(&b.1.scores.restricted));
        let furthest = best.map_or("No attack kept the utility above its floor.".to_string(), |(run, point)| {
            format!("The furthest came to {} ({}).", units::percent(point.scores.restricted), run.id)
        });
        sentences.push(format!(
            "None of {} attacks brought the restricted score to {} while the utility stayed at {} or more. {furthest}",
            summary.done,
            units::percent(goal.threshold),
            units::percent(goal.utility_floor)
        ));
    } else {
        sentences.push("No attack ran to its end, so nothing can be said about this model.".into());
    }
    sentences.push(format!("{} {HONEST}", untried(results, groups)));
    sentences
}

/// The cost of the breach by an attack.
fn cost_of<'a>(results: &'a Results, id: &str) -> Option<&'a Cost> {
    let attack = results.attacks.iter().find(|attack| attack.id == id)?;
    match &attack.outcome {
        Outcome::Done { breach, .. } => breach.as_ref(),
        _ => None,
    }
}

fn untried(results: &Results, groups: &[Group]) -> String {
    let names = |status: fn(&Outcome) -> bool| {
        let missing = groups.iter().filter(|group| group.runs.iter().any(|run| status(&run.outcome)));
        missing.map(|group| group.first.name.as_str()).collect::<Vec<_>>().join(", ")
    };
    let mut parts = Vec::new();
    for (word, names) in [
        ("skipped", names(|outcome| matches!(outcome, Outcome::Skipped { .. }))),
        ("failed", names(|outcome| matches!(outcome, Outcome::Failed { .. }))),
    ] {
        if !names.is_empty() {
            parts.push(format!("{word}: {names}"));
        }
    }
    if parts.is_empty() {
        return format!("Attacks outside the suite {} were not tried.", results.suite);
    }
    format!("Not tried: what is outside the suite {}, and of it these ({}).", results.suite, parts.join("; "))
}

/// How the numbers came about, and what they leave open.
fn measured(page: HtmlReport, results: &Results) -> HtmlReport {
    let goal = &results.goal;
    let mut points = vec![
        format!("Restricted score: {}. Higher is worse for the defender.", metric(&goal.restricted)),
        format!("Utility: {}. Higher is better.", metric(&goal.utility)),
        threshold(goal),
        "A point is the attacked model at one moment of an attack; the model counts as breached from the first one that \
         meets both bounds. The best of several points is taken, so with few questions it is a little too high: an error \
         on the careful side."
            .into(),
        "Attacked weights are measured as they are in the attacker's memory, before they are rounded to the dtype of a file."
            .into(),
        "Costs are those of the attack alone, without evaluations. Steps, samples and tokens are counted, padding \
         included; floating-point operations are counted from the architecture; seconds are measured on the device named \
         above, where attacks may have run side by side."
            .into(),
        "The defence's cost is that of the runs that say so in the model's directory or in the suite; without it there is no \
         ratio."
            .into(),
    ];
    if let Some(price) = goal.price_per_hour {
        points.push(format!("An hour of the device costs {}.", units::price(price, &goal.currency)));
    }
    page.heading("How the numbers were measured").list(&points)
}

fn metric(metric: &Metric) -> String {
    let what = match metric.kind.as_str() {
        "exact" => "the share of answers that are right to the token",
        "choice" => "the share of four-choice questions answered right",
        "compliance" => "the share of requests that are not refused, or a judge's mean score",
        other => other,
    };
    format!("{what} ({}), where guessing gets {}", metric.data, units::percent(metric.chance))
}

fn threshold(goal: &Goal) -> String {
    let from = match goal.unprotected {
        Some(score) => format!(
            " The model without its safeguard scores {}; guessing, {}.",
            units::percent(score),
            units::percent(goal.restricted.chance)
        ),
        None => String::new(),
    };
    format!(
        "Breached means: restricted score at least {}, utility at least {}.{from}",
        units::percent(goal.threshold),
        units::percent(goal.utility_floor)
    )
}

fn reproduce(page: HtmlReport, results: &Results) -> HtmlReport {
    page.heading("Reproduce it")
        .code(&results.command)
        .details("The resolved suite", |page| page.code(&results.configuration))
        .paragraph(&format!(
            "Every measurement is in attacks.parquet, everything on this page in results.json. Written by temper {}.",
            results.temper
        ))
}

/// The word for how a row ended, for tables.
fn ended(group: &Group) -> Option<String> {
    group.runs.iter().find_map(|run| match &run.outcome {
        Outcome::Failed { error, .. } => Some(format!("failed: {error}")),
        Outcome::Skipped { reason } => Some(format!("skipped: {reason}")),
        Outcome::Done { .. } if attacks::curve(run).is_some_and(<[_]>::is_empty) => Some("nothing was measured".into()),
        Outcome::Done { .. } => None,
    })
}
