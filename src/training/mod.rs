//! One fine-tuning run: gradients, an optimizer, and what it trains (all weights or LoRA factors). Attacks, simulated
//! attacks, safeguards and the demonstration's pre-training all step through here.

mod guarded;

pub use guarded::{GuardedSteps, StepReport};

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::{Adapter, GradientDestinations, Gradients, ModelLayout, Parameters, PartGradients, Recompute};
use crate::objective::{Evaluator, LossBatch, LossPass, LossSlot, SteppingPass, Subject};
use crate::ops::{Backend, Dropout};
use crate::optimizer::{Optimizer, OptimizerConfig};

/// How the states of an attack's optimizer are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Moments {
    /// In f32.
    #[default]
    F32,
    /// Moments in bf16, rounded at random, where the backend keeps its weights in bf16; see [`crate::ops::StateRounding`].
    Bf16,
}

/// What a full-parameter run trades for memory. The default trades nothing. `step_in_backward` and `recompute` change no
/// bit of the results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemorySettings {
    /// How the optimizer's states are stored.
    pub states: Moments,
    /// Whether each part of the weights steps within the backward pass, so that no whole gradient is kept.
    pub step_in_backward: bool,
    /// What the backward pass computes a second time.
    pub recompute: Recompute,
}

impl fmt::Display for MemorySettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.states == Moments::F32 { "moments in f32" } else { "moments in bf16" })?;
        f.write_str(if self.step_in_backward { ", steps within the backward pass" } else { ", whole gradients" })?;
        match self.recompute {
            Recompute::Nothing => f.write_str(", no activation computed again"),
            Recompute::Cheap => f.write_str(", activations without a matrix product computed again"),
            Recompute::Layers { kept } => write!(f, ", layers run forward again, but for {kept} on the largest batch"),
        }
    }
}

/// The state of a fine-tuning run besides the model's own weights.
pub struct Trainer<B: Backend> {
    gradients: GradientMemory<B>,
    optimizer: Optimizer<B>,
    adapter: Option<Adapter<B>>,
    seed: u64,
}

/// Where gradients are kept between the backward pass and the step.
enum GradientMemory<B: Backend> {
    /// All of what is trained.
    Whole(Gradients<B>),
    /// Nothing of the kind: the step is taken within the backward pass.
    Parts(PartGradients<B>),
}

impl<B: Backend> Trainer<B> {
    /// Trains all weights of a model of this layout.
    pub fn full(backend: &B, layout: &ModelLayout, config: OptimizerConfig) -> Result<Self> {
        Self::full_with(backend, layout, config, MemorySettings::default())
    }

    /// As [`Trainer::full`], with the optimizer's states and the gradients kept as `memory` says. A trainer that steps
    /// within the backward pass takes [`Trainer::cross_entropy_step`]s alone, and steps before anybody could look at the
    /// gradient.
    ///
    /// # Errors
    /// [`Error::Config`] for bf16 moments on a backend that has none.
    pub fn full_with(
        backend: &B,
        layout: &ModelLayout,
        config: OptimizerConfig,
        memory: MemorySettings,
    ) -> Result<Self> {
        let optimizer = match memory.states {
            Moments::F32 => Optimizer::new(backend, "optimizer", config, layout.len())?,
            Moments::Bf16 => Optimizer::with_bf16_moments(backend, "optimizer", config, layout.len())?,
        };
        let gradients = match memory.step_in_backward {
            true => GradientMemory::Parts(PartGradients::new(backend, "gradient", layout)?),
            false => GradientMemory::Whole(Gradients::zeros(backend, "gradient", layout)?),
        };
        Ok(Self { gradients, optimizer, adapter: None, seed: 0 })
    }

