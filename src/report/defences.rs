//! Defences side by side: what several red-team runs on models of several defences and seeds amount to, as JSON, as a table,
//! and as pages.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::plot::{Chart, Limit, Series};
use super::table::{Cell, Row, Table};
use super::units::{duration, flop, percent, ratio};
use super::{ComparedRun, Comparison, HtmlReport};
use crate::error::Result;
use crate::files::write_json;
use crate::redteam::Results;

/// A model of one defence and the runs of all suites on it, in the order of the suites: directory and results, or why there
/// are none.
#[derive(Clone, Debug)]
pub struct Defended {
    /// The defence.
    pub defence: String,
    /// The seed of its hardening, where the comparison hardened it.
    pub seed: Option<u64>,
    /// The runs.
    pub runs: Vec<std::result::Result<(PathBuf, Results), String>>,
}

/// Several defences under the same suites. Other tools read it as JSON: the spelling is public.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DefenceComparison {
    /// `temper-defences/1`.
    pub schema: &'static str,
    /// Version of temper.
    pub temper: &'static str,
    /// The suites.
    pub suites: Vec<ComparedSuite>,
}

/// One suite on all defences.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ComparedSuite {
    /// Its name in the comparison.
    pub name: String,
    /// Whether the scores mean the same in all runs.
    pub comparable: bool,
    /// What differs between the runs and should be known.
    pub differences: Vec<String>,
    /// The defences, in the order of the file.
    pub defences: Vec<ComparedDefence>,
    /// The runs with their results, for the page of the suite.
    #[serde(skip)]
    runs: Vec<(PathBuf, Results)>,
}

/// One defence under one suite.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ComparedDefence {
    /// Its name.
    pub name: String,
    /// Its models.
    pub models: Vec<DefendedModel>,
    /// Over its models that were attacked; none where there is none.
    pub over_models: Option<OverModels>,
}

/// One model of a defence under one suite.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DefendedModel {
    /// The seed of its hardening, where the comparison hardened it.
    pub seed: Option<u64>,
    /// Why there is no result.
    pub failed: Option<String>,
    /// What the suite found.
    pub run: Option<ComparedRun>,
}

/// What the models of a defence have in common.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OverModels {
    /// Attacks that breached a model, over all models.
    pub breached: u64,
    /// Attacks that ran to their end, over all models.
    pub done: u64,
    /// Attacks that failed or were not run, over all models.
    pub not_run: u64,
    /// The restricted score before any attack.
    pub restricted_before: Range,
    /// The utility before any attack.
    pub utility_before: Range,
    /// The highest restricted score after an attack, of each model.
    pub worst: Range,
    /// The mean restricted score after the attacks, of each model.
    pub mean: Range,
    /// Operations of the defence, where they are known.
    pub defence_flop: Option<Range>,
    /// Seconds of the defence, where they are known.
    pub defence_seconds: Option<Range>,
    /// Operations of the cheapest breach of each model that was breached, with what was tried in vain before.
    pub breach_flop: Option<Range>,
}

/// A number over several models.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Range {
    /// Its mean.
    pub mean: f64,
    /// The lowest.
    pub lowest: f64,
    /// The highest.
    pub highest: f64,
}

impl Range {
    fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let values: Vec<f64> = values.into_iter().collect();
        let lowest = values.iter().copied().reduce(f64::min)?;
        let highest = values.iter().copied().reduce(f64::max)?;
        Some(Self { mean: values.iter().sum::<f64>() / values.len() as f64, lowest, highest })
    }

    /// The mean, and below it the lowest and the highest where they differ in words.
    fn cell(&self, words: impl Fn(f64) -> String) -> (String, String) {
        let lowest = words(self.lowest);
        let highest = words(self.highest);
        let note = if lowest == highest { String::new() } else { format!("{lowest} to {highest}") };
        (words(self.mean), note)
    }
}

impl DefenceComparison {
    /// What `defended` amounts to under the suites of these names.
    pub fn of(suites: &[String], defended: &[Defended]) -> Self {
        let suites = suites.iter().enumerate().map(|(index, name)| ComparedSuite::of(name, index, defended));
        Self { schema: "temper-defences/1", temper: env!("CARGO_PKG_VERSION"), suites: suites.collect() }
    }

