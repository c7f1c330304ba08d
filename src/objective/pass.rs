//! The operands of losses: those that all losses have, and those that are particular to one.

use super::{EntropyOver, LossBatch, LossSlot, Teacher};
use crate::model::{GradientDestinations, HiddenStates, Parameters, PartGradients, PartStep, Subject};
use crate::ops::{Backend, Tensor};

/// The operands that every loss has.
pub struct LossPass<'a, B: Backend> {
    /// The weights that the loss is taken at.
    pub subject: Subject<'a, B>,
    /// The batch.
    pub batch: &'a LossBatch<B>,
    /// The factor on the gradient. The loss itself is reported without it.
    pub scale: f32,
    /// The buffers that scale · gradient is added to; `None` computes the loss alone.
    pub destinations: Option<GradientDestinations<'a, B>>,
    /// The slot that the loss is added to.
    pub loss: LossSlot<'a, B>,
}

/// The operands of a cross-entropy whose backward pass steps each part of the weights as soon as its gradient is complete.
pub struct SteppingPass<'a, B: Backend> {
    /// The weights: read by the pass, changed by `stepper`.
    pub weights: &'a mut Parameters<B>,
    /// The batch.
    pub batch: &'a LossBatch<B>,
    /// The factor on the gradient. The loss itself is reported without it.
    pub scale: f32,
    /// Memory for the gradient of one part at a time.
    pub gradients: &'a mut PartGradients<B>,
    /// The step of each part.
    pub stepper: &'a mut dyn PartStep<B>,
    /// The slot that the loss is added to.
    pub loss: LossSlot<'a, B>,
}

/// The hidden states that [`Evaluator::retain`](super::Evaluator::retain) measures distances to.
#[derive(Clone, Copy)]
pub struct Representations<'a, B: Backend> {
    /// The reference model's, of the same batch: [`Evaluator::hidden_states`](super::Evaluator::hidden_states).
    pub reference: &'a HiddenStates<B>,
    /// Positions that the mean distance is taken over.
    pub over: EntropyOver,
}

/// The directions that [`Evaluator::random_mapping`](super::Evaluator::random_mapping) turns hidden states to.
#[derive(Clone, Copy)]
pub struct Directions<'a, B: Backend> {
    /// One direction for each token of the vocabulary, [V, d].
    pub table: &'a Tensor<B>,
    /// Positions that the mean is taken over.
    pub over: EntropyOver,
}

/// The hyperparameter of direct preference optimization, and the reference model's opinion of the batch.
#[derive(Clone, Copy, Debug)]
pub struct PreferencePairs<'a> {
    /// log p(chosen) − log p(rejected) of each pair under the reference model:
    /// [`Evaluator::preference_margins`](super::Evaluator::preference_margins).
    pub reference_margins: &'a [f32],
    /// β.
    pub beta: f32,
}

/// The hyperparameters of a negative preference loss with a reference model, and that model's opinion of the batch.
#[derive(Clone, Copy, Debug)]
pub struct NegativePreferences<'a> {
    /// The log-probability of each sequence's learned tokens under the reference model:
    /// [`Evaluator::sequence_log_probabilities`](super::Evaluator::sequence_log_probabilities).
    pub reference_log_probabilities: &'a [f64],
    /// β.
    pub beta: f32,
    /// Whether log-probabilities are divided by the number of learned tokens of their sequence.
    pub length_normalised: bool,
}

/// The hyperparameters of a negative preference loss without a reference model.
#[derive(Clone, Copy, Debug)]
pub struct Margin {
    /// β.
    pub beta: f32,
    /// γ, the margin.
    pub gamma: f32,
}

/// The predictions that [`Evaluator::teacher_divergence`](super::Evaluator::teacher_divergence) compares with.
#[derive(Clone, Copy)]
pub struct Teaching<'a, B: Backend> {
    /// The teacher's, of the same batch: [`Evaluator::teacher`](super::Evaluator::teacher).
    pub teacher: &'a Teacher<B>,
    /// Positions that the mean is taken over.
    pub over: EntropyOver,
}
