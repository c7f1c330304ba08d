//! The plain safeguards: the first step of hardening, which removes a capability or teaches refusal. Fine-tuning brings
//! it back within a few steps; making that hard is TAR's part. `lox` strengthens what a safeguard changed, without training.

mod disturbance;
mod low_rank;
mod lox;

use std::sync::Arc;

pub use disturbance::{Disturbance, disturb};
pub use lox::{Extrapolation, extrapolate};

use crate::error::Result;
use crate::model::{Model, Parameters};
use crate::objective::{
    Directions, EntropyOver, Evaluator, LossBatch, LossPass, LossTape, PreferencePairs, Representations, Subject,
};
use crate::ops::{Backend, Tensor};
use crate::optimizer::OptimizerConfig;
use crate::random::{Random, Stream};
use crate::training::{StepGuard, Trainer};

/// How the capability is removed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RemovalLoss {
    /// Every hidden state of restricted text is pulled to a random direction of its token (TAR, appendix).
    RandomMapping {
        /// Seed of the directions.
        seed: u64,
        /// Positions that the loss averages over.
        over: EntropyOver,
    },
    /// The next-token distribution on restricted text is made uniform.
    MaxEntropy {
        /// Positions that the loss averages over.
        over: EntropyOver,
    },
    /// Refusals are preferred to compliance (DPO on pairs).
    Refusal {
        /// β.
        beta: f32,
    },
}

/// The losses of a step, before it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Losses {
    /// The loss on restricted data.
    pub removal: f64,
    /// The loss on retain data: cross-entropy and distance to the reference model's hidden states.
    pub retain: f64,
    /// Whether the step was left out, because a number was not finite.
    pub skipped: bool,
}

/// A method with what it needs on the device.
enum Removal<B: Backend> {
    /// `table`: one direction for each token, [V, d].
    RandomMapping {
        table: Tensor<B>,
        over: EntropyOver,
    },
    MaxEntropy {
        over: EntropyOver,
    },
    Refusal {
        beta: f32,
    },
}

/// A safeguard being trained.
pub struct Safeguard<B: Backend> {
    removal: Removal<B>,
    representations_over: EntropyOver,
    trainer: Trainer<B>,
    tape: LossTape<B>,
    guard: StepGuard,
}

impl<B: Backend> Safeguard<B> {
    /// A fresh run of `method` with an optimizer of its own.
    pub fn new(
        model: &Arc<Model<B>>,
        method: RemovalLoss,
        optimizer: OptimizerConfig,
        representations_over: EntropyOver,
    ) -> Result<Self> {
        let backend = &model.backend;
        let removal = match method {
            RemovalLoss::RandomMapping { seed, over } => {
                Removal::RandomMapping { table: random_directions(model, seed)?, over }
            }
            RemovalLoss::MaxEntropy { over } => Removal::MaxEntropy { over },
            RemovalLoss::Refusal { beta } => Removal::Refusal { beta },
        };
        Ok(Self {
            removal,
            representations_over,
            trainer: Trainer::full(backend, model.layout(), optimizer)?,
            tape: LossTape::new(backend, 3)?,
            guard: StepGuard::new("a loss or gradient of the safeguard", "lower its learning rate"),
        })
    }

    /// The optimizer and its state.
    pub fn trainer(&self) -> &Trainer<B> {
        &self.trainer
    }

    /// One step on the sum of the removal loss and the retain loss.
    ///
    /// # Errors
    /// [`crate::Error::NonFinite`] at the third step in a row that had to be left out.
    pub fn step(
        &mut self,
        evaluator: &mut Evaluator<B>,
        weights: &mut Parameters<B>,
        reference: &Parameters<B>,
        restricted: &LossBatch<B>,
        retain: &LossBatch<B>,
    ) -> Result<Losses> {
        let backend = evaluator.model().backend.clone();
        self.tape.clear(&backend)?;
        let reference_margins = match self.removal {
            Removal::Refusal { .. } => evaluator.preference_margins(Subject::plain(reference), restricted)?,
            _ => Vec::new(),
        };
        self.trainer.clear_gradients(&backend)?;
        let (subject, destinations) = self.trainer.pass(weights);
        let destinations = Some(destinations);
        let pass = LossPass { subject, batch: restricted, scale: 1.0, destinations, loss: self.tape.slot(0) };
        match &self.removal {
            Removal::RandomMapping { table, over } => {
                evaluator.random_mapping(pass, Directions { table, over: *over })?;
            }
            Removal::MaxEntropy { over } => evaluator.negative_entropy(pass, *over)?,
            Removal::Refusal { beta } => {
                evaluator.preference(pass, PreferencePairs { reference_margins: &reference_margins, beta: *beta })?;
            }
        }
        let (subject, destinations) = self.trainer.pass(weights);
        let destinations = Some(destinations);
        let pass = LossPass { subject, batch: retain, scale: 1.0, destinations, loss: self.tape.slot(1) };
        match self.removal {
            // The authors' random mapping keeps the language-model loss alone.
            Removal::RandomMapping { .. } => evaluator.cross_entropy(pass)?,
            _ => {
                let states = evaluator.hidden_states(reference, retain)?;
                let over = self.representations_over;
                evaluator.retain(pass, Representations { reference: &states, over })?;
                evaluator.give_back(states);
            }
        }
        let losses = self.tape.read(&backend)?;
        let removal = losses[0];
        let retain = losses[1] + losses[2];
        let finite = (removal + retain).is_finite() && self.trainer.gradients_are_finite(&backend)?;
        let skipped = self.guard.skips(finite, self.trainer.optimizer().progress().step)?;
        if !skipped {
            self.trainer.apply(evaluator, weights)?;
        }
        Ok(Losses { removal, retain, skipped })
    }
}

/// One standard normal direction for each token.
fn random_directions<B: Backend>(model: &Model<B>, seed: u64) -> Result<Tensor<B>> {
    let rows = model.config.vocab_size;
    let cols = model.config.hidden_size;
    let mut random = Random::new(seed, Stream::RandomMapping, 0, 0);
    let values: Vec<f32> = (0..rows * cols).map(|_| random.normal() as f32).collect();
    Tensor::from_f32(&model.backend, "random directions", rows, cols, &values)
}
