//! The outer loop: gradients at points and at the base, and one optimizer step on the unattacked weights.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::combine::Combiner;
use super::composition::{BASE, Share};
use super::points::{Displace, Visit, Visited, ways};
use super::pool::Pool;
use super::reports::{OuterReport, TermReport, reports_of};
use super::streams::unknown_stream;
use super::terms::{Batches, Ground, Models, PlacedTerms, TermLosses};
use super::{HardAttack, InnerStep, Settings, Streams, Term};
use crate::data::Cursor;
use crate::error::Result;
use crate::model::{Adapter, Gradients, Model, Parameters, ParkedParameters};
use crate::objective::Evaluator;
use crate::ops::Backend;
use crate::optimizer::{Optimizer, OptimizerProgress};
use crate::training::StepGuard;

/// What a checkpoint keeps besides weights and optimizer states.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct HardenerState {
    /// Outer steps done.
    pub step: u64,
    /// Outer steps skipped in a row.
    pub skipped_in_a_row: u64,
    /// Where each stream stands.
    pub cursors: BTreeMap<String, Cursor>,
    /// The outer optimizer's scalars.
    pub optimizer: OptimizerProgress,
    /// The attacks that are kept to be met again, best first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pool: Vec<HardAttack>,
    /// The points that keep something between outer steps, and how many numbers each.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub points: BTreeMap<String, usize>,
}

/// What a checkpoint keeps as tensors.
#[derive(Clone, Debug, Default)]
pub struct HardenerTensors {
    /// The weights.
    pub weights: Vec<f32>,
    /// The states of the outer optimizer.
    pub optimizer: Vec<Vec<f32>>,
    /// What the points keep, by their names, and under the base's the accumulated gradient of a mask of signs.
    pub points: BTreeMap<String, Vec<f32>>,
}

/// What to do about a run that diverges.
const DIVERGED: &str =
    "lower the learning rates (of the outer optimizer, of the adversaries) and look at the metrics stream";

/// Elements of each state of the outer optimizer that are on the device at one time.
pub(crate) const OUTER_WINDOW: usize = 1 << 26;

/// The nested loop with its memory.
pub struct Hardener<B: Backend> {
    settings: Settings,
    evaluator: Evaluator<B>,
    weights: Parameters<B>,
    /// Tensors that the outer step alone touches wait in main memory: the unattacked weights, the reference model, and the
    /// states of the outer optimizer.
    unattacked: ParkedParameters<B>,
    reference: ParkedParameters<B>,
    gradient: Gradients<B>,
    combiner: Combiner<B>,
    outer: Optimizer<B>,
    /// The places in the weights that are trained.
    trained: Vec<Range<usize>>,
    points: Vec<PlacedPoint<B>>,
    base: PlacedTerms<B>,
    pool: Pool,
    streams: Streams,
    /// The batches of the outer step, and those that the present visit holds out.
    batches: Batches<B>,
    held_out: Batches<B>,
    step: u64,
    /// The number of the present round.
    round: usize,
    guard: StepGuard,
}

/// A point with its terms.
struct PlacedPoint<B: Backend> {
    way: Box<dyn Displace<B>>,
    terms: PlacedTerms<B>,
}

impl<B: Backend> Hardener<B> {
    /// A run from `weights`, with `reference` as the frozen model that losses compare with.
    ///
    /// # Errors
    /// [`crate::Error::Config`] for settings with which the loop could not run.
    pub fn new(
        model: Arc<Model<B>>,
        weights: Parameters<B>,
        reference: Parameters<B>,
        streams: Streams,
        settings: Settings,
    ) -> Result<Self> {
        settings.check()?;
        let backend = model.backend.clone();
        let parked = ParkedParameters::to_read(&backend, "reference weights", &reference)?;
        drop(reference);
        let ways = ways(&model, &settings)?;
        let adapters: Vec<&Adapter<B>> = ways.iter().flat_map(|way| way.adapters()).collect();
        let recompute = settings.memory.recompute;
        let adversaries = settings.simulation().map_or(&[][..], |simulation| &simulation.adversaries);
        let most = streams.max_tokens_with(adversaries);
        let evaluator = Evaluator::recomputing(Arc::clone(&model), most, &adapters, recompute)?;
        let placed = |(way, point): (Box<dyn Displace<B>>, &super::Point)| PlacedPoint {
            way,
            terms: PlacedTerms::new(settings.terms_at(&point.name)),
        };
        let outer = settings.outer_of(0).clone();
        let len = model.layout().len();
        let mut hardener = Self {
            evaluator,
            unattacked: ParkedParameters::of(&backend, "unattacked weights", &weights)?,
            reference: parked,
            gradient: Gradients::zeros(&backend, "meta-gradient", model.layout())?,
            combiner: Combiner::new(&model, &settings.combine)?,
            outer: Optimizer::parked(&backend, "outer optimizer", outer, len, OUTER_WINDOW)?,
            weights,
            trained: Vec::new(),
            points: ways.into_iter().zip(&settings.points).map(placed).collect(),
            base: PlacedTerms::new(settings.terms_at(BASE)),
            streams,
            pool: Pool::default(),
            batches: Batches::new(),
            held_out: Batches::new(),
            settings,
            step: 0,
            round: 0,
            guard: StepGuard::new("the outer gradient", DIVERGED),
        };
        hardener.enter(0)?;
        Ok(hardener)
    }

