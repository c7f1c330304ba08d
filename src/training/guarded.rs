//! Fine-tuning steps that look at their loss and gradient before they change anything.

use super::Trainer;
use crate::error::{Error, Result};
use crate::model::Parameters;
use crate::objective::{Evaluator, LossBatch, LossPass, LossTape};
use crate::ops::Backend;

/// Steps that may be skipped one after another before the run gives up.
const MOST_SKIPS: u64 = 3;

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

/// Cross-entropy steps that leave out those whose loss or gradient is not finite. Waits for the device at each step.
pub struct GuardedSteps<B: Backend> {
    tape: LossTape<B>,
    skipped_in_a_row: u64,
    remedy: &'static str,
}

impl<B: Backend> GuardedSteps<B> {
    /// No step taken yet. `remedy` is what the error says to do after three skips in a row.
    pub fn new(backend: &B, remedy: &'static str) -> Result<Self> {
        Ok(Self { tape: LossTape::new(backend, 1)?, skipped_in_a_row: 0, remedy })
    }

    /// Steps skipped in a row, for a checkpoint.
    pub fn skipped_in_a_row(&self) -> u64 {
        self.skipped_in_a_row
    }

    /// Puts a checkpoint's count back.
    pub fn restore(&mut self, skipped_in_a_row: u64) {
        self.skipped_in_a_row = skipped_in_a_row;
    }

    /// One step on `scale` · cross-entropy (−1 climbs it); `step` is its number, for errors.
    ///
    /// # Errors
    /// [`Error::NonFinite`] at the third skipped step in a row.
    pub fn step(
        &mut self,
        trainer: &mut Trainer<B>,
        evaluator: &mut Evaluator<B>,
        weights: &mut Parameters<B>,
        batch: &LossBatch<B>,
        scale: f32,
        step: u64,
    ) -> Result<StepReport> {
        let backend = evaluator.model().backend.clone();
        self.tape.clear(&backend)?;
        let lr = trainer.optimizer().next_lr();
        trainer.clear_gradients(&backend)?;
        let (subject, destinations) = trainer.pass(weights)?;
        let loss = self.tape.slot(0);
        evaluator.cross_entropy(LossPass { subject, batch, scale, destinations: Some(destinations), loss })?;
        let gradient_norm = trainer.gradients()?.squared_norm(&backend)?.sqrt();
        let loss = self.tape.read_one(&backend, 0)?;
        let skipped = !(gradient_norm.is_finite() && loss.is_finite());
        self.skipped_in_a_row = if skipped { self.skipped_in_a_row + 1 } else { 0 };
        if self.skipped_in_a_row >= MOST_SKIPS {
            let what = format!("the loss or gradient, {MOST_SKIPS} steps in a row,");
            return Err(Error::NonFinite { what, step, remedy: self.remedy.into() });
        }
        if !skipped {
            trainer.apply(evaluator, weights)?;
        }
        Ok(StepReport { loss, gradient_norm, lr, skipped })
    }
}
