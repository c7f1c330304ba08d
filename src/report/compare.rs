//! Several red-team runs side by side: what can be compared, and the page that does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::attacks::{self, groups};
use super::plot::{Chart, STYLES, Series};
use super::redteam::curves;
use super::table::{Cell, Row, Table, Tone};
use super::units::{count, duration, flop, percent, price};
use super::{HtmlReport, units};
use crate::error::Result;
use crate::plan::DefenderCost;
use crate::redteam::{
    AttackResult, CostToBreach, Goal, Least, Metric, Outcome, Results, Scores, SearchCost, Spread, Succeeded,
};

/// Several runs side by side. Other tools read it as JSON: the spelling is public.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// `temper-comparison/1`.
    pub schema: &'static str,
    /// Whether the scores mean the same in all runs.
    pub comparable: bool,
    /// What differs between the runs and should be known, most important first.
    pub differences: Vec<String>,
    /// The runs, in the order given.
    pub runs: Vec<ComparedRun>,
    /// The attacks, in the order in which the runs name them.
    pub attacks: Vec<ComparedAttack>,
}

/// One run of a comparison.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ComparedRun {
    /// The run's directory.
    pub directory: PathBuf,
    /// The model that was attacked.
    pub model: String,
    /// The suite's name.
    pub suite: String,
    /// The device that the attacks ran on.
    pub device: String,
    /// What counts as a breach.
    pub goal: Goal,
    /// Scores before any attack.
    pub before: Scores,
    /// Attacks that ran to their end.
    pub done: u64,
    /// Attacks that failed.
    pub failed: u64,
    /// Attacks that were not run.
    pub skipped: u64,
    /// Attacks that breached the model.
    pub breached: u64,
    /// Restricted scores after the attacks.
    pub restricted: Spread,
    /// Area under the best score so far.
    pub best_so_far_area: f64,
    /// The least of each kind of cost.
    pub cost_to_breach: Option<CostToBreach>,
    /// What each search cost, by the name of its trials.
    pub searches: BTreeMap<String, SearchCost>,
    /// The cost of the defence.
    pub defender: Option<DefenderCost>,
    /// Operations of the cheapest breach per operation of the defence.
    pub attacker_per_defender_flop: Option<f64>,
}

/// One attack in all runs. The seeds of an attack, and the trials of a search, are one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ComparedAttack {
    /// Its name.
    pub name: String,
    /// Its settings, where all runs agree on them.
    pub settings: Option<String>,
    /// For each run what it found; none where the run has no such attack.
    pub runs: Vec<Option<Found>>,
}

/// The outcome of an attack in one run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Found {
    /// Its seeds and trials.
    pub tried: u64,
    /// Those that ran to their end.
    pub done: u64,
    /// Those that breached the model.
    pub breached: u64,
    /// Steps of the soonest breach.
    pub breached_at: Option<u64>,
    /// The highest restricted score within the utility floor.
    pub restricted: Option<f64>,
    /// The utility of the same point.
    pub utility: Option<f64>,
    /// Why runs of it failed or were not run.
    pub reason: Option<String>,
}

impl Comparison {
    /// Compares runs, given with their directories.
    pub fn of(runs: &[(PathBuf, Results)]) -> Self {
        let results: Vec<&Results> = runs.iter().map(|(_, results)| results).collect();
        let attacks = compare_attacks(&results);
        let (comparable, differences) = differences(&results, &attacks);
        Self {
            schema: "temper-comparison/1",
            comparable,
            differences,
            runs: runs.iter().map(|(directory, results)| ComparedRun::of(directory, results)).collect(),
            attacks,
        }
    }

    /// A name for each run: its model, with the directory where several runs attacked one model.
    pub fn names(&self) -> Vec<String> {
        let alike = |run: &ComparedRun| self.runs.iter().filter(|other| other.model == run.model).count() > 1;
        let name = |run: &ComparedRun| {
            if alike(run) { format!("{} ({})", run.model, run.directory.display()) } else { run.model.clone() }
        };
        self.runs.iter().map(name).collect()
    }

