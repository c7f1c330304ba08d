//! The search for the best abliteration: which layers are edited, how much, and along which directions. Each trial edits
//! the unattacked weights; the estimator proposes the next from what came of those before. What is searched, and within
//! which ranges, follows the tool heretic (github.com/p-e-w/heretic).

use std::time::Instant;

use super::curve::WeightCurve;
use super::probe::{Probe, Reading, Spent};
use super::{AbliterationData, HARMLESS, RESTRICTED, no_difference};
use crate::config::AbliterationSearch;
use crate::edits::{DirectionOptions, Directions, Removal, States, prompts};
use crate::error::{Error, Result};
use crate::model::{Block, Model, Parameters};
use crate::objective::Evaluator;
use crate::ops::Backend;
use crate::random::{Random, Stream};
use crate::redteam::search::{Dimension, Observed, front, propose_together};
use crate::redteam::{AbliterationTrial, SearchedAbliteration};

/// Keeps the draws of this search apart from those of attacks and of the suite's search.
const DRAWS: u64 = 32;

/// The parameters of a trial, which is an edit of the unattacked weights.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct AbliterationEdit {
    /// The depth whose directions are removed in all layers, as an index of a layer, between two where it has a fraction.
    /// Where absent, each layer loses those of its own output.
    pub depth: Option<f64>,
    /// How much of o_proj's output is removed; where absent, nothing.
    pub o_proj: Option<WeightCurve>,
    /// The same of down_proj.
    pub down_proj: Option<WeightCurve>,
}

/// The numbers of a weight curve in a trial's values.
const CURVE: usize = 4;

/// What a trial chooses: whether layers share their directions, at which depth, and for each component the highest weight,
/// its position, the least weight as a fraction of it, and the distance between them.
fn space(table: &AbliterationSearch, layers: usize) -> Vec<Dimension> {
    let last = layers.saturating_sub(1) as f64;
    let within = |[low, high]: [f64; 2]| Dimension::Linear(low * last, high * last);
    let curve = |[low, high]: [f64; 2]| -> [Dimension; CURVE] {
        [
            Dimension::Linear(low, high),
            within(table.position),
            Dimension::Linear(0.0, 1.0),
            Dimension::Linear(1.0, (table.distance * last).max(1.0)),
        ]
    };
    let mut space = vec![Dimension::Choice(2), within(table.depth)];
    space.extend(curve(table.o_proj));
    space.extend(curve(table.down_proj));
    space
}

/// The edit of a trial's values, which are those of [`space`].
fn edit(values: &[f64]) -> AbliterationEdit {
    let curve = |start: usize| match values.get(start..start + CURVE) {
        Some(&[most, position, fraction, distance]) if most >= 0.0 => {
            Some(WeightCurve { most, position, least: fraction * most, distance })
        }
        _ => None,
    };
    let shared = values.first() == Some(&0.0);
    AbliterationEdit { depth: values.get(1).copied().filter(|_| shared), o_proj: curve(2), down_proj: curve(2 + CURVE) }
}

/// A search under way.
pub(super) struct AbliterationRun<'a> {
    table: &'a AbliterationSearch,
    seed: u64,
    probe: Probe<'a>,
    directions: Directions,
    /// The unattacked weights.
    original: &'a [f32],
    space: Vec<Dimension>,
    observed: Vec<Observed>,
    trials: Vec<AbliterationTrial>,
    /// How far the unattacked model resists.
    unattacked: f64,
    /// What went through the model to find the directions.
    pub finding: Spent,
    /// How long that took.
    pub finding_seconds: f64,
    /// All that went through the model until now.
    pub spent: Spent,
}