    /// Trains the factors of `adapter` and leaves the model's weights alone. `seed` keys the dropout masks.
    pub fn lora(backend: &B, adapter: Adapter<B>, config: OptimizerConfig, seed: u64) -> Result<Self> {
        let optimizer = Optimizer::new(backend, "adapter optimizer", config, adapter.parameters.layout().len())?;
        let gradients = GradientMemory::Whole(adapter.gradients(backend)?);
        Ok(Self { gradients, optimizer, adapter: Some(adapter), seed })
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

    /// The optimizer.
    pub fn optimizer(&self) -> &Optimizer<B> {
        &self.optimizer
    }

    /// The optimizer, to restore it.
    pub fn optimizer_mut(&mut self) -> &mut Optimizer<B> {
        &mut self.optimizer
    }

    /// The gradients of the last step.
    ///
    /// # Errors
    /// When it keeps none, as do the other methods that need them.
    pub fn gradients(&self) -> Result<&Gradients<B>> {
        match &self.gradients {
            GradientMemory::Whole(gradients) => Ok(gradients),
            GradientMemory::Parts(_) => Err(no_gradient()),
        }
    }

    /// `weights` together with what this run has trained, as evaluation sees it: without dropout.
    pub fn subject<'a>(&'a self, weights: &'a Parameters<B>) -> Subject<'a, B> {
        Subject { weights, adapter: self.adapter.as_ref(), dropout: None }
    }

    /// One step of fine-tuning on the cross-entropy of `batch`.
    pub fn cross_entropy_step(
        &mut self,
        evaluator: &mut Evaluator<B>,
        weights: &mut Parameters<B>,
        batch: &LossBatch<B>,
        loss: LossSlot<B>,
    ) -> Result<()> {
        let backend = evaluator.model().backend.clone();
        if let GradientMemory::Parts(gradients) = &mut self.gradients {
            let step = self.optimizer.begin(&backend)?;
            let stepper = &mut self.optimizer;
            evaluator.cross_entropy_stepping(SteppingPass { weights, batch, gradients, stepper, loss })?;
            self.optimizer.finish(step);
            return Ok(());
        }
        self.clear_gradients(&backend)?;
        let (subject, destinations) = self.pass(weights)?;
        evaluator.cross_entropy(LossPass { subject, batch, scale: 1.0, destinations: Some(destinations), loss })?;
        self.apply(evaluator, weights)
    }

    /// Sets the gradients to zero; the losses of a step add to them.
    pub fn clear_gradients(&mut self, backend: &B) -> Result<()> {
        let GradientMemory::Whole(gradients) = &mut self.gradients else { return Err(no_gradient()) };
        gradients.clear(backend)
    }

    /// What a loss is taken at in a step (`weights` with the adapter and its dropout), and where its gradient goes.
    pub fn pass<'a>(&'a mut self, weights: &'a Parameters<B>) -> Result<(Subject<'a, B>, GradientDestinations<'a, B>)> {
        let dropout = self.dropout();
        let GradientMemory::Whole(gradients) = &mut self.gradients else { return Err(no_gradient()) };
        let adapter = self.adapter.as_ref();
        let destinations = match adapter {
            None => GradientDestinations::of_weights(gradients),
            Some(_) => GradientDestinations::of_adapter(gradients),
        };
        Ok((Subject { weights, adapter, dropout }, destinations))
    }

    /// Whether every gradient is finite. Waits for the device.
    pub fn gradients_are_finite(&self, backend: &B) -> Result<bool> {
        Ok(self.gradients()?.squared_norm(backend)?.is_finite())
    }

    /// The optimizer's step on what is trained.
    pub fn apply(&mut self, evaluator: &Evaluator<B>, weights: &mut Parameters<B>) -> Result<()> {
        let backend = &evaluator.model().backend;
        let GradientMemory::Whole(gradients) = &self.gradients else { return Err(no_gradient()) };
        let trained = match &mut self.adapter {
            Some(adapter) => &mut adapter.parameters,
            None => weights,
        };
        self.optimizer.step(backend, trained, gradients)
    }

    fn dropout(&self) -> Option<Dropout> {
        let probability = self.adapter.as_ref()?.config.dropout as f32;
        let step = self.optimizer.progress().step as u32;
        (probability > 0.0).then_some(Dropout { probability, seed: self.seed, site: 0, step })
    }
}

/// The answer to a call that needs the whole gradient of a trainer without one.
fn no_gradient() -> Error {
    Error::Defect("a trainer that steps within the backward pass keeps no whole gradient".into())
}
