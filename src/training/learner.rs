//! The two ways to take a step: with a look at its numbers before the weights change, and without.
//!
//! Attacks that are measured look at each step, which makes the host wait for the device. A simulated attack of the nested
//! loop must not wait within a trajectory: its losses are read when it is over, and a number that is not finite shows in the
//! meta-gradient, which the outer step looks at.

use super::{AnyTrainer, Step, StepGuard, Trainer, Work};
use crate::error::Result;
use crate::objective::{LossPass, LossTape};
use crate::ops::Backend;
use crate::optimizer::OptimizerConfig;

/// Takes the steps of a fine-tuning run.
pub trait Learner<B: Backend> {
    /// What it has seen of a step.
    type Report;

    /// Takes `step` on the batch of `work`.
    fn learn(&mut self, step: &Step, work: Work<B>) -> Result<Self::Report>;

    /// Goes on with a fresh optimizer, on what is trained as it is.
    fn restart_optimizer(&mut self, backend: &B, config: OptimizerConfig) -> Result<()>;
}

/// What a step measured, before its update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Mean cross-entropy of the learned tokens.
    pub loss: f64,
    /// L2 norm of the gradient.
    pub gradient_norm: f64,
    /// Learning rate.
    pub lr: f64,
    /// Whether it was left out, because a number was not finite.
    pub skipped: bool,
}

/// Takes steps that are looked at: those whose loss or gradient is not finite are left out. Waits for the device at each.
pub struct GuardedTrainer<B: Backend> {
    trainer: Trainer<B>,
    tape: LossTape<B>,
    guard: StepGuard,
}

impl<B: Backend> GuardedTrainer<B> {
    /// No step taken yet. `remedy` is what the error says to do after three steps in a row that had to be left out.
    pub fn new(backend: &B, trainer: Trainer<B>, remedy: &'static str) -> Result<Self> {
        let guard = StepGuard::new("the loss or gradient", remedy);
        Ok(Self { trainer, tape: LossTape::new(backend, 1)?, guard })
    }

    /// What is trained.
    pub fn trainer(&self) -> &Trainer<B> {
        &self.trainer
    }

    /// What is trained, to restore it.
    pub fn trainer_mut(&mut self) -> &mut Trainer<B> {
        &mut self.trainer
    }

    /// The count of steps left out.
    pub fn guard(&self) -> &StepGuard {
        &self.guard
    }

    /// The count of steps left out, to restore it.
    pub fn guard_mut(&mut self) -> &mut StepGuard {
        &mut self.guard
    }
}

impl<B: Backend> Learner<B> for GuardedTrainer<B> {
    type Report = StepReport;

    /// # Errors
    /// [`crate::Error::NonFinite`] at the third step in a row that had to be left out.
    fn learn(&mut self, step: &Step, work: Work<B>) -> Result<StepReport> {
        let Work { evaluator, weights, batch } = work;
        let backend = evaluator.model().backend.clone();
        let lr = self.trainer.optimizer().next_lr();
        self.tape.clear(&backend)?;
        self.trainer.clear_gradients(&backend)?;
        let (subject, destinations) = self.trainer.pass(weights);
        let loss = self.tape.slot(0);
        let scale = step.scale;
        evaluator.cross_entropy(LossPass { subject, batch, scale, destinations: Some(destinations), loss })?;
        let gradient_norm = self.trainer.gradients().squared_norm(&backend)?.sqrt();
        let loss = self.tape.read_one(&backend, 0)?;
        let skipped = self.guard.skips(gradient_norm.is_finite() && loss.is_finite(), step.index)?;
        if !skipped {
            self.trainer.apply(evaluator, weights)?;
        }
        Ok(StepReport { loss, gradient_norm, lr, skipped })
    }

    fn restart_optimizer(&mut self, backend: &B, config: OptimizerConfig) -> Result<()> {
        self.trainer.optimizer_mut().reset(backend, config)
    }
}

/// Takes steps without waiting for any; their losses lie on a tape, one slot for each step.
pub struct UnwatchedTrainer<'a, B: Backend> {
    /// What is trained.
    pub trainer: &'a mut AnyTrainer<B>,
    /// The losses.
    pub tape: LossTape<B>,
}

impl<B: Backend> Learner<B> for UnwatchedTrainer<'_, B> {
    type Report = ();

    fn learn(&mut self, step: &Step, work: Work<B>) -> Result<()> {
        let Work { evaluator, weights, batch } = work;
        let loss = self.tape.slot(step.index as usize);
        self.trainer.cross_entropy_step(evaluator, weights, batch, step.scale, loss)
    }

    fn restart_optimizer(&mut self, backend: &B, config: OptimizerConfig) -> Result<()> {
        self.trainer.optimizer_mut().reset(backend, config)
    }
}
