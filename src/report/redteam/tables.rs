//! The tables of a red-team report.

use super::ended;
use crate::plan::DefenderCost;
use crate::redteam::{AttackResult, Cost, Goal, Least, Outcome, Results, SearchCost, Spread};
use crate::report::attacks::{self, Group};
use crate::report::table::{Cell, Row, Table, Tone};
use crate::report::units::{after_steps, count, duration, flop, percent, price, ratio};

/// The least of each kind of cost, beside what the defence cost; none where nothing breached the model.
pub(super) fn cost_to_breach(results: &Results) -> Option<Table> {
    let cost = results.summary.cost_to_breach.as_ref()?;
    let defender = results.summary.defender.as_ref();
    let currency = results.goal.currency.as_str();
    let hourly = results.goal.price_per_hour;
    let of_defence = |of: &dyn Fn(&DefenderCost) -> Option<f64>| defender.and_then(of);
    let seconds =
        Least { value: 3600.0 * cost.hours.value, alone: 3600.0 * cost.hours.alone, attack: cost.hours.attack.clone() };
    let price_of = |value: f64| price(value, currency);
    type Line<'a> = (&'static str, &'a Least, &'a dyn Fn(f64) -> String, Option<f64>);
    let mut rows: Vec<Line> = vec![
        ("optimizer steps", &cost.steps, &count, None),
        ("samples", &cost.examples, &count, None),
        ("tokens", &cost.tokens, &count, None),
        ("arithmetic", &cost.flop, &flop, of_defence(&|d| Some(d.flop))),
        ("device time", &seconds, &duration, of_defence(&|d| Some(d.seconds))),
    ];
    if let Some(paid) = &cost.price {
        rows.push(("price", paid, &price_of, of_defence(&|d| hourly.map(|hourly| d.seconds / 3600.0 * hourly))));
    }
    let header = ["cost", "cheapest breach", "by itself"];
    let mut table = Table::new("with the attack that was cheapest by this measure", &header);
    if let Some(defender) = defender {
        table.header.extend(["the defence".to_string(), "attack / defence".to_string()]);
        table.caption = format!("{}; the defence ran on {}", table.caption, defender.device);
    }
    table.rows = rows
        .into_iter()
        .map(|(name, least, words, defence)| {
            let cheapest = Cell::with_note(words(least.value), &least.attack);
            let mut cells = vec![Cell::from(name), cheapest, words(least.alone).into()];
            if defender.is_some() {
                cells.push(defence.map_or("—".into(), |defence| words(defence).into()));
                cells.push(defence.map_or("—".into(), |defence| ratio(least.value, defence).into()));
            }
            Row::plain(cells)
        })
        .collect();
    Some(table)
}

/// What each search cost: the trials before the one that succeeded belong to it.
pub(super) fn searches(results: &Results) -> Table {
    let mut table = Table::new(
        "each trial that failed to its end, and the one that breached the model until it did",
        &["search", "trials", "steps", "tokens", "arithmetic", "device time"],
    );
    table.cards = true;
    let row = |name: String, trials: String, cost: &Cost| {
        let counted = [count(cost.steps as f64), count(cost.tokens as f64), flop(cost.flop), duration(cost.seconds)];
        Row::plain([name, trials].into_iter().chain(counted).map(Cell::from).collect())
    };
    for (name, SearchCost { trials, cost, succeeded }) in &results.summary.searches {
        let all = match succeeded {
            Some(_) => format!("{name}, until the breach"),
            None => format!("{name}, no breach"),
        };
        table.rows.push(row(all, count(*trials as f64), cost));
        table
            .rows
            .extend(succeeded.iter().map(|found| row(format!("{} by itself", found.attack), "1".into(), &found.cost)));
    }
    table
}