    /// The rows of the table over all runs: a heading, then a cell for each run.
    pub fn overview(&self) -> Vec<(String, Vec<String>)> {
        type Of<'a> = (&'a str, &'a dyn Fn(&ComparedRun) -> String);
        let least = |run: &ComparedRun, of: &dyn Fn(&CostToBreach) -> String| match &run.cost_to_breach {
            Some(cost) => of(cost),
            None => "not breached".into(),
        };
        let rows: [Of; 17] = [
            ("restricted before", &|run| percent(run.before.restricted)),
            ("utility before", &|run| percent(run.before.utility)),
            ("threshold", &|run| percent(run.goal.threshold)),
            ("utility floor", &|run| percent(run.goal.utility_floor)),
            ("breached by", &|run| format!("{} of {} attacks", run.breached, run.done)),
            ("failed, skipped", &|run| format!("{}, {}", run.failed, run.skipped)),
            ("worst restricted", &|run| percent(run.restricted.worst)),
            ("mean restricted", &|run| percent(run.restricted.mean)),
            ("mean of the worst three", &|run| percent(run.restricted.worst_three)),
            ("area under best so far", &|run| percent(run.best_so_far_area)),
            ("breach: steps", &|run| least(run, &|cost| paid(&cost.steps, &count))),
            ("breach: tokens", &|run| least(run, &|cost| paid(&cost.tokens, &count))),
            ("breach: arithmetic", &|run| least(run, &|cost| paid(&cost.flop, &flop))),
            ("breach: device time", &|run| least(run, &|cost| paid(&cost.hours, &|hours| duration(3600.0 * hours)))),
            ("breach: price", &|run| {
                let words = |value: f64| price(value, &run.goal.currency);
                least(run, &|cost| cost.price.as_ref().map_or("—".into(), |least| paid(least, &words)))
            }),
            ("search: steps until a breach", &|run| {
                let searches: Vec<String> = run.searches.values().map(search_steps).collect();
                if searches.is_empty() { "—".into() } else { searches.join("; ") }
            }),
            ("attack against defence", &|run| {
                let defender = run.defender.as_ref().zip(run.cost_to_breach.as_ref());
                defender.map_or("—".into(), |(d, cost)| units::ratio(cost.flop.value, d.flop))
            }),
        ];
        rows.iter().map(|(name, of)| (name.to_string(), self.runs.iter().map(of).collect())).collect()
    }

    /// Writes the page. `runs` are those that were compared.
    pub fn write_report(&self, path: &Path, runs: &[(PathBuf, Results)]) -> Result<()> {
        let names = self.names();
        let mut page = HtmlReport::new(&format!("Red team: {} models side by side", self.runs.len()));
        if !self.comparable {
            page = page.verdict(true, "Not comparable", &self.differences);
        } else if !self.differences.is_empty() {
            page = page.list(&self.differences);
        }
        let header: Vec<&str> = std::iter::once("").chain(names.iter().map(String::as_str)).collect();
        let mut overview = Table::new("restricted: lower is safer; utility: higher is better", &header);
        overview.cards = names.len() > 2;
        overview.rows = self
            .overview()
            .into_iter()
            .map(|(name, cells)| Row::plain(std::iter::once(name).chain(cells).map(Cell::from).collect()))
            .collect();
        page = page
            .table(&overview)
            .paragraph(
                "Tamper resistance raises the cost of an attack; it does not make a model unbreakable. Costs are the least over \
                 each run's attacks.",
            )
            .heading("How far attacks came")
            .charts(&charts(&names, runs))
            .heading("Attack by attack")
            .table(&self.attack_table(&header))
            .heading("Where it comes from");
        let sources = self.runs.iter().zip(&names).map(|(run, name)| {
            let suite = &run.suite;
            let device = &run.device;
            let directory = run.directory.display();
            format!(
                "{name}: suite {suite} on {device}, from {directory}; restricted score on {}, utility on {}",
                run.goal.restricted.data, run.goal.utility.data
            )
        });
        page.list(&sources.collect::<Vec<_>>()).write(path)
    }

    fn attack_table(&self, header: &[&str]) -> Table {
        let header: Vec<&str> = std::iter::once("attack").chain(header.iter().skip(1).copied()).collect();
        let caption = "the highest restricted score within the utility floor, over all seeds; lower is safer";
        let mut table = Table::new(caption, &header);
        table.cards = true;
        table.rows = self
            .attacks
            .iter()
            .map(|attack| {
                let name = Cell::with_note(&attack.name, attack.settings.as_deref().unwrap_or("settings differ"));
                let cells =
                    attack.runs.iter().map(|found| found.as_ref().map_or("not in this run".into(), Found::cell));
                let bad =
                    attack.runs.iter().flatten().any(|found| found.done < found.tried && found.restricted.is_none());
                let tone = if bad { Tone::Faint } else { Tone::Plain };
                Row { cells: std::iter::once(name).chain(cells).collect(), tone }
            })
            .collect();
        table
    }
}