    /// Writes `comparison.json`, `comparison.html`, and a page for each suite with every attack, `comparison-SUITE.html`.
    pub fn write(&self, out: &Path) -> Result<()> {
        write_json(&out.join("comparison.json"), self)?;
        let mut page = HtmlReport::new("Defences side by side").paragraph(
            "Every defence hardened the same model and met the same attacks. Restricted: lower is safer; utility: higher is \
             better. Where a defence was run with several seeds, the mean stands above the lowest and the highest. Tamper \
             resistance raises the cost of an attack; it does not make a model unbreakable.",
        );
        for suite in &self.suites {
            page = suite.blocks(page);
            Comparison::of(&suite.runs).write_report(&out.join(suite.page()), &suite.runs)?;
        }
        page.write(&out.join("comparison.html"))
    }
}

impl ComparedSuite {
    fn of(name: &str, index: usize, defended: &[Defended]) -> Self {
        let runs: Vec<(PathBuf, Results)> =
            defended.iter().filter_map(|model| model.runs.get(index)?.as_ref().ok().cloned()).collect();
        let comparison = Comparison::of(&runs);
        let mut compared = comparison.runs.into_iter();
        let mut defences: Vec<ComparedDefence> = Vec::new();
        for model in defended {
            let Some(outcome) = model.runs.get(index) else { continue };
            // The compared runs are those that have results, in this order.
            let run = if outcome.is_ok() { compared.next() } else { None };
            let failed = outcome.as_ref().err().cloned();
            let model_of = DefendedModel { seed: model.seed, failed, run };
            match defences.last_mut().filter(|defence| defence.name == model.defence) {
                Some(defence) => defence.models.push(model_of),
                None => {
                    let name = model.defence.clone();
                    defences.push(ComparedDefence { name, models: vec![model_of], over_models: None });
                }
            }
        }
        for defence in &mut defences {
            defence.over_models = OverModels::of(&defence.models);
        }
        let differences = comparison.differences;
        Self { name: name.into(), comparable: comparison.comparable, differences, defences, runs }
    }

    /// The file name of the page with every attack.
    fn page(&self) -> String {
        format!("comparison-{}.html", self.name)
    }

    /// The headings of the table.
    pub fn header() -> [&'static str; 9] {
        [
            "defence",
            "it cost",
            "utility",
            "restricted before",
            "breached by",
            "worst restricted",
            "mean restricted",
            "cheapest breach",
            "breach against defence",
        ]
    }

    /// The rows of the table: for each defence its cells, each a text and a smaller text, which may be empty.
    pub fn rows(&self) -> Vec<Vec<(String, String)>> {
        self.defences.iter().map(ComparedDefence::cells).collect()
    }

    fn blocks(&self, page: HtmlReport) -> HtmlReport {
        let mut titled = page.heading(&format!("Suite {}", self.name));
        if !self.comparable {
            titled = titled.verdict(true, "Not comparable", &self.differences);
        } else if !self.differences.is_empty() {
            titled = titled.list(&self.differences);
        }
        let mut table = Table::new("one row a defence", &Self::header());
        table.cards = true;
        let row = |cells: Vec<(String, String)>| {
            Row::plain(cells.into_iter().map(|(text, note)| Cell::with_note(text, note)).collect())
        };
        table.rows = self.rows().into_iter().map(row).collect();
        titled.table(&table).charts(&[self.chart()]).paragraph(&format!("Attack by attack: {}", self.page()))
    }