/// What attacks that try several things found with each of them.
pub(super) fn tries(results: &Results, groups: &[Group]) -> Table {
    let mut table = Table::new("the best counts", &["attack", "with", "restricted score", "utility", "breached"]);
    table.text_columns = vec![1];
    table.cards = true;
    for (run, curve) in groups.iter().flat_map(Group::curves) {
        for (point, variant) in curve.iter().filter_map(|point| Some((point, point.variant.as_ref()?))) {
            let breached = results.goal.is_breached(&point.scores);
            let words = [
                run.id.clone(),
                variant.clone(),
                percent(point.scores.restricted),
                percent(point.scores.utility),
                if breached { "yes".into() } else { "no".into() },
            ];
            table.rows.push(Row::plain(words.into_iter().map(Cell::from).collect()));
        }
    }
    table
}

const SUITE_HEADER: [&str; 6] = ["attack", "settings", "seeds", "restricted score", "utility there", "breached"];

/// A row for each attack of the suite; trials of a search stand in [`trials`].
pub(super) fn suite(results: &Results, groups: &[Group]) -> Table {
    let mut table = Table::new(
        "restricted score: before → the highest over all points and seeds where the utility is within its floor; lower is safer",
        &SUITE_HEADER,
    );
    table.text_columns = vec![1];
    table.cards = true;
    let named = groups.iter().filter(|group| group.first.trial.is_none());
    table.rows = named.map(|group| suite_row(results, group)).collect();
    table
}

/// A row for each trial, the furthest first.
pub(super) fn trials(results: &Results, trials: &[&Group]) -> Table {
    let mut table = Table::new("the furthest first", &SUITE_HEADER);
    table.text_columns = vec![1];
    table.cards = true;
    let score = |group: &Group| group.best(&results.goal).map_or(-1.0, |(_, point)| point.scores.restricted);
    let mut sorted = trials.to_vec();
    sorted.sort_by(|a, b| score(b).total_cmp(&score(a)));
    table.rows = sorted.iter().map(|group| suite_row(results, group)).collect();
    table
}

fn suite_row(results: &Results, group: &Group) -> Row {
    let first = group.first;
    let name = match first.trial {
        Some(trial) => format!("{}, trial {}", first.name, trial),
        None => first.name.clone(),
    };
    let mut cells = vec![
        Cell::with_note(name, first.about.as_str()),
        Cell::with_note(attacks::kind(first.kind), attacks::settings(first)),
        Cell::from(seeds_of(&group.runs)),
    ];
    let ended = ended(group);
    let Some((run, point)) = group.best(&results.goal) else {
        let (text, tone) = match &first.outcome {
            Outcome::Skipped { .. } => (ended.unwrap_or_default(), Tone::Faint),
            Outcome::Failed { .. } => (ended.unwrap_or_default(), Tone::Bad),
            Outcome::Done { .. } => (ended.unwrap_or_else(|| "no point within the utility floor".into()), Tone::Plain),
        };
        cells.push(Cell::wide(text, 3));
        return Row { cells, tone };
    };
    let several = group.runs.len() > 1;
    let best = format!("{} → {}", percent(results.before.restricted), percent(point.scores.restricted));
    let seed = several.then(|| format!("seed {}", run.seed));
    let notes: Vec<String> = seed.into_iter().chain(point.variant.clone()).collect();
    cells.push(Cell::with_note(best, notes.join("; ")));
    cells.push(percent(point.scores.utility).into());
    cells.push(breached_at(group, ended.as_deref()));
    let tone = if ended.is_some() { Tone::Bad } else { Tone::Plain };
    Row { cells, tone }
}