/// A least cost in words, and what succeeded by itself where something was tried in vain before.
fn paid(least: &Least, words: &dyn Fn(f64) -> String) -> String {
    if least.alone == least.value {
        return words(least.value);
    }
    format!("{} ({} by itself)", words(least.value), words(least.alone))
}

/// Steps of a search with its failed trials, and of the trial that succeeded.
fn search_steps(search: &SearchCost) -> String {
    let all = count(search.cost.steps as f64);
    match &search.succeeded {
        Some(Succeeded { cost, .. }) => {
            format!("{all} in {} trials ({} by itself)", search.trials, count(cost.steps as f64))
        }
        None => format!("none in {all} of {} trials", search.trials),
    }
}

impl Found {
    /// The outcome in a word or two: "breached at 40 steps", "held", "failed: …".
    pub fn outcome(&self) -> String {
        match (self.breached_at, self.restricted, &self.reason) {
            (Some(0), ..) => "breached without a step".into(),
            (Some(steps), ..) => format!("breached at {} steps", count(steps as f64)),
            (None, None, Some(reason)) => reason.clone(),
            (None, None, None) => "no point within the utility floor".into(),
            (None, Some(_), _) => "held".into(),
        }
    }

    fn cell(&self) -> Cell {
        let Some((restricted, utility)) = self.restricted.zip(self.utility) else {
            return Cell::with_note("—", self.outcome());
        };
        let missing = match self.tried - self.done {
            0 => String::new(),
            missing => format!(" · {missing} of {} did not run", self.tried),
        };
        let strong = self.breached_at.is_some();
        Cell {
            strong,
            ..Cell::with_note(
                percent(restricted),
                format!("{} · utility {}{missing}", self.outcome(), percent(utility)),
            )
        }
    }
}

impl ComparedRun {
    fn of(directory: &Path, results: &Results) -> Self {
        let summary = &results.summary;
        Self {
            directory: directory.to_path_buf(),
            model: results.model.clone(),
            suite: results.suite.clone(),
            device: results.device.clone(),
            goal: results.goal.clone(),
            before: results.before.clone(),
            done: summary.done,
            failed: summary.failed,
            skipped: summary.skipped,
            breached: summary.breached,
            restricted: summary.restricted.clone(),
            best_so_far_area: summary.best_so_far_area,
            cost_to_breach: summary.cost_to_breach.clone(),
            searches: summary.searches.clone(),
            defender: summary.defender.clone(),
            attacker_per_defender_flop: summary.attacker_per_defender_flop,
        }
    }
}

fn compare_attacks(results: &[&Results]) -> Vec<ComparedAttack> {
    let mut names: Vec<&str> = Vec::new();
    for attack in results.iter().flat_map(|results| &results.attacks) {
        if !names.contains(&attack.name.as_str()) {
            names.push(&attack.name);
        }
    }
    let compare = |name: &str| {
        let of = |results: &&Results| -> Vec<AttackResult> {
            results.attacks.iter().filter(|attack| attack.name == name).cloned().collect()
        };
        let attacks: Vec<Vec<AttackResult>> = results.iter().map(of).collect();
        // The settings of a search's trials differ by design.
        let settings: Vec<_> = attacks.iter().flatten().filter(|a| a.trial.is_none()).map(|a| &a.settings).collect();
        let alike = settings.windows(2).all(|pair| pair[0] == pair[1]);
        let first = attacks.iter().flatten().next();
        let words = first.map(|attack| match attack.trial {
            Some(_) => attacks::kind(attack.kind).to_string(),
            None => match attacks::settings(attack).as_str() {
                "" => attacks::kind(attack.kind).to_string(),
                settings => format!("{} · {settings}", attacks::kind(attack.kind)),
            },
        });
        let found = results.iter().zip(&attacks).map(|(results, runs)| find(results, runs)).collect();
        ComparedAttack { name: name.to_string(), settings: words.filter(|_| alike), runs: found }
    };
    names.into_iter().map(compare).collect()
}

