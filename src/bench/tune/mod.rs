//! The tuner: measures the ways that a device has to compute what a model's steps ask for, and keeps the best in a file.
//!
//! The products are those that one step of each kind asks the library for, on a model of one layer, since all layers have
//! the same; so none is forgotten, and none is listed here a second time. Work that costs most comes first, and the file
//! is written after each shape: a tuner that is killed has kept what it knew, and another goes on from there.
//!
//! On a GPU the cost is the device time, with operands that no cache holds, as the bench measures it. The ways take turns for
//! several rounds, so that a clock that slows down meanwhile favours none of them. The simulator has no clock: there the cost
//! is what the counters say a device needs at least, which is the same on every run.

mod products;
mod rows;

use std::path::Path;

use super::data::Data;
use super::steps::Stage;
use super::timer::{Effort, time};
use super::{BatchShape, Shapes, ShapesName, Trains};
use crate::backend::cuda::{Cuda, PeakRates, ProductShape, RowKernel, RowShape};
use crate::config::{DataConfig, ParameterChoice, RunConfig};
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::ops::Backend;
use crate::tuning::{Key, Tuning};

/// A way that is not the device's own first choice must be cheaper by this share of the cost in every round: less is noise.
const LEAST_GAIN: f64 = 0.01;

/// A model, and the steps that it takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// The model.
    pub model: ModelConfig,
    /// What each kind of step trains, and on which batch.
    pub steps: Vec<(Trains, BatchShape)>,
    /// r of adapters.
    pub rank: usize,
}

impl Workload {
    /// The steps of [`super::steps()`] on the sizes called `name`.
    pub fn named(name: ShapesName) -> Self {
        let shapes = Shapes::named(name);
        let steps = vec![
            (Trains::Weights, shapes.attack),
            (Trains::MetaGradient, shapes.tamper_resistance),
            (Trains::Adapter, shapes.batch()),
            (Trains::Adapter, shapes.attack),
        ];
        Self { model: shapes.model, steps, rank: shapes.rank }
    }

    /// The steps of TAR and of its LoRA attacks on a model, on the batches of `preset = "bio"`.
    pub fn of_model(model: ModelConfig) -> Self {
        let Self { steps, rank, .. } = Self::named(ShapesName::Llama3_8b);
        Self { model, steps: steps.into_iter().filter(|(_, batch)| batch.length == 256).collect(), rank }
    }

    /// The steps of a hardening run, every sequence at its longest.
    pub fn of_run(run: &RunConfig, model: ModelConfig) -> Self {
        let batch = |name: &str, own: Option<usize>| {
            let shape = |table: &DataConfig| (own.unwrap_or(table.batch), table.max_length);
            run.data.get(name).map(shape).map(|(sequences, length)| BatchShape { sequences, length })
        };
        let defence = run.composition();
        let mut steps = Vec::new();
        for adversary in &defence.adversary {
            let trains = if adversary.params == ParameterChoice::Lora { Trains::Adapter } else { Trains::Weights };
            let streams = adversary.data.streams().into_iter();
            steps.extend(streams.filter_map(|name| Some((trains, batch(name, adversary.batch)?))));
        }
        let outer = defence.gradients();
        steps.extend(outer.iter().filter_map(|taken| Some((Trains::MetaGradient, batch(taken.data, None)?))));
        let mut different: Vec<(Trains, BatchShape)> = Vec::new();
        for step in steps {
            if !different.contains(&step) {
                different.push(step);
            }
        }
        let rank = defence.adversary.iter().flat_map(|adversary| &adversary.rank.0).copied().max().unwrap_or(1);
        Self { model, steps: different, rank }
    }
}

/// A shape that was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Tuned {
    /// What it is.
    pub shape: String,
    /// How many ways there were.
    pub candidates: usize,
    /// The place of the chosen one, from 0: the device's own first choice.
    pub chosen: usize,
    /// Cost of the first way, in the file's unit; none where it was refused.
    pub first: Option<f64>,
    /// Cost of the chosen one.
    pub best: f64,
    /// Why ways were refused.
    pub refused: Vec<String>,
}

/// A tuner on its way.
pub struct Tuner<'a> {
    cuda: Cuda,
    data: Data,
    ranking: Ranking,
    path: &'a Path,
    tuning: Tuning,
    begins_anew: Option<String>,
    /// The sizes whose number of sets of operands is large enough for a GPU's caches.
    cold: Shapes,
}

/// How ways are compared.
enum Ranking {
    Time(Effort),
    Cycles(PeakRates),
}

impl Ranking {
    /// How often each way has its turn.
    fn rounds(&self) -> usize {
        match self {
            Self::Time(_) => 3,
            Self::Cycles(_) => 1,
        }
    }
}