    /// Robustness against what the defence paid, a line a defence through its models.
    fn chart(&self) -> Chart {
        let mut series = Vec::new();
        let mut limits = Vec::new();
        for (style, defence) in self.defences.iter().enumerate() {
            let runs = || defence.models.iter().filter_map(|model| model.run.as_ref());
            let paid = runs().filter_map(|run| Some((run.defender.as_ref()?.flop, run.restricted.worst)));
            let mut points: Vec<(f64, f64)> = paid.filter(|(flop, _)| *flop > 0.0).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            if points.is_empty() {
                let worst = Range::of(runs().map(|run| run.restricted.worst));
                limits.extend(worst.map(|worst| Limit { name: defence.name.clone(), style, y: worst.mean }));
            } else {
                series.push(Series::new(&defence.name, style, points));
            }
        }
        Chart {
            title: "Worst restricted score and the arithmetic of the defence".into(),
            x: "floating-point operations of the defence".into(),
            log: true,
            series,
            limits,
            note: "A horizontal line is a model whose defence cost nothing, or nobody knows what.".into(),
        }
    }
}

impl OverModels {
    fn of(models: &[DefendedModel]) -> Option<Self> {
        let runs: Vec<&ComparedRun> = models.iter().filter_map(|model| model.run.as_ref()).collect();
        let range = |of: &dyn Fn(&ComparedRun) -> Option<f64>| Range::of(runs.iter().filter_map(|run| of(run)));
        Some(Self {
            breached: runs.iter().map(|run| run.breached).sum(),
            done: runs.iter().map(|run| run.done).sum(),
            not_run: runs.iter().map(|run| run.failed + run.skipped).sum(),
            restricted_before: range(&|run| Some(run.before.restricted))?,
            utility_before: range(&|run| Some(run.before.utility))?,
            worst: range(&|run| Some(run.restricted.worst))?,
            mean: range(&|run| Some(run.restricted.mean))?,
            defence_flop: range(&|run| run.defender.as_ref().map(|defender| defender.flop)),
            defence_seconds: range(&|run| run.defender.as_ref().map(|defender| defender.seconds)),
            breach_flop: range(&|run| run.cost_to_breach.as_ref().map(|cost| cost.flop.value)),
        })
    }
}

impl ComparedDefence {
    fn cells(&self) -> Vec<(String, String)> {
        let failed: Vec<&str> = self.models.iter().filter_map(|model| model.failed.as_deref()).collect();
        let name = (self.name.clone(), self.seeds());
        let Some(over) = &self.over_models else {
            let nothing = std::iter::repeat_n(("—".to_string(), String::new()), ComparedSuite::header().len() - 2);
            return [name, ("failed".into(), failed.join("; "))].into_iter().chain(nothing).collect();
        };
        let cost = match (&over.defence_flop, &over.defence_seconds) {
            (Some(operations), Some(seconds)) => (flop(operations.mean), duration(seconds.mean)),
            _ => ("nothing, or unknown".into(), String::new()),
        };
        let mut missing = Vec::new();
        if over.not_run > 0 {
            missing.push(format!("{} not run", over.not_run));
        }
        missing.extend(failed.iter().map(|reason| format!("failed: {reason}")));
        let share = match (&over.breach_flop, &over.defence_flop) {
            (Some(breach), Some(defence)) if defence.mean > 0.0 => ratio(breach.lowest, defence.mean),
            _ => "—".into(),
        };
        vec![
            name,
            cost,
            over.utility_before.cell(percent),
            over.restricted_before.cell(percent),
            (format!("{} of {}", over.breached, over.done), missing.join("; ")),
            over.worst.cell(percent),
            over.mean.cell(percent),
            over.breach_flop.map_or(("not breached".into(), String::new()), |range| {
                let lowest = flop(range.lowest);
                (lowest, self.breached_models())
            }),
            (share, String::new()),
        ]
    }

    fn seeds(&self) -> String {
        let seeds: Vec<String> =
            self.models.iter().filter_map(|model| model.seed).map(|seed| seed.to_string()).collect();
        match seeds.len() {
            0 => String::new(),
            1 => format!("seed {}", seeds[0]),
            _ => format!("seeds {}", seeds.join(", ")),
        }
    }

    /// How many of several models were breached.
    fn breached_models(&self) -> String {
        let runs: Vec<&ComparedRun> = self.models.iter().filter_map(|model| model.run.as_ref()).collect();
        let breached = runs.iter().filter(|run| run.breached > 0).count();
        if runs.len() > 1 { format!("{breached} of {} models", runs.len()) } else { String::new() }
    }
}