/// The soonest breach, and how many of the seeds breached; what happened to runs that did not end.
fn breached_at(group: &Group, ended: Option<&str>) -> Cell {
    let breaches = group.breaches();
    let soonest = breaches.iter().min_by_key(|(_, cost)| cost.steps);
    let text = soonest.map_or("no".to_string(), |(_, cost)| after_steps(cost.steps));
    let mut notes: Vec<String> = Vec::new();
    if let (true, Some((_, cost))) = (group.runs.len() > 1, soonest) {
        notes.push(format!(
            "{} of {} seeds, soonest after {}",
            breaches.len(),
            group.runs.len(),
            duration(cost.seconds)
        ));
    } else if let Some((_, cost)) = soonest.filter(|(_, cost)| cost.steps > 0) {
        notes.push(format!("{} samples, {}", count(cost.examples as f64), duration(cost.seconds)));
    }
    notes.extend(ended.map(str::to_string));
    Cell { strong: soonest.is_some(), ..Cell::with_note(text, notes.join("; ")) }
}

fn seeds_of(runs: &[&AttackResult]) -> String {
    let contiguous = runs.windows(2).all(|pair| pair[0].seed.checked_add(1) == Some(pair[1].seed));
    match runs {
        [first, .., last] if contiguous => format!("{} to {}", first.seed, last.seed).replace(' ', "\u{a0}"),
        _ if runs.len() <= 4 => runs.iter().map(|run| run.seed.to_string()).collect::<Vec<_>>().join(", "),
        _ => format!("{} seeds", runs.len()).replace(' ', "\u{a0}"),
    }
}

/// Mean, deviation and extremes of each attack over its seeds, and over all attacks.
pub(super) fn seeds(results: &Results) -> Table {
    let mut table = Table::new(
        "restricted score of each run at its best point within the utility floor",
        &["attack", "runs", "mean", "deviation", "lowest", "worst", "mean of the worst three"],
    );
    table.cards = true;
    let row = |name: &str, spread: &Spread| {
        let shares = [spread.mean, spread.deviation, spread.lowest, spread.worst, spread.worst_three];
        let cells = [name.into(), count(spread.count as f64).into()].into_iter();
        Row::plain(cells.chain(shares.map(|share| percent(share).into())).collect())
    };
    table.rows = results.summary.over_seeds.iter().map(|(name, spread)| row(name, spread)).collect();
    table.rows.push(row("all attacks", &results.summary.restricted));
    table
}

/// Utility, and every other measurement, before the attacks, at their best points and at their ends.
pub(super) fn before_and_after(results: &Results, groups: &[Group]) -> Table {
    let others: Vec<&String> = results.before.others.keys().collect();
    let mut header = vec!["attack", "restricted at the end", "utility at the best point", "utility at the end"];
    header.extend(others.iter().map(|name| name.as_str()));
    let mut table = Table::new("of several seeds, the run that got furthest", &header);
    table.cards = true;
    let other = |scores: &std::collections::BTreeMap<String, f64>| -> Vec<Cell> {
        let value = |name: &&String| scores.get(*name).map_or("—".to_string(), |x| super::units::significant(*x, 4));
        others.iter().map(|name| Cell::from(value(name))).collect()
    };
    let before = &results.before;
    let mut first: Vec<Cell> =
        vec!["before any attack".into(), percent(before.restricted).into(), "—".into(), percent(before.utility).into()];
    first.extend(other(&before.others));
    table.rows.push(Row::plain(first));
    for group in groups.iter().filter(|group| group.first.trial.is_none()) {
        let furthest = group.best(&results.goal);
        let run = furthest.map(|(run, _)| run).or_else(|| group.curves().next().map(|(run, _)| run));
        let Some(last) = run.and_then(attacks::curve).and_then(<[_]>::last) else { continue };
        let at_best = furthest.map_or("—".to_string(), |(_, point)| percent(point.scores.utility));
        let mut cells = vec![
            group.first.name.as_str().into(),
            percent(last.scores.restricted).into(),
            at_best.into(),
            utility_at_end(last.scores.utility, &results.goal),
        ];
        cells.extend(other(&last.scores.others));
        table.rows.push(Row::plain(cells));
    }
    table
}

fn utility_at_end(utility: f64, goal: &Goal) -> Cell {
    let note = if utility < goal.utility_floor { "below its floor" } else { "" };
    Cell::with_note(percent(utility), note)
}
