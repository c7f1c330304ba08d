//! [`TermLoss`]: the losses that a defence is composed of, each a method of the [`Evaluator`], under one interface.

use serde::{Deserialize, Serialize};

use super::{
    EntropyOver, Evaluator, HiddenTerm, LossBatch, LossPass, Margin, NegativePreferences, PreferencePairs,
    Representations, Teacher, Teaching,
};
use crate::error::{Error, Result};
use crate::model::{HiddenStates, Parameters, Subject};
use crate::ops::Backend;
use crate::settings::{finite, positive};

/// A loss that a term of a defence minimises. Its weight and sign are the scale of the [`LossPass`]. Run files write it by its
/// name, or as a table of its name and its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TermLoss {
    /// [`Evaluator::cross_entropy`].
    CrossEntropy,
    /// [`Evaluator::negative_entropy`].
    #[serde(rename = "max_entropy")]
    NegativeEntropy {
        /// Positions that the mean is taken over.
        #[serde(default)]
        over: EntropyOver,
    },
    /// [`Evaluator::preference`] against the reference model.
    #[serde(rename = "dpo")]
    Preference {
        /// β.
        beta: f32,
    },
    /// [`Evaluator::retain`]: cross-entropy, and the distance to the reference model's hidden states in a slot of its own.
    Retain {
        /// Positions that the distance averages over.
        #[serde(default)]
        over: EntropyOver,
    },
    /// [`Evaluator::chosen_states`].
    HiddenStates(HiddenTerm),
    /// [`Evaluator::negative_preference`] against the reference model (NPO).
    #[serde(rename = "npo")]
    NegativePreference {
        /// β.
        beta: f32,
        /// Whether log-probabilities are divided by the number of learned tokens of their sequence.
        #[serde(default)]
        length_normalised: bool,
    },
    /// [`Evaluator::simple_negative_preference`] (SimNPO).
    #[serde(rename = "simnpo")]
    SimpleNegativePreference {
        /// β.
        beta: f32,
        /// γ.
        gamma: f32,
    },
    /// [`Evaluator::collapse`].
    Collapse {
        /// The token that is to follow every other.
        token: u32,
        /// Positions that the mean is taken over.
        #[serde(default = "learned")]
        over: EntropyOver,
    },
    /// [`Evaluator::teacher_divergence`], with the reference model as the teacher.
    TeacherDivergence {
        /// Positions that the mean is taken over.
        #[serde(default = "learned")]
        over: EntropyOver,
    },
}

/// What the papers of these losses average over.
fn learned() -> EntropyOver {
    EntropyOver::Learned
}

/// What the reference model contributes to a loss on one batch, computed while the reference's weights are at hand. The
/// default is the contribution to a loss that needs no reference.
pub struct Prepared<B: Backend>(Contribution<B>);

enum Contribution<B: Backend> {
    Nothing,
    /// log p(chosen) − log p(rejected) of each pair.
    Margins(Vec<f32>),
    /// The log-probability of each sequence.
    LogProbabilities(Vec<f64>),
    States(HiddenStates<B>),
    Teacher(Teacher<B>),
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
            Contribution::Nothing | Contribution::Margins(_) | Contribution::LogProbabilities(_) => {}
            Contribution::States(states) => evaluator.give_back(states),
            Contribution::Teacher(teacher) => evaluator.give_back_teacher(teacher),
        }
    }
}

impl TermLoss {
    /// Whether the loss compares with the reference model, so that [`TermLoss::prepare`] has something to compute.
    pub fn needs_reference(&self) -> bool {
        match self {
            Self::CrossEntropy
            | Self::NegativeEntropy { .. }
            | Self::SimpleNegativePreference { .. }
            | Self::Collapse { .. } => false,
            Self::Preference { .. }
            | Self::Retain { .. }
            | Self::NegativePreference { .. }
            | Self::TeacherDivergence { .. } => true,
            Self::HiddenStates(term) => term.needs_reference(),
        }
    }