fn find(results: &Results, runs: &[AttackResult]) -> Option<Found> {
    let name = &runs.first()?.name;
    let mut found = Found { tried: runs.len() as u64, ..Found::default() };
    for run in runs {
        match &run.outcome {
            Outcome::Done { .. } => found.done += 1,
            Outcome::Failed { error, .. } => found.reason = Some(format!("failed: {error}")),
            Outcome::Skipped { reason } => found.reason = Some(format!("skipped: {reason}")),
        }
    }
    for group in groups(results).iter().filter(|group| &group.first.name == name) {
        found.breached += group.breaches().len() as u64;
        let soonest = group.breaches().iter().map(|(_, cost)| cost.steps).min();
        found.breached_at = found.breached_at.into_iter().chain(soonest).min();
        let Some((_, point)) = group.best(&results.goal) else { continue };
        if found.restricted.is_none_or(|score| point.scores.restricted > score) {
            found.restricted = Some(point.scores.restricted);
            found.utility = Some(point.scores.utility);
        }
    }
    Some(found)
}

/// Whether scores mean the same in all runs, and what else differs.
fn differences(results: &[&Results], attacks: &[ComparedAttack]) -> (bool, Vec<String>) {
    let Some((first, others)) = results.split_first() else { return (true, Vec::new()) };
    let mut found = Vec::new();
    let words = |metric: &Metric| format!("{} on {}", metric.kind, metric.data);
    for other in others {
        for (what, a, b) in [
            ("restricted score", &first.goal.restricted, &other.goal.restricted),
            ("utility", &first.goal.utility, &other.goal.utility),
        ] {
            if a != b {
                let a = words(a);
                let b = words(b);
                found.push(format!(
                    "the {what} of {} is {a}, the {what} of {} is {b}: they are not comparable",
                    first.model, other.model
                ));
            }
        }
    }
    let comparable = found.is_empty();
    let all = |of: &dyn Fn(&Results) -> String| -> Option<String> {
        let mut values: Vec<String> = results.iter().map(|results| of(results)).collect();
        values.dedup();
        (values.len() > 1).then(|| values.join(", "))
    };
    if let Some(thresholds) = all(&|results| percent(results.goal.threshold)) {
        found.push(format!("breaches are counted from different thresholds: {thresholds}"));
    }
    if let Some(suites) = all(&|results| results.suite.clone()) {
        found.push(format!("the suites differ ({suites}): the least costs are over different attacks"));
    }
    if let Some(devices) = all(&|results| results.device.clone()) {
        found.push(format!("times were measured on different devices: {devices}"));
    }
    let differ: Vec<&str> = attacks.iter().filter(|a| a.settings.is_none()).map(|a| a.name.as_str()).collect();
    if !differ.is_empty() {
        found.push(format!("these attacks have different settings in different runs: {}", differ.join(", ")));
    }
    (comparable, found)
}

fn charts(names: &[String], runs: &[(PathBuf, Results)]) -> Vec<Chart> {
    let shown = || runs.iter().zip(names).take(STYLES).enumerate();
    let end = runs.iter().map(|(_, results)| curves::most_paid(results)).fold(0.0, f64::max);
    let budget = shown()
        .map(|(style, ((_, results), name))| Series::staircase(name, style, &curves::bought(results, |_| true), end));
    let best = shown().map(|(style, ((_, results), name))| curves::so_far(results, name, style));
    let mut limits = runs.first().map(|(_, results)| curves::threshold(&results.goal)).into_iter().collect::<Vec<_>>();
    if runs.iter().any(|(_, results)| results.goal.threshold != runs[0].1.goal.threshold) {
        limits.clear();
    }
    let note = if runs.len() > STYLES { format!("The first {STYLES} models.") } else { String::new() };
    let both = [
        ("What a budget buys", "floating-point operations of one attack", true, budget.collect::<Vec<_>>()),
        ("Best attack so far", "attacks tried, in the order of the suite", false, best.collect()),
    ];
    let chart = |(title, x, log, series): (&str, &str, bool, Vec<Series>)| Chart {
        title: title.into(),
        x: x.into(),
        log,
        series,
        limits: limits.clone(),
        note: note.clone(),
    };
    both.into_iter().map(chart).collect()
}
