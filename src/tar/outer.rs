//! The outer loop: trajectories, meta-gradient, retain gradient, one optimizer step on the unattacked weights.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::pool::Pool;
use super::streams::unknown_stream;
use super::trainers::Trainers;
use super::trajectory::{HeldOut, Trajectory};
use super::{Adversary, AttackLength, Curriculum, Draw, HardAttack, PoolSettings, Streams, TrajectoryReport};
use crate::data::Cursor;
use crate::error::Result;
use crate::model::{GradientDestinations, Gradients, Model, Parameters, ParkedParameters};
use crate::objective::{EntropyOver, Evaluator, LossBatch, LossPass, LossTape, Representations, Subject};
use crate::ops::Backend;
use crate::optimizer::{Optimizer, OptimizerConfig, OptimizerProgress};
use crate::settings::{at_least, fault};
use crate::training::{MemorySettings, StepGuard};

/// The tamper-resistance loss, with what it needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ResistanceLoss {
    /// Minus the entropy (knowledge).
    MaxEntropy(EntropyOver),
    /// DPO with this β (refusal).
    Preference {
        /// β.
        beta: f32,
    },
}

/// The settings of the method. See `docs/method.md` for the published values.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Seed of every draw.
    pub seed: u64,
    /// K.
    pub inner_steps: u64,
    /// A TR gradient after every n-th inner step.
    pub tr_every: u64,
    /// Factor on TR gradients.
    pub tr_scale: f64,
    /// λ of the weighting schedule; equal weights 1/K where absent.
    pub schedule_lambda: Option<f64>,
    /// Trajectories per outer step.
    pub tasks_per_step: u64,
    /// The tamper-resistance loss.
    pub tr_loss: ResistanceLoss,
    /// Its stream.
    pub tr_data: String,
    /// Stream of the retain loss.
    pub retain_data: String,
    /// Factor on the retain gradient.
    pub retain_scale: f64,
    /// Whether the retain loss has the distance to the reference model's hidden states.
    pub retain_representations: bool,
    /// Positions that the distance averages over.
    pub representations_over: EntropyOver,
    /// TR gradients of a step whose Σ weight · loss is below this bound are dropped; absent: never.
    pub lower_bound: Option<f64>,
    /// The outer optimizer.
    pub outer: OptimizerConfig,
    /// The adversaries.
    pub adversaries: Vec<Adversary>,
    /// Scripted draws of the first trajectories.
    pub script: Vec<Draw>,
    /// Whether attacks that brought much back are met again.
    pub pool: Option<PoolSettings>,
    /// Whether attacks begin short.
    pub curriculum: Option<Curriculum>,
    /// What attacks trade for memory.
    pub memory: MemorySettings,
}

impl Settings {
    /// Fails where the loop could not run. Run files say more in their own checks; settings are built in code too.
    fn check(&self) -> Result<()> {
        at_least("tar.inner_steps", self.inner_steps, 1)?;
        at_least("tar.tr_every", self.tr_every, 1)?;
        at_least("tar.tasks_per_step", self.tasks_per_step, 1)?;
        for adversary in &self.adversaries {
            let length = adversary.whole_length(self);
            at_least("tar.adversary.inner_steps", length.inner_steps, 1)?;
            at_least("tar.adversary.tr_every", length.tr_every, 1)?;
            at_least("tar.adversary.batch", adversary.batch.unwrap_or(1) as u64, 1)?;
        }
        self.pool.iter().try_for_each(|pool| pool.check("tar.pool"))?;
        self.curriculum.iter().try_for_each(|curriculum| curriculum.check("tar.curriculum"))?;
        let count = self.adversaries.len();
        match self.script.iter().find(|draw| draw.adversary >= count) {
            None => Ok(()),
            Some(draw) => {
                let problem = format!("there is no adversary {} among {count}", draw.adversary);
                Err(fault("tar.script", problem, "count adversaries from 0"))
            }
        }
    }

    /// How long an attack of `adversary` is at outer step `outer`.
    pub fn length(&self, adversary: &Adversary, outer: u64) -> AttackLength {
        let whole = adversary.whole_length(self);
        self.curriculum.map_or(whole, |curriculum| curriculum.length(whole, outer))
    }