    /// Takes over what a round says of terms and of what is trained.
    fn enter(&mut self, round: usize) -> Result<()> {
        let settings = &self.settings;
        self.trained = settings.trained_in(round).ranges(self.evaluator.model().layout())?;
        // Terms of an earlier round have its weights, so that each is looked up by its name in the settings.
        let weight = |term: &Term| {
            let own = settings.terms.iter().find(|own| own.name == term.name).unwrap_or(term);
            settings.weight_in(round, own)
        };
        self.points.iter_mut().for_each(|point| point.terms.weigh(weight));
        self.base.weigh(weight);
        self.round = round;
        Ok(())
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model<B>> {
        self.evaluator.model()
    }

    /// The weights: between outer steps, the unattacked ones.
    pub fn weights(&self) -> &Parameters<B> {
        &self.weights
    }

    /// The gradient of the last outer step.
    pub fn outer_gradient(&self) -> &Gradients<B> {
        &self.gradient
    }

    /// The outer optimizer.
    pub fn outer_optimizer(&self) -> &Optimizer<B> {
        &self.outer
    }

    /// The data streams.
    pub fn streams(&self) -> &Streams {
        &self.streams
    }

    /// Outer steps done.
    pub fn steps_done(&self) -> u64 {
        self.step
    }

    /// One outer step: θ ← θ − η · Σ weight · ∇loss, each gradient taken at its term's place. `tick` is called before each
    /// inner step of a simulated attack; an error of it ends the outer step with the weights as they were before it.
    ///
    /// # Errors
    /// [`crate::Error::NonFinite`] after three skipped steps in a row; whatever `tick` returned.
    pub fn outer_step(&mut self, tick: &mut dyn FnMut(InnerStep) -> Result<()>) -> Result<OuterReport> {
        let backend = self.evaluator.model().backend.clone();
        self.unattacked.park(&backend, &self.weights)?;
        self.gradient.clear(&backend)?;
        self.batches.forget();
        let mut at_points = Vec::new();
        for point in 0..self.points.len() {
            let mut visits = Vec::new();
            for task in 0..self.points[point].way.visits() {
                let outcome = self.visit(point, task, tick);
                // Whatever happened inside, the weights come back bit for bit.
                self.unattacked.fetch(&backend, &mut self.weights)?;
                visits.push(outcome?);
            }
            at_points.push(visits);
        }
        let bounded = self.drop_below_bound(&backend, &at_points)?;
        self.combiner.between(&backend, &mut self.gradient)?;
        let at_base = self.visit_base()?;
        let finite = self.combiner.combine(&backend, &mut self.gradient, &self.trained)?;
        self.finish(&backend, at_points, at_base, [bounded, finite])
    }

    /// Adds the gradients of the terms at a point, and leaves the weights there.
    fn visit(&mut self, point: usize, task: u64, tick: &mut dyn FnMut(InnerStep) -> Result<()>) -> Result<Visited> {
        let PlacedPoint { way, terms } = &mut self.points[point];
        let batches = if way.holds_out() {
            self.held_out.forget();
            &mut self.held_out
        } else {
            &mut self.batches
        };
        let models = Models {
            evaluator: &mut self.evaluator,
            weights: &mut self.weights,
            reference: &self.reference,
            unattacked: &self.unattacked,
        };
        let ground = Ground { models, streams: &mut self.streams, batches, gradient: &mut self.gradient };
        let (seed, outer, trained) = (self.settings.seed, self.step, &self.trained[..]);
        way.visit(Visit { seed, outer, task, trained, pool: &self.pool, terms, ground, tick })
    }

    /// Drops the gradients taken at points where their loss has reached the bound; says whether it did.
    fn drop_below_bound(&mut self, backend: &B, at_points: &[Vec<Visited>]) -> Result<bool> {
        let of_visit = |visited: &Visited| visited.terms.iter().map(|term| term.weighted).sum::<f64>();
        let loss: f64 = at_points.iter().flatten().map(of_visit).sum();
        let bounded = self.settings.lower_bound.is_some_and(|bound| loss < bound);
        if bounded {
            self.gradient.clear(backend)?;
        }
        Ok(bounded)
    }

    /// Adds the gradients of the terms at the unattacked weights.
    fn visit_base(&mut self) -> Result<Vec<TermLosses>> {
        let models = Models {
            evaluator: &mut self.evaluator,
            weights: &mut self.weights,
            reference: &self.reference,
            unattacked: &self.unattacked,
        };
        let (streams, batches, gradient) = (&mut self.streams, &mut self.batches, &mut self.gradient);
        let mut ground = Ground { models, streams, batches, gradient };
        self.base.begin(&mut ground, 1, None)?;
        self.base.take(&mut ground, None, Share::WHOLE)?;
        self.base.end(&mut self.evaluator)
    }

    /// The optimizer step, unless a number is not finite.
    fn finish(
        &mut self,
        backend: &B,
        at_points: Vec<Vec<Visited>>,
        at_base: Vec<TermLosses>,
        [bounded, finite]: [bool; 2],
    ) -> Result<OuterReport> {
        let at_base = reports_of(&[at_base]);
        let gradient_norm = self.gradient.norm_of(backend, &self.trained)?;
        let is_finite = |term: &TermReport| term.loss.is_finite() && term.distance.is_none_or(f64::is_finite);
        let all_finite = finite && gradient_norm.is_finite() && at_base.iter().all(is_finite);
        let step = self.step;
        let lr = self.outer.next_lr();
        let skipped = self.guard.skips(all_finite, step)?;
        if !skipped {
            self.outer.step_parts(backend, &mut self.weights, &self.gradient, self.trained.iter().cloned())?;
        }
        self.step += 1;
        self.begin_round(backend)?;
        let mut trajectories = Vec::new();
        let mut terms = Vec::new();
        for visits in at_points {
            let losses: Vec<Vec<TermLosses>> = visits
                .into_iter()
                .map(|visited| {
                    trajectories.extend(visited.trajectory);
                    visited.terms
                })
                .collect();
            terms.extend(reports_of(&losses));
        }
        terms.extend(at_base);
        if let Some(simulation) = self.settings.simulation() {
            self.pool.learn(simulation, &trajectories);
        }
        let (retain_loss, retain_distance) = OuterReport::retain_of(&terms);
        Ok(OuterReport { step, trajectories, terms, retain_loss, retain_distance, gradient_norm, lr, bounded, skipped })
    }

    /// Begins the round of the next step, where that is another one: a fresh optimizer, from the weights that a run which ends
    /// here would save.
    fn begin_round(&mut self, backend: &B) -> Result<()> {
        let round = self.settings.round_at(self.step);
        if round == self.round {
            return Ok(());
        }
        let weights = self.final_weights(false)?;
        self.weights.upload(backend, &weights)?;
        self.enter(round)?;
        self.outer.reset(backend, self.settings.outer_of(round).clone())
    }

    /// The weights that a run ends with: for schedule-free optimizers the averaged point unless `train_point`.
    pub fn final_weights(&self, train_point: bool) -> Result<Vec<f32>> {
        let backend = &self.evaluator.model().backend;
        let mut weights = self.weights.download(backend)?;
        if !train_point {
            // What is not trained has no average.
            let average = self.outer.average_point(backend, &self.weights)?;
            self.trained.iter().for_each(|place| weights[place.clone()].copy_from_slice(&average[place.clone()]));
        }
        Ok(weights)
    }

    /// What a checkpoint keeps as tensors. Waits for the device.
    pub fn tensors(&self) -> Result<HardenerTensors> {
        let backend = &self.evaluator.model().backend;
        let states = (0..self.outer.state_count()).map(|index| self.outer.read_state(backend, index));
        let mut points = BTreeMap::new();
        for (PlacedPoint { way, .. }, point) in self.points.iter().zip(&self.settings.points) {
            points.extend(way.kept(backend, self.model())?.map(|kept| (point.name.clone(), kept)));
        }
        points.extend(self.combiner.kept(backend)?.map(|kept| (BASE.to_string(), kept)));
        Ok(HardenerTensors {
            weights: self.weights.download(backend)?,
            optimizer: states.collect::<Result<_>>()?,
            points,
        })
    }

    /// What a checkpoint keeps besides the tensors; the points that keep any are added to it as they are saved.
    pub fn state(&self) -> HardenerState {
        HardenerState {
            step: self.step,
            skipped_in_a_row: self.guard.skipped_in_a_row(),
            cursors: self.streams.0.iter().map(|(name, stream)| (name.clone(), stream.cursor())).collect(),
            optimizer: self.outer.progress(),
            pool: self.pool.attacks().to_vec(),
            points: BTreeMap::new(),
        }
    }

    /// Goes on from a checkpoint.
    pub fn restore(&mut self, state: &HardenerState, tensors: &HardenerTensors) -> Result<()> {
        let backend = self.evaluator.model().backend.clone();
        for (name, stream) in &mut self.streams.0 {
            stream.seek(*state.cursors.get(name).ok_or_else(|| unknown_stream(name))?);
        }
        self.weights.upload(&backend, &tensors.weights)?;
        let round = self.settings.round_at(state.step);
        self.enter(round)?;
        self.outer.reset(&backend, self.settings.outer_of(round).clone())?;
        self.outer.restore(&backend, state.optimizer, &tensors.optimizer)?;
        for (PlacedPoint { way, .. }, point) in self.points.iter_mut().zip(&self.settings.points) {
            if let Some(kept) = tensors.points.get(&point.name) {
                way.restore(&backend, self.evaluator.model(), kept)?;
            }
        }
        if let Some(simulation) = self.settings.simulation() {
            self.pool = Pool::new(simulation, state.pool.clone())?;
        }
        if let Some(kept) = tensors.points.get(BASE) {
            self.combiner.restore(&backend, kept)?;
        }
        self.step = state.step;
        self.guard.restore(state.skipped_in_a_row);
        Ok(())
    }
}