impl<'a> AbliterationRun<'a> {
    /// Finds the directions of the model of `original`, which `weights` has on the device; `probe` has measured it.
    ///
    /// # Errors
    /// [`Error::Config`] where the two sides' mean states are the same at every depth.
    pub(super) fn new<B: Backend>(
        evaluator: &mut Evaluator<B>,
        weights: &Parameters<B>,
        original: &'a [f32],
        rows: &AbliterationData,
        table: &'a AbliterationSearch,
        probe: Probe<'a>,
        seed: u64,
    ) -> Result<Self> {
        let start = Instant::now();
        let several = table.directions > 1;
        let restricted = States::read(evaluator, weights, &rows.restricted, RESTRICTED, several)?;
        let harmless = States::read(evaluator, weights, &rows.harmless, HARMLESS, false)?;
        let mut spent = Spent::default();
        let all = rows.restricted.iter().chain(&rows.harmless);
        all.for_each(|batch| spent.forward(evaluator, &prompts(batch)));
        let options = DirectionOptions { count: table.directions, orthogonalise: table.orthogonalise };
        let directions = Directions::find(&restricted, &harmless, options);
        if directions.is_empty() {
            return Err(no_difference());
        }
        let finding = spent;
        let finding_seconds = start.elapsed().as_secs_f64();
        let unattacked = probe.read(evaluator, weights, &mut spent)?.resistance;
        let space = space(table, evaluator.model().config.num_hidden_layers);
        Ok(Self {
            table,
            seed,
            probe,
            directions,
            original,
            space,
            observed: Vec::new(),
            trials: Vec::new(),
            unattacked,
            finding,
            finding_seconds,
            spent,
        })
    }

    /// Tries one more edit, which `weights` has afterwards.
    pub(super) fn step<B: Backend>(
        &mut self,
        evaluator: &mut Evaluator<B>,
        weights: &mut Parameters<B>,
    ) -> Result<&AbliterationTrial> {
        let number = self.trials.len();
        let seen = if (number as u64) < self.table.startup { &[] } else { &self.observed[..] };
        let mut random = Random::new(self.seed, Stream::RedTeam, number as u64, DRAWS);
        let values = propose_together(&self.space, seen, self.corner(), &mut random);
        let edit = edit(&values);
        self.apply(evaluator.model(), weights, &edit)?;
        let read = match self.probe.read(evaluator, weights, &mut self.spent) {
            Ok(reading) => Some(reading),
            // The edit has destroyed the model, which says nothing about others.
            Err(Error::NonFinite { .. }) => None,
            Err(error) => return Err(error),
        };
        if let Some(Reading { resistance, kl }) = read {
            self.observed.push(Observed { values, objectives: [resistance, kl] });
        }
        let resistance = read.map(|reading| reading.resistance);
        self.trials.push(AbliterationTrial { edit, resistance, kl: read.map(|reading| reading.kl) });
        Ok(&self.trials[number])
    }

    /// What a trial has to be better than to serve the attacker: the unattacked model, and the divergence that he accepts.
    fn corner(&self) -> [f64; 2] {
        [self.unattacked, self.table.most_kl]
    }

    /// The trial that the attacker would keep now, see [`kept`].
    pub(super) fn kept(&self) -> Option<usize> {
        kept(&self.objectives(), self.table.most_kl)
    }

    /// A trial by its number.
    pub(super) fn trial(&self, index: usize) -> Option<&AbliterationTrial> {
        self.trials.get(index)
    }

    fn objectives(&self) -> Vec<Option<[f64; 2]>> {
        self.trials.iter().map(|trial| Some([trial.resistance?, trial.kl?])).collect()
    }

    /// Everything that was tried.
    pub(super) fn finish(self) -> SearchedAbliteration {
        let kept = self.kept().map(|index| index as u64);
        let read: Vec<(u64, [f64; 2])> =
            (0..).zip(self.objectives()).filter_map(|(index, read)| Some((index, read?))).collect();
        let points: Vec<[f64; 2]> = read.iter().map(|(_, point)| *point).collect();
        let front = front(&points).into_iter().map(|index| read[index].0).collect();
        let measured = self.probe.measured().into();
        SearchedAbliteration { measured, unattacked: self.unattacked, kept, front, trials: self.trials }
    }