    /// Weight of the TR gradient after inner step `k` (from 0) of an attack of K = `inner_steps`:
    /// scale/tasks · exp(λ(k − (K−1))), or scale/tasks/K.
    pub(super) fn weight(&self, k: u64, inner_steps: u64) -> f64 {
        let schedule = match self.schedule_lambda {
            Some(lambda) => (lambda * (k as f64 - (inner_steps as f64 - 1.0))).exp(),
            None => 1.0 / inner_steps as f64,
        };
        self.tr_scale / self.tasks_per_step as f64 * schedule
    }
}

/// What an outer step reports.
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct OuterReport {
    /// Outer step, from 0.
    pub step: u64,
    /// Its trajectories.
    pub trajectories: Vec<TrajectoryReport>,
    /// Cross-entropy on the retain batch.
    pub retain_loss: f64,
    /// Mean distance to the reference model's hidden states; 0 where it is not part of the loss.
    pub retain_distance: f64,
    /// Norm of the outer gradient.
    pub gradient_norm: f64,
    /// Learning rate of the outer step.
    pub lr: f64,
    /// Whether the TR gradients were dropped at the lower bound.
    pub bounded: bool,
    /// Whether the step was skipped because a number was not finite.
    pub skipped: bool,
}

impl OuterReport {
    /// The loss of each trajectory's last attack step, averaged; NaN where there was none.
    pub fn last_attack_loss(&self) -> f64 {
        mean(self.trajectories.iter().filter_map(|t| t.attack_losses.last()))
    }

    /// The last tamper-resistance loss of each trajectory, averaged; NaN where there was none.
    pub fn last_tr_loss(&self) -> f64 {
        mean(self.trajectories.iter().filter_map(|t| t.tr_losses.last()))
    }
}

fn mean<'a>(values: impl Iterator<Item = &'a f64>) -> f64 {
    let mut sum = 0.0;
    let mut count = 0;
    for value in values {
        sum += value;
        count += 1;
    }
    if count == 0 { f64::NAN } else { sum / f64::from(count) }
}

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
}

/// What to do about a run that diverges.
const DIVERGED: &str = "lower the learning rates (tar.outer.lr, tar.adversary.lr) and look at the metrics stream";

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
    meta_gradient: Gradients<B>,
    outer: Optimizer<B>,
    trainers: Trainers<B>,
    pool: Pool,
    streams: Streams,
    /// The batch of the present inner step.
    attack_batch: LossBatch<B>,
    held_out: HeldOut<B>,
    step: u64,
    guard: StepGuard,
}

impl<B: Backend> Hardener<B> {
    /// A run from `weights`, with `reference` as the frozen model of the retain loss.
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
        let trainers = Trainers::new(&model, &settings.adversaries, settings.memory)?;
        let most = streams.max_tokens_with(&settings.adversaries);
        let recompute = settings.memory.recompute;
        let evaluator = Evaluator::recomputing(Arc::clone(&model), most, &trainers.adapters(), recompute)?;
        let outer = settings.outer.clone();
        let len = model.layout().len();
        Ok(Self {
            attack_batch: LossBatch::with_room(&model, most)?,
            held_out: HeldOut { batch: LossBatch::with_room(&model, most)?, reference_margins: Vec::new() },
            evaluator,
            unattacked: ParkedParameters::of(&backend, "unattacked weights", &weights)?,
            reference: parked,
            meta_gradient: Gradients::zeros(&backend, "meta-gradient", model.layout())?,
            outer: Optimizer::parked(&backend, "outer optimizer", outer, len, OUTER_WINDOW)?,
            weights,
            trainers,
            pool: Pool::default(),
            streams,
            settings,
            step: 0,
            guard: StepGuard::new("the outer gradient", DIVERGED),
        })
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
        &self.meta_gradient
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

    /// One outer step. `tick(task, k)` is called before each inner step; an error of it ends the step with the weights
    /// as they were before it.
    ///
    /// # Errors
    /// [`Error::NonFinite`] after three skipped steps in a row; whatever `tick` returned.
    pub fn outer_step(&mut self, tick: &mut dyn FnMut(u64, u64) -> Result<()>) -> Result<OuterReport> {
        let backend = self.evaluator.model().backend.clone();
        self.unattacked.park(&backend, &self.weights)?;
        self.meta_gradient.clear(&backend)?;
        let mut trajectories = Vec::new();
        for task in 0..self.settings.tasks_per_step {
            let outcome = self.trajectory(task, &mut |k| tick(task, k));
            // Whatever happened inside, the weights come back bit for bit.
            self.unattacked.fetch(&backend, &mut self.weights)?;
            trajectories.push(outcome?);
        }
        let bounded = self.drop_below_bound(&backend, &trajectories)?;
        let (retain_loss, retain_distance) = self.retain(&backend)?;
        self.finish(&backend, trajectories, bounded, retain_loss, retain_distance)
    }