    /// The number of slots of a tape that the loss fills, from its pass's slot on.
    pub fn slots(&self) -> usize {
        match self {
            Self::Retain { .. } => 2,
            Self::HiddenStates(_)
            | Self::CrossEntropy
            | Self::NegativeEntropy { .. }
            | Self::Preference { .. }
            | Self::NegativePreference { .. }
            | Self::SimpleNegativePreference { .. }
            | Self::Collapse { .. }
            | Self::TeacherDivergence { .. } => 1,
        }
    }

    /// The number of sequences that each sample of its data is: pairs are two.
    pub fn sequences_of_sample(&self) -> usize {
        if matches!(self, Self::Preference { .. }) { 2 } else { 1 }
    }

    /// Whether it keeps the reference model's hidden states between [`TermLoss::prepare`] and its last pass.
    pub fn keeps_hidden_states(&self) -> bool {
        match self {
            Self::Retain { .. } => true,
            Self::HiddenStates(term) => term.needs_reference(),
            Self::CrossEntropy
            | Self::NegativeEntropy { .. }
            | Self::Preference { .. }
            | Self::NegativePreference { .. }
            | Self::SimpleNegativePreference { .. }
            | Self::Collapse { .. }
            | Self::TeacherDivergence { .. } => false,
        }
    }

    /// Whether it keeps a teacher between [`TermLoss::prepare`] and its last pass: [`teacher_bytes`](super::teacher_bytes).
    pub fn keeps_teacher(&self) -> bool {
        matches!(self, Self::TeacherDivergence { .. })
    }

    /// Fails where a setting is out of its range. `key` is the place of the loss.
    pub(crate) fn check(&self, key: &str) -> Result<()> {
        match self {
            Self::Preference { beta } => positive(&format!("{key}.dpo.beta"), f64::from(*beta)),
            Self::HiddenStates(term) => term.check(&format!("{key}.hidden_states")),
            Self::NegativePreference { beta, .. } => positive(&format!("{key}.npo.beta"), f64::from(*beta)),
            Self::SimpleNegativePreference { beta, gamma } => {
                positive(&format!("{key}.simnpo.beta"), f64::from(*beta))?;
                finite(&format!("{key}.simnpo.gamma"), f64::from(*gamma))
            }
            Self::CrossEntropy
            | Self::NegativeEntropy { .. }
            | Self::Retain { .. }
            | Self::Collapse { .. }
            | Self::TeacherDivergence { .. } => Ok(()),
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
            Self::CrossEntropy
            | Self::NegativeEntropy { .. }
            | Self::SimpleNegativePreference { .. }
            | Self::Collapse { .. } => Contribution::Nothing,
            Self::Preference { .. } => {
                Contribution::Margins(evaluator.preference_margins(Subject::plain(reference), batch)?)
            }
            Self::NegativePreference { .. } => {
                Contribution::LogProbabilities(evaluator.sequence_log_probabilities(Subject::plain(reference), batch)?)
            }
            Self::Retain { .. } => Contribution::States(evaluator.hidden_states(reference, batch)?),
            Self::HiddenStates(term) if term.needs_reference() => {
                Contribution::States(evaluator.reference_states(term, reference, batch)?)
            }
            Self::HiddenStates(_) => Contribution::Nothing,
            Self::TeacherDivergence { .. } => Contribution::Teacher(evaluator.teacher(reference, batch)?),
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
            (
                Self::NegativePreference { beta, length_normalised },
                Contribution::LogProbabilities(reference_log_probabilities),
            ) => {
                let (beta, length_normalised) = (*beta, *length_normalised);
                let preferences = NegativePreferences { reference_log_probabilities, beta, length_normalised };
                evaluator.negative_preference(pass, preferences)
            }
            (Self::SimpleNegativePreference { beta, gamma }, _) => {
                evaluator.simple_negative_preference(pass, Margin { beta: *beta, gamma: *gamma })
            }
            (Self::Collapse { token, over }, _) => evaluator.collapse(pass, *token, *over),
            (Self::TeacherDivergence { over }, Contribution::Teacher(teacher)) => {
                evaluator.teacher_divergence(pass, Teaching { teacher, over: *over })
            }
            (
                Self::Preference { .. }
                | Self::Retain { .. }
                | Self::NegativePreference { .. }
                | Self::TeacherDivergence { .. },
                _,
            ) => Err(Error::Defect(format!("{self:?} was not prepared with the reference model"))),
        }
    }
}