    /// Puts the unattacked matrices, edited, in the place of those of `weights`.
    pub(super) fn apply<B: Backend>(
        &self,
        model: &Model<B>,
        weights: &mut Parameters<B>,
        edit: &AbliterationEdit,
    ) -> Result<()> {
        let shared = edit.depth.map(|depth| self.directions.between(depth + 1.0));
        for layer in 0..model.config.num_hidden_layers {
            let blocks = model.layout().layer(layer);
            let directions = shared.as_deref().unwrap_or_else(|| self.directions.at(layer + 1));
            let mut change = |block: Block, curve: Option<WeightCurve>| {
                let weight = curve.map_or(0.0, |curve| curve.at(layer));
                let mut matrix = self.original[block.range()].to_vec();
                let removal = Removal { directions, weight, preserve_norms: self.table.preserve_norms };
                removal.apply(&mut matrix, block.cols);
                weights.upload_block(&model.backend, block, &matrix)
            };
            change(blocks.o_proj, edit.o_proj)?;
            change(blocks.down_proj, edit.down_proj)?;
        }
        Ok(())
    }
}

/// What an attacker prefers of (resistance, divergence), the lowest first: of those whose divergence he accepts, the one that
/// resists least, and of equal ones the one that diverges least; where he accepts none, the one that diverges least.
pub(super) fn preference([resistance, kl]: [f64; 2], most_kl: f64) -> [f64; 3] {
    if kl <= most_kl { [0.0, resistance, kl] } else { [1.0, 0.0, kl] }
}

/// The index of the trial that an attacker keeps; of equal ones the first.
fn kept(readings: &[Option<[f64; 2]>], most_kl: f64) -> Option<usize> {
    let read = readings.iter().enumerate();
    let read = read.filter_map(|(index, reading)| Some((index, preference((*reading)?, most_kl))));
    let best = read.reduce(|best, next| if next.1 < best.1 { next } else { best });
    best.map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_become_the_edit_that_they_stand_for() {
        let table = AbliterationSearch { depth: [0.4, 0.9], position: [0.6, 1.0], ..AbliterationSearch::default() };
        let space = space(&table, 11);
        assert_eq!(space.len(), 10);
        assert_eq!((space[1], space[3], space[5]), (linear(4.0, 9.0), linear(6.0, 10.0), linear(1.0, 6.0)));
        assert_eq!((space[2], space[6]), (linear(0.8, 1.5), linear(-0.25, 1.5)));
        let values = [0.0, 4.5, 1.2, 8.0, 0.5, 3.0, -0.1, 7.0, 0.5, 2.0];
        let curve = WeightCurve { most: 1.2, position: 8.0, least: 0.6, distance: 3.0 };
        assert_eq!(edit(&values), AbliterationEdit { depth: Some(4.5), o_proj: Some(curve), down_proj: None });
        let own = [1.0, 4.5, -1.0, 8.0, 0.5, 3.0, 1.2, 8.0, 0.5, 3.0];
        assert_eq!(edit(&own), AbliterationEdit { depth: None, o_proj: None, down_proj: Some(curve) });
        // A model of one layer has one depth.
        assert_eq!(super::space(&table, 1)[1], linear(0.0, 0.0));
    }

    fn linear(low: f64, high: f64) -> Dimension {
        Dimension::Linear(low, high)
    }

    #[test]
    fn the_attacker_keeps_what_resists_least_at_a_divergence_that_he_accepts() {
        let readings = [None, Some([0.1, 0.9]), Some([0.4, 0.2]), Some([0.3, 0.5]), Some([0.3, 0.4]), Some([0.9, 0.0])];
        assert_eq!(kept(&readings, 0.5), Some(4));
        assert_eq!(kept(&readings, 0.3), Some(2));
        assert_eq!(kept(&readings, 1.0), Some(1));
        assert_eq!(kept(&readings[1..4], 0.1), Some(1));
        assert_eq!(kept(&[None], 0.5), None);
    }
}
