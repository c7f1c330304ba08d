//! [`TermLoss`]: the losses that a defence is composed of, each a method of the [`Evaluator`], under one interface.

use super::{EntropyOver, Evaluator, HiddenTerm, LossBatch, LossPass, PreferencePairs, Representations};
use crate::error::{Error, Result};
use crate::model::{HiddenStates, Parameters, Subject};
use crate::ops::Backend;

/// A loss that a term of a defence minimises. Its weight and sign are the scale of the [`LossPass`].
#[derive(Clone, Debug, PartialEq)]
pub enum TermLoss {
    /// [`Evaluator::cross_entropy`].
    CrossEntropy,
    /// [`Evaluator::negative_entropy`].
    NegativeEntropy {
        /// Positions that the mean is taken over.
        over: EntropyOver,
    },
    /// [`Evaluator::preference`] against the reference model.
    Preference {
        /// β.
        beta: f32,
    },
    /// [`Evaluator::retain`]: cross-entropy, and the distance to the reference model's hidden states in a slot of its own.
    Retain {
        /// Positions that the distance averages over.
        over: EntropyOver,
    },
    /// [`Evaluator::chosen_states`].
    HiddenStates(HiddenTerm),
}

/// What the reference model contributes to a loss on one batch, computed while the reference's weights are at hand. The
/// default is the contribution to a loss that needs no reference.
pub struct Prepared<B: Backend>(Contribution<B>);

enum Contribution<B: Backend> {
    Nothing,
    /// log p(chosen) − log p(rejected) of each pair.
    Margins(Vec<f32>),
    States(HiddenStates<B>),
}

impl<B: Backend> Default for Prepared<B> {
    fn default() -> Self {
        Self(Contribution::Nothing)
    }
}

impl<B: Backend> Prepared<B> {
    /// Gives the memory back to the evaluator that it was prepared with, so that the next batch's needs none of its own.
    pub fn give_back(self, evaluator: &mut Evaluator<B>) {
        match self.0 {
            Contribution::Nothing | Contribution::Margins(_) => {}
            Contribution::States(states) => evaluator.give_back(states),
        }
    }
}

impl TermLoss {
    /// Whether the loss compares with the reference model, so that [`TermLoss::prepare`] has something to compute.
    pub fn needs_reference(&self) -> bool {
        match self {
            Self::CrossEntropy | Self::NegativeEntropy { .. } => false,
            Self::Preference { .. } | Self::Retain { .. } => true,
            Self::HiddenStates(term) => term.needs_reference(),
        }
    }

    /// The number of slots of a tape that the loss fills, from its pass's slot on.
    pub fn slots(&self) -> usize {
        match self {
            Self::CrossEntropy | Self::NegativeEntropy { .. } | Self::Preference { .. } | Self::HiddenStates(_) => 1,
            Self::Retain { .. } => 2,
        }
    }

    /// Computes what the reference model contributes on `batch`. It holds for any number of passes on the same batch.
    pub fn prepare<B: Backend>(
        &self,
        evaluator: &mut Evaluator<B>,
        reference: &Parameters<B>,
        batch: &LossBatch<B>,
    ) -> Result<Prepared<B>> {
        Ok(Prepared(match self {
            Self::CrossEntropy | Self::NegativeEntropy { .. } => Contribution::Nothing,
            Self::Preference { .. } => {
                Contribution::Margins(evaluator.preference_margins(Subject::plain(reference), batch)?)
            }
            Self::Retain { .. } => Contribution::States(evaluator.hidden_states(reference, batch)?),
            Self::HiddenStates(term) if term.needs_reference() => {
                Contribution::States(evaluator.reference_states(term, reference, batch)?)
            }
            Self::HiddenStates(_) => Contribution::Nothing,
        }))
    }

    /// Computes the loss and, where the pass asks for it, adds its gradient.
    ///
    /// # Errors
    /// [`Error::Defect`] where `prepared` is another loss's.
    pub fn evaluate<B: Backend>(
        &self,
        evaluator: &mut Evaluator<B>,
        pass: LossPass<B>,
        prepared: &Prepared<B>,
    ) -> Result<()> {
        match (self, &prepared.0) {
            (Self::CrossEntropy, _) => evaluator.cross_entropy(pass),
            (Self::NegativeEntropy { over }, _) => evaluator.negative_entropy(pass, *over),
            (Self::Preference { beta }, Contribution::Margins(reference_margins)) => {
                evaluator.preference(pass, PreferencePairs { reference_margins, beta: *beta })
            }
            (Self::Retain { over }, Contribution::States(reference)) => {
                evaluator.retain(pass, Representations { reference, over: *over })
            }
            (Self::HiddenStates(term), Contribution::States(states)) => {
                evaluator.chosen_states(pass, term, Some(states))
            }
            (Self::HiddenStates(term), _) => evaluator.chosen_states(pass, term, None),
            (Self::Preference { .. } | Self::Retain { .. }, _) => {
                Err(Error::Defect(format!("{self:?} was not prepared with the reference model")))
            }
        }
    }
}
