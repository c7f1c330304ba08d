//! One fine-tuning run: gradients, an optimizer, and what it trains (all weights or LoRA factors). Attacks, simulated
//! attacks, safeguards and the demonstration's pre-training all step through here.

mod guarded;

pub use guarded::{GuardedSteps, StepReport};

use std::sync::Arc;

use crate::error::Result;
use crate::model::{Adapter, GradientTargets, Gradients, ParameterLayout, Parameters};
use crate::objective::{Evaluator, LossBatch, LossTape, Subject};
use crate::ops::{Backend, Dropout};
use crate::optimizer::{Optimizer, OptimizerConfig};

/// The state of a fine-tuning run besides the model's own weights.
pub struct Trainer<B: Backend> {
    gradients: Gradients<B>,
    optimizer: Optimizer<B>,
    adapter: Option<Adapter<B>>,
    seed: u64,
}

impl<B: Backend> Trainer<B> {
    /// Trains all weights of a model of this layout.
    pub fn full(backend: &B, layout: Arc<ParameterLayout>, config: OptimizerConfig) -> Result<Self> {
        let optimizer = Optimizer::new(backend, "optimizer", config, layout.len())?;
        let gradients = Gradients::zeros(backend, "gradient", layout)?;
        Ok(Self { gradients, optimizer, adapter: None, seed: 0 })
    }

    /// Trains the factors of `adapter` and leaves the model's weights alone. `seed` keys the dropout masks.
    pub fn lora(backend: &B, adapter: Adapter<B>, config: OptimizerConfig, seed: u64) -> Result<Self> {
        let optimizer = Optimizer::new(backend, "adapter optimizer", config, adapter.parameters.layout().len())?;
        Ok(Self { gradients: adapter.gradients(backend)?, optimizer, adapter: Some(adapter), seed })
    }

    /// Starts over with a fresh optimizer; with LoRA also with freshly drawn factors, a function of (`seed`, `draw`).
    pub fn restart(&mut self, backend: &B, config: OptimizerConfig, seed: u64, draw: u64) -> Result<()> {
        self.seed = seed;
        self.optimizer.reset(backend, config)?;
        match &mut self.adapter {
            Some(adapter) => adapter.initialise(backend, seed, draw),
            None => Ok(()),
        }
    }

    /// The adapter, where LoRA is trained.
    pub fn adapter(&self) -> Option<&Adapter<B>> {
        self.adapter.as_ref()
    }

    /// The adapter, to restore it.
    pub fn adapter_mut(&mut self) -> Option<&mut Adapter<B>> {
        self.adapter.as_mut()
    }

    /// The optimizer.
    pub fn optimizer(&self) -> &Optimizer<B> {
        &self.optimizer
    }

    /// The optimizer, to restore it.
    pub fn optimizer_mut(&mut self) -> &mut Optimizer<B> {
        &mut self.optimizer
    }

    /// The gradients of the last step.
    pub fn gradients(&self) -> &Gradients<B> {
        &self.gradients
    }

    /// `weights` together with what this run has trained, as evaluation sees it: without dropout.
    pub fn subject<'a>(&'a self, weights: &'a Parameters<B>) -> Subject<'a, B> {
        Subject { weights, adapter: self.adapter.as_ref(), dropout: None }
    }

    /// One step of fine-tuning on the cross-entropy of `batch`; its loss goes to `tape[slot]`.
    pub fn cross_entropy_step(
        &mut self,
        evaluator: &mut Evaluator<B>,
        weights: &mut Parameters<B>,
        batch: &LossBatch<B>,
        tape: &mut LossTape<B>,
        slot: usize,
    ) -> Result<()> {
        self.accumulate(evaluator, weights, |evaluator, subject, targets| {
            evaluator.cross_entropy(subject, batch, 1.0, Some(targets), tape, slot)
        })?;
        self.apply(evaluator, weights)
    }

    /// Clears the gradients and lets `pass` add to them.
    pub fn accumulate(
        &mut self,
        evaluator: &mut Evaluator<B>,
        weights: &Parameters<B>,
        pass: impl FnOnce(&mut Evaluator<B>, Subject<B>, GradientTargets<B>) -> Result<()>,
    ) -> Result<()> {
        self.gradients.clear(&evaluator.model().backend)?;
        self.accumulate_more(evaluator, weights, pass)
    }

    /// Lets `pass` add to the gradients of [`Trainer::accumulate`].
    pub fn accumulate_more(
        &mut self,
        evaluator: &mut Evaluator<B>,
        weights: &Parameters<B>,
        pass: impl FnOnce(&mut Evaluator<B>, Subject<B>, GradientTargets<B>) -> Result<()>,
    ) -> Result<()> {
        let subject = Subject { weights, adapter: self.adapter.as_ref(), dropout: self.dropout() };
        let targets = match &self.adapter {
            None => GradientTargets { weights: Some(&mut self.gradients), adapter: None },
            Some(_) => GradientTargets { weights: None, adapter: Some(&mut self.gradients) },
        };
        pass(evaluator, subject, targets)
    }

    /// Whether every gradient is finite. Waits for the device.
    pub fn gradients_are_finite(&self, backend: &B) -> Result<bool> {
        Ok(self.gradients.squared_norm(backend)?.is_finite())
    }

    /// The optimizer's step on what is trained.
    pub fn apply(&mut self, evaluator: &Evaluator<B>, weights: &mut Parameters<B>) -> Result<()> {
        let backend = &evaluator.model().backend;
        let trained = match &mut self.adapter {
            Some(adapter) => &mut adapter.parameters,
            None => weights,
        };
        self.optimizer.step(backend, trained, &self.gradients)
    }

    fn dropout(&self) -> Option<Dropout> {
        let probability = self.adapter.as_ref()?.config.dropout as f32;
        let step = self.optimizer.progress().step as u32;
        (probability > 0.0).then_some(Dropout { probability, seed: self.seed, site: 0, step })
    }
}