impl<'a> Tuner<'a> {
    /// A tuner that goes on with the file at `path`, if that is for this device. Any other file is set aside under another
    /// name, and the tuner begins anew.
    ///
    /// # Errors
    /// Where there is a file that can neither be gone on with nor be renamed.
    pub fn new(cuda: &Cuda, path: &'a Path) -> Result<Self> {
        let simulated = cuda.driver().is_simulated();
        let effort = Effort { warm_up_milliseconds: 3.0, minimum_milliseconds: 15.0, samples: (5, 50) };
        let ranking = if simulated { Ranking::Cycles(PeakRates::h200()) } else { Ranking::Time(effort) };
        let key = Key::of(cuda);
        let kept = path.exists().then(|| Tuning::read_for(path, &key));
        let (known, reason) = match kept {
            None => (None, None),
            Some(Ok(Ok(known))) => (Some(known), None),
            Some(Ok(Err(difference))) => (None, Some(difference)),
            Some(Err(Error::Input { problem, .. })) => (None, Some(problem)),
            Some(Err(error)) => return Err(error),
        };
        let begins_anew = reason
            .map(|reason| -> Result<String> {
                let aside = Tuning::set_aside(path)?;
                Ok(format!("{reason}; the file is kept as {}", aside.display()))
            })
            .transpose()?;
        let tuning = known.unwrap_or_else(|| Tuning::new(key));
        // As many random numbers as the bench's own operands are filled from.
        let elements = if simulated { 4093 } else { (1 << 24) - 3 };
        let cold = Shapes::named(if simulated { ShapesName::Tiny } else { ShapesName::Llama3_8b });
        Ok(Self { cuda: cuda.clone(), data: Data::new(cuda, elements), ranking, path, tuning, begins_anew, cold })
    }

    /// Why a file that was there is of no use here, and where it is kept, in words.
    pub fn begins_anew(&self) -> Option<&str> {
        self.begins_anew.as_deref()
    }

    /// What is known so far.
    pub fn tuning(&self) -> &Tuning {
        &self.tuning
    }

    /// Measures whatever the steps of `workload` ask for and the file does not have. `observe` sees each shape when the file
    /// has it.
    ///
    /// # Errors
    /// Where a step does not run, or the file cannot be written.
    pub fn run(&mut self, workload: &Workload, observe: &mut dyn FnMut(&Tuned)) -> Result<()> {
        let products = self.asked(workload)?;
        self.products(&products, observe)?;
        let tokens = workload.steps.iter().map(|(_, batch)| batch.tokens()).max().unwrap_or(1);
        for kernel in RowKernel::ALL {
            let columns = workload.model.hidden_size;
            let shape = RowShape { kernel, columns, dtype: self.cuda.compute_dtype() };
            if self.tuning.threads.contains_key(&shape.to_string()) {
                continue;
            }
            let (entry, tuned) = self.row_kernel(shape, tokens)?;
            self.tuning.threads.insert(shape.to_string(), entry);
            self.tuning.write(self.path)?;
            observe(&tuned);
        }
        Ok(())
    }

    /// Measures those of these products that the file does not have.
    ///
    /// # Errors
    /// Where the device fails, or the file cannot be written. A product for which the library has nothing to choose from is
    /// left out.
    pub fn products(&mut self, shapes: &[ProductShape], observe: &mut dyn FnMut(&Tuned)) -> Result<()> {
        for shape in shapes {
            if self.tuning.products.contains_key(&shape.to_string()) {
                continue;
            }
            let Some((entry, tuned)) = self.product(shape)? else { continue };
            self.tuning.products.insert(shape.to_string(), entry);
            self.tuning.write(self.path)?;
            observe(&tuned);
        }
        Ok(())
    }

    /// The products of all steps, those with most arithmetic first.
    fn asked(&self, workload: &Workload) -> Result<Vec<ProductShape>> {
        let model = ModelConfig { num_hidden_layers: 1, ..workload.model.clone() };
        let stage = Stage { cuda: &self.cuda, model: &model, rank: workload.rank, data: &self.data };
        let mut all: Vec<ProductShape> = Vec::new();
        for (trains, batch) in &workload.steps {
            for product in stage.products(*trains, *batch)? {
                if !all.contains(&product) {
                    all.push(product);
                }
            }
        }
        all.sort_by(|a, b| b.flop().total_cmp(&a.flop()));
        Ok(all)
    }

    /// What the way that was taken costs in one round.
    fn cost(&self, ways: &mut dyn Ways) -> Result<f64> {
        match &self.ranking {
            Ranking::Time(effort) => Ok(time(&self.cuda, *effort, &mut |repetition| ways.run(repetition))?.median),
            Ranking::Cycles(rates) => {
                let ((), ledger) = self.cuda.counted(|| ways.run(0))?;
                Ok(ledger.map_or(0.0, |ledger| ledger.floor_cycles(rates)))
            }
        }
    }
}

/// Several ways to compute the same, one of which is taken at a time.
trait Ways {
    /// The names of all of them, for people: the device's own first choice first.
    fn names(&self) -> Vec<String>;
    /// From now on the work goes this way.
    fn take(&mut self, way: usize) -> Result<()>;
    /// Queues the work once, on the set of operands of a repetition.
    fn run(&mut self, repetition: usize) -> Result<()>;
    /// Some of the results on the first set, from outputs that are the same every time.
    fn results(&mut self) -> Result<Vec<f32>>;
}