    fn trajectory(&mut self, task: u64, tick: &mut dyn FnMut(u64) -> Result<()>) -> Result<TrajectoryReport> {
        let index = self.step * self.settings.tasks_per_step + task;
        let draw = match self.settings.script.get(index as usize) {
            Some(scripted) => scripted.clone(),
            None => self.pool.draw(&self.settings, self.step, task)?,
        };
        self.draw_held_out(draw.adversary)?;
        let settings = &self.settings;
        let adversary = &settings.adversaries[draw.adversary];
        let trajectory = Trajectory {
            settings,
            length: settings.length(adversary, self.step),
            evaluator: &mut self.evaluator,
            weights: &mut self.weights,
            trainer: self.trainers.of(adversary, &draw)?,
            streams: &mut self.streams,
            meta_gradient: &mut self.meta_gradient,
            attack_batch: &mut self.attack_batch,
            held_out: &self.held_out,
        };
        trajectory.run(adversary, &draw, index, tick)
    }

    /// The next held-out batch: drawn once for a trajectory and used for all its TR gradients.
    fn draw_held_out(&mut self, adversary: usize) -> Result<()> {
        let settings = &self.settings;
        let name = settings.adversaries[adversary].tr_data.as_ref().unwrap_or(&settings.tr_data);
        self.streams.refill(self.evaluator.model(), name, &mut self.held_out.batch)?;
        if let ResistanceLoss::Preference { .. } = self.settings.tr_loss {
            let held_out = &self.held_out;
            let parked = [&self.reference, &self.unattacked];
            let margins = with_reference(&mut self.evaluator, &mut self.weights, parked, |evaluator, reference| {
                evaluator.preference_margins(Subject::plain(reference), &held_out.batch)
            })?;
            self.held_out.reference_margins = margins;
        }
        Ok(())
    }

    /// Drops the TR gradients where their loss has reached the bound; says whether it did.
    fn drop_below_bound(&mut self, backend: &B, trajectories: &[TrajectoryReport]) -> Result<bool> {
        let loss: f64 = trajectories.iter().map(|t| t.weighted_tr_loss).sum();
        let bounded = self.settings.lower_bound.is_some_and(|bound| loss < bound);
        if bounded {
            self.meta_gradient.clear(backend)?;
        }
        Ok(bounded)
    }

    /// Adds the retain gradient at the unattacked weights; returns cross-entropy and distance.
    fn retain(&mut self, backend: &B) -> Result<(f64, f64)> {
        let batch = self.streams.next_batch(self.evaluator.model(), &self.settings.retain_data)?;
        let scale = self.settings.retain_scale as f32;
        if scale == 0.0 {
            return Ok((0.0, 0.0));
        }
        let reference = if self.settings.retain_representations {
            let parked = [&self.reference, &self.unattacked];
            Some(with_reference(&mut self.evaluator, &mut self.weights, parked, |evaluator, reference| {
                evaluator.hidden_states(reference, &batch)
            })?)
        } else {
            None
        };
        let mut tape = LossTape::new(backend, 2)?;
        let pass = LossPass {
            subject: Subject::plain(&self.weights),
            batch: &batch,
            scale,
            destinations: Some(GradientDestinations::of_weights(&mut self.meta_gradient)),
            loss: tape.slot(0),
        };
        let over = self.settings.representations_over;
        match reference {
            Some(reference) => {
                self.evaluator.retain(pass, Representations { reference: &reference, over })?;
                self.evaluator.give_back(reference);
            }
            None => self.evaluator.cross_entropy(pass)?,
        }
        let losses = tape.read(backend)?;
        Ok((losses[0], losses[1]))
    }

    /// The optimizer step, unless a number is not finite.
    fn finish(
        &mut self,
        backend: &B,
        trajectories: Vec<TrajectoryReport>,
        bounded: bool,
        retain_loss: f64,
        retain_distance: f64,
    ) -> Result<OuterReport> {
        let gradient_norm = self.meta_gradient.squared_norm(backend)?.sqrt();
        let finite = gradient_norm.is_finite() && retain_loss.is_finite() && retain_distance.is_finite();
        let step = self.step;
        let lr = self.outer.next_lr();
        let skipped = self.guard.skips(finite, step)?;
        if !skipped {
            self.outer.step(backend, &mut self.weights, &self.meta_gradient)?;
        }
        self.pool.learn(&self.settings, &trajectories);
        self.step += 1;
        Ok(OuterReport { step, trajectories, retain_loss, retain_distance, gradient_norm, lr, bounded, skipped })
    }

