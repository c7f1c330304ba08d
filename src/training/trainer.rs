//! What a fine-tuning run keeps besides the model's own weights, with a whole gradient.

use super::Moments;
use crate::error::Result;
use crate::model::{Adapter, AdapterConfig, GradientDestinations, Gradients, Model, ModelLayout, Parameters};
use crate::objective::{Evaluator, LossBatch, LossPass, LossSlot, Subject};
use crate::ops::{Backend, Dropout};
use crate::optimizer::{Optimizer, OptimizerConfig};

/// Gradients, an optimizer, and what it trains: all weights or LoRA factors. Losses add to the gradients, and
/// [`Trainer::apply`] takes the step.
pub struct Trainer<B: Backend> {
    gradients: Gradients<B>,
    optimizer: Optimizer<B>,
    adapter: Option<Adapter<B>>,
    seed: u64,
}

impl<B: Backend> Trainer<B> {
    /// Trains `adapter`, or all weights where there is none. The factors of LoRA are 0 until [`Trainer::restart`] draws them.
    pub fn new(model: &Model<B>, adapter: Option<&AdapterConfig>, optimizer: OptimizerConfig) -> Result<Self> {
        let backend = &model.backend;
        match adapter {
            None => Self::full(backend, model.layout(), optimizer),
            Some(config) => Self::lora(backend, Adapter::zeros(backend, &model.config, config.clone())?, optimizer, 0),
        }
    }

    /// As [`Trainer::new`], at the start of a run: the factors of LoRA are drawn by `seed`, as their dropout masks will be.
    pub fn started(
        model: &Model<B>,
        adapter: Option<&AdapterConfig>,
        optimizer: OptimizerConfig,
        seed: u64,
    ) -> Result<Self> {
        let mut trainer = Self::new(model, adapter, optimizer)?;
        trainer.seed = seed;
        if let Some(adapter) = &mut trainer.adapter {
            adapter.initialise(&model.backend, seed, 0)?;
        }
        Ok(trainer)
    }

    /// Trains all weights of a model of this layout.
    pub fn full(backend: &B, layout: &ModelLayout, config: OptimizerConfig) -> Result<Self> {
        Self::full_with(backend, layout, config, Moments::F32)
    }

    /// As [`Trainer::full`], with the optimizer's states kept as `states` says.
    ///
    /// # Errors
    /// [`crate::Error::Config`] for bf16 moments on a backend that has none.
    pub fn full_with(backend: &B, layout: &ModelLayout, config: OptimizerConfig, states: Moments) -> Result<Self> {
        let optimizer = full_optimizer(backend, layout, config, states)?;
        Ok(Self { gradients: Gradients::zeros(backend, "gradient", layout)?, optimizer, adapter: None, seed: 0 })
    }

    /// Trains the factors of `adapter` and leaves the model's weights alone. `seed` keys the dropout masks.
    pub fn lora(backend: &B, adapter: Adapter<B>, config: OptimizerConfig, seed: u64) -> Result<Self> {
        let optimizer = Optimizer::new(backend, "adapter optimizer", config, adapter.parameters.layout().len())?;
        Ok(Self { gradients: adapter.gradients(backend)?, optimizer, adapter: Some(adapter), seed })
    }

    /// Starts over with a fresh optimizer, whose bf16 moments are rounded by (`seed`, `draw`); with LoRA also with freshly
    /// drawn factors, a function of the same.
    pub fn restart(&mut self, backend: &B, config: OptimizerConfig, seed: u64, draw: u64) -> Result<()> {
        self.seed = seed;
        self.optimizer.reset(backend, config)?;
        self.optimizer.key_rounding(seed, draw as u32);
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

    /// What is trained: the factors of the adapter, or `weights`.
    pub fn trained<'a>(&'a self, weights: &'a Parameters<B>) -> &'a Parameters<B> {
        self.adapter.as_ref().map_or(weights, |adapter| &adapter.parameters)
    }

    /// What is trained, to put other values in its place.
    pub fn trained_mut<'a>(&'a mut self, weights: &'a mut Parameters<B>) -> &'a mut Parameters<B> {
        match &mut self.adapter {
            Some(adapter) => &mut adapter.parameters,
            None => weights,
        }
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

    /// One step of fine-tuning on scale · cross-entropy of `batch`, taken without a look at its numbers.
    pub fn cross_entropy_step(
        &mut self,
        evaluator: &mut Evaluator<B>,
        weights: &mut Parameters<B>,
        batch: &LossBatch<B>,
        scale: f32,
        loss: LossSlot<B>,
    ) -> Result<()> {
        self.clear_gradients(&evaluator.model().backend)?;
        let (subject, destinations) = self.pass(weights);
        evaluator.cross_entropy(LossPass { subject, batch, scale, destinations: Some(destinations), loss })?;
        self.apply(evaluator, weights)
    }

    /// Sets the gradients to zero; the losses of a step add to them.
    pub fn clear_gradients(&mut self, backend: &B) -> Result<()> {
        self.gradients.clear(backend)
    }

    /// What a loss is taken at in a step (`weights` with the adapter and its dropout), and where its gradient goes.
    pub fn pass<'a>(&'a mut self, weights: &'a Parameters<B>) -> (Subject<'a, B>, GradientDestinations<'a, B>) {
        let dropout = self.dropout();
        let adapter = self.adapter.as_ref();
        let destinations = match adapter {
            None => GradientDestinations::of_weights(&mut self.gradients),
            Some(_) => GradientDestinations::of_adapter(&mut self.gradients),
        };
        (Subject { weights, adapter, dropout }, destinations)
    }

    /// Whether every gradient is finite. Waits for the device.
    pub fn gradients_are_finite(&self, backend: &B) -> Result<bool> {
        Ok(self.gradients.squared_norm(backend)?.is_finite())
    }

    /// The optimizer's step on what is trained.
    pub fn apply(&mut self, evaluator: &Evaluator<B>, weights: &mut Parameters<B>) -> Result<()> {
        let trained = match &mut self.adapter {
            Some(adapter) => &mut adapter.parameters,
            None => weights,
        };
        self.optimizer.step(&evaluator.model().backend, trained, &self.gradients)
    }

    fn dropout(&self) -> Option<Dropout> {
        let probability = self.adapter.as_ref()?.config.dropout as f32;
        let step = self.optimizer.progress().step as u32;
        (probability > 0.0).then_some(Dropout { probability, seed: self.seed, site: 0, step })
    }
}

/// The optimizer of all weights.
pub(super) fn full_optimizer<B: Backend>(
    backend: &B,
    layout: &ModelLayout,
    config: OptimizerConfig,
    states: Moments,
) -> Result<Optimizer<B>> {
    match states {
        Moments::F32 => Optimizer::new(backend, "optimizer", config, layout.len()),
        Moments::Bf16 => Optimizer::with_bf16_moments(backend, "optimizer", config, layout.len()),
    }
}