/// What was found out about ways to compute the same.
struct Comparison {
    /// What each costs in each round; none for one that was refused.
    rounds: Vec<Option<Vec<f64>>>,
    /// Why ways were refused.
    refused: Vec<String>,
}

impl Comparison {
    /// The way to take, and what it is in the observer's words; none where all were refused.
    fn best(&self, shape: &dyn std::fmt::Display) -> Option<(usize, Tuned)> {
        let chosen = best(&self.rounds)?;
        let costs = self.costs();
        let tuned = Tuned {
            shape: shape.to_string(),
            candidates: costs.len(),
            chosen,
            first: costs[0],
            best: costs[chosen]?,
            refused: self.refused.clone(),
        };
        Some((chosen, tuned))
    }

    /// What each costs: the median of its rounds.
    fn costs(&self) -> Vec<Option<f64>> {
        self.rounds.iter().map(|rounds| rounds.as_deref().map(median)).collect()
    }
}

impl Tuner<'_> {
    /// What each way costs, the ways taking turns. One that gives other bits in a second run, or lies further than `bound` from the first, is refused.
    fn compare(&self, ways: &mut dyn Ways, bound: f64) -> Result<Comparison> {
        let mut expected: Option<Vec<f32>> = None;
        let mut comparison = Comparison { rounds: Vec::new(), refused: Vec::new() };
        for (way, name) in ways.names().into_iter().enumerate() {
            ways.take(way)?;
            let found = ways.results()?;
            let again = ways.results()?;
            let apart = distance(&found, expected.get_or_insert_with(|| found.clone()));
            let problem = if !found.iter().zip(&again).all(|(a, b)| a.to_bits() == b.to_bits()) {
                Some("other bits in a second run".to_string())
            } else if apart > bound {
                Some(format!("{apart:.1e} from the first"))
            } else {
                None
            };
            comparison.rounds.push(problem.is_none().then(Vec::new));
            comparison.refused.extend(problem.map(|problem| format!("{name}: {problem}")));
        }
        for _ in 0..self.ranking.rounds() {
            for (way, rounds) in comparison.rounds.iter_mut().enumerate() {
                let Some(rounds) = rounds else { continue };
                ways.take(way)?;
                rounds.push(self.cost(ways)?);
            }
        }
        Ok(comparison)
    }
}

/// The place of the way to take: the first, unless the cheapest of the others is cheaper by more than noise in every round.
/// None where all were refused.
fn best(rounds: &[Option<Vec<f64>>]) -> Option<usize> {
    let known = || rounds.iter().enumerate().filter_map(|(place, rounds)| Some((place, rounds.as_ref()?)));
    let (cheapest, least) = known().min_by(|a, b| median(a.1).total_cmp(&median(b.1)))?;
    let gains = |first: &[f64]| first.iter().zip(least).all(|(first, least)| *least < first * (1.0 - LEAST_GAIN));
    match rounds.first() {
        Some(Some(first)) if !gains(first) => Some(0),
        _ => Some(cheapest),
    }
}

/// The middle of some costs; of an even number, the upper one.
fn median(costs: &[f64]) -> f64 {
    let mut sorted = costs.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// ‖found − expected‖ / ‖expected‖; infinite where a number is not finite.
fn distance(found: &[f32], expected: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let difference: f64 = found.iter().zip(expected).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let size: f64 = expected.iter().map(|x| square(f64::from(*x))).sum();
    if !difference.is_finite() || found.len() != expected.len() {
        return f64::INFINITY;
    }
    if difference == 0.0 { 0.0 } else { (difference / size).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_way_stays_unless_another_is_clearly_cheaper() {
        let once =
            |costs: &[Option<f64>]| best(&costs.iter().map(|cost| cost.map(|cost| vec![cost])).collect::<Vec<_>>());
        assert_eq!(once(&[Some(100.0), Some(99.5), Some(101.0)]), Some(0));
        assert_eq!(once(&[Some(100.0), Some(98.0), Some(97.0)]), Some(2));
        assert_eq!(once(&[None, Some(300.0), Some(200.0)]), Some(2));
        assert_eq!(once(&[Some(1.0), None]), Some(0));
        assert_eq!(once(&[None, None]), None);
        assert_eq!(once(&[]), None);
    }

    /// A way that wins on the whole and loses a round has won by noise.
    #[test]
    fn a_gain_is_one_in_every_round() {
        let first = Some(vec![100.0, 100.0, 90.0]);
        assert_eq!(best(&[first.clone(), Some(vec![95.0, 95.0, 95.0])]), Some(0));
        assert_eq!(best(&[first, Some(vec![95.0, 95.0, 85.0])]), Some(1));
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
    }

    #[test]
    fn distances_are_relative_and_nothing_is_close_to_nan() {
        assert_eq!(distance(&[3.0, 4.0], &[3.0, 4.0]), 0.0);
        assert_eq!(distance(&[3.0, 9.0], &[3.0, 4.0]), 1.0);
        assert_eq!(distance(&[f32::NAN, 4.0], &[3.0, 4.0]), f64::INFINITY);
        assert_eq!(distance(&[3.0], &[3.0, 4.0]), f64::INFINITY);
    }
}