    /// The weights that a run ends with: for schedule-free optimizers the averaged point unless `train_point`.
    pub fn final_weights(&self, train_point: bool) -> Result<Vec<f32>> {
        let backend = &self.evaluator.model().backend;
        if train_point { self.weights.download(backend) } else { self.outer.average_point(backend, &self.weights) }
    }

    /// What a checkpoint keeps besides the tensors.
    pub fn state(&self) -> HardenerState {
        HardenerState {
            step: self.step,
            skipped_in_a_row: self.guard.skipped_in_a_row(),
            cursors: self.streams.0.iter().map(|(name, stream)| (name.clone(), stream.cursor())).collect(),
            optimizer: self.outer.progress(),
            pool: self.pool.attacks().to_vec(),
        }
    }

    /// Goes on from a checkpoint: its state, the weights, and the outer optimizer's state tensors.
    pub fn restore(&mut self, state: &HardenerState, weights: &[f32], optimizer: &[Vec<f32>]) -> Result<()> {
        let backend = self.evaluator.model().backend.clone();
        for (name, stream) in &mut self.streams.0 {
            stream.seek(*state.cursors.get(name).ok_or_else(|| unknown_stream(name))?);
        }
        self.weights.upload(&backend, weights)?;
        self.outer.restore(&backend, state.optimizer, optimizer)?;
        self.pool = Pool::new(&self.settings, state.pool.clone())?;
        self.step = state.step;
        self.guard.restore(state.skipped_in_a_row);
        Ok(())
    }
}

/// Runs `work` with the reference model in the place of the unattacked weights, which come back bit for bit.
fn with_reference<B: Backend, R>(
    evaluator: &mut Evaluator<B>,
    weights: &mut Parameters<B>,
    [reference, unattacked]: [&ParkedParameters<B>; 2],
    work: impl FnOnce(&mut Evaluator<B>, &Parameters<B>) -> Result<R>,
) -> Result<R> {
    let backend = evaluator.model().backend.clone();
    reference.fetch(&backend, weights)?;
    let outcome = work(evaluator, weights);
    unattacked.fetch(&backend, weights)?;
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optimizer::OptimizerKind;

    fn settings(schedule_lambda: Option<f64>) -> Settings {
        Settings {
            seed: 0,
            inner_steps: 64,
            tr_every: 4,
            tr_scale: 4.0,
            schedule_lambda,
            tasks_per_step: 1,
            tr_loss: ResistanceLoss::MaxEntropy(EntropyOver::Valid),
            tr_data: String::new(),
            retain_data: String::new(),
            retain_scale: 1.0,
            retain_representations: true,
            representations_over: EntropyOver::Valid,
            lower_bound: None,
            outer: OptimizerConfig::new(OptimizerKind::AdamW, 1e-3),
            adversaries: vec![],
            script: vec![],
            pool: None,
            curriculum: None,
            memory: MemorySettings::default(),
        }
    }

    #[test]
    fn settings_with_which_the_loop_could_not_run_are_refused() {
        settings(None).check().unwrap();
        let draw = Draw::new(0, 1e-3);
        for (wrong, key) in [
            (Settings { inner_steps: 0, ..settings(None) }, "tar.inner_steps"),
            (Settings { tr_every: 0, ..settings(None) }, "tar.tr_every"),
            (Settings { tasks_per_step: 0, ..settings(None) }, "tar.tasks_per_step"),
            (Settings { script: vec![draw], ..settings(None) }, "tar.script"),
        ] {
            let error = wrong.check().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{key}: ")), "{error}");
        }
    }

    #[test]
    fn weights_sum_to_the_published_total() {
        let published = settings(Some(0.0625));
        let total: f64 = (0..64).filter(|k| (k + 1) % 4 == 0).map(|k| published.weight(k, 64)).sum();
        // 4 · 4.4380: the effective weight of the authors' configuration, without a factor 1/K.
        assert!((total - 17.752).abs() < 1e-3, "{total}");
        assert_eq!(settings(None).weight(3, 64), 4.0 / 64.0);
    }
}
