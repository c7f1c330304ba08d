//! Full-parameter training without a whole gradient, and the choice between it and a [`Trainer`].

use super::trainer::full_optimizer;
use super::{MemorySettings, Trainer};
use crate::error::Result;
use crate::model::{Adapter, AdapterConfig, Model, ModelLayout, Parameters, PartGradients};
use crate::objective::{Evaluator, LossBatch, LossSlot, SteppingPass, Subject};
use crate::ops::Backend;
use crate::optimizer::{Optimizer, OptimizerConfig};

/// Trains all weights, each part of them within the backward pass, as soon as its gradient is complete: nobody can look at a
/// gradient before the step is taken.
pub struct SteppingTrainer<B: Backend> {
    gradients: PartGradients<B>,
    optimizer: Optimizer<B>,
}

impl<B: Backend> SteppingTrainer<B> {
    /// One step of fine-tuning on scale · cross-entropy of `batch`.
    pub fn cross_entropy_step(
        &mut self,
        evaluator: &mut Evaluator<B>,
        weights: &mut Parameters<B>,
        batch: &LossBatch<B>,
        scale: f32,
        loss: LossSlot<B>,
    ) -> Result<()> {
        let step = self.optimizer.begin(&evaluator.model().backend)?;
        let gradients = &mut self.gradients;
        let stepper = &mut self.optimizer;
        evaluator.cross_entropy_stepping(SteppingPass { weights, batch, scale, gradients, stepper, loss })?;
        self.optimizer.finish(step);
        Ok(())
    }
}

/// A trainer for steps that nobody looks at before they are taken; it keeps a whole gradient or none.
pub enum AnyTrainer<B: Backend> {
    /// With a whole gradient.
    Whole(Trainer<B>),
    /// Without one.
    Stepping(SteppingTrainer<B>),
}

impl<B: Backend> AnyTrainer<B> {
    /// Trains `adapter`, or all weights where there is none; then the optimizer's states and the gradients are kept as
    /// `memory` says. The factors of LoRA are 0 until [`AnyTrainer::restart`] draws them.
    ///
    /// # Errors
    /// [`crate::Error::Config`] for bf16 moments on a backend that has none.
    pub fn new(
        model: &Model<B>,
        adapter: Option<&AdapterConfig>,
        optimizer: OptimizerConfig,
        memory: MemorySettings,
    ) -> Result<Self> {
        match adapter {
            None => Self::full(&model.backend, model.layout(), optimizer, memory),
            Some(_) => Ok(Self::Whole(Trainer::new(model, adapter, optimizer)?)),
        }
    }

    /// Trains all weights of a model of this layout.
    ///
    /// # Errors
    /// The same as [`AnyTrainer::new`]'s.
    pub fn full(backend: &B, layout: &ModelLayout, config: OptimizerConfig, memory: MemorySettings) -> Result<Self> {
        if !memory.step_in_backward {
            return Ok(Self::Whole(Trainer::full_with(backend, layout, config, memory.states)?));
        }
        let optimizer = full_optimizer(backend, layout, config, memory.states)?;
        Ok(Self::Stepping(SteppingTrainer { gradients: PartGradients::new(backend, "gradient", layout)?, optimizer }))
    }

    /// As [`Trainer::restart`].
    pub fn restart(&mut self, backend: &B, config: OptimizerConfig, seed: u64, draw: u64) -> Result<()> {
        match self {
            Self::Whole(trainer) => trainer.restart(backend, config, seed, draw),
            Self::Stepping(trainer) => {
                trainer.optimizer.reset(backend, config)?;
                trainer.optimizer.key_rounding(seed, draw as u32);
                Ok(())
            }
        }
    }

    /// The adapter, where LoRA is trained.
    pub fn adapter(&self) -> Option<&Adapter<B>> {
        match self {
            Self::Whole(trainer) => trainer.adapter(),
            Self::Stepping(_) => None,
        }
    }

    /// The optimizer.
    pub fn optimizer(&self) -> &Optimizer<B> {
        match self {
            Self::Whole(trainer) => trainer.optimizer(),
            Self::Stepping(trainer) => &trainer.optimizer,
        }
    }

    /// The optimizer, to start it anew.
    pub fn optimizer_mut(&mut self) -> &mut Optimizer<B> {
        match self {
            Self::Whole(trainer) => trainer.optimizer_mut(),
            Self::Stepping(trainer) => &mut trainer.optimizer,
        }
    }

    /// As [`Trainer::subject`].
    pub fn subject<'a>(&'a self, weights: &'a Parameters<B>) -> Subject<'a, B> {
        Subject { weights, adapter: self.adapter(), dropout: None }
    }

    /// One step of fine-tuning on scale · cross-entropy of `batch`, taken without a look at its numbers.
    pub fn cross_entropy_step(
        &mut self,
        evaluator: &mut Evaluator<B>,
        weights: &mut Parameters<B>,
        batch: &LossBatch<B>,
        scale: f32,
        loss: LossSlot<B>,
    ) -> Result<()> {
        match self {
            Self::Whole(trainer) => trainer.cross_entropy_step(evaluator, weights, batch, scale, loss),
            Self::Stepping(trainer) => trainer.cross_entropy_step(evaluator, weights, batch, scale, loss),
        }
    }
}
