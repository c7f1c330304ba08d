//! The losses that training minimises: cross-entropy, minus the entropy, preference losses (DPO, NPO, SimNPO), collapse to
//! one token, divergence from a teacher, distance to a reference model's hidden states, random mapping. An [`Evaluator`] runs forward, the loss, and backward where gradients are wanted.
//!
//! Every loss is a weighted sum of per-token values; the weights carry the normalisation and the caller's `scale`, so
//! the scale of a gradient (a TR weight, say) costs nothing.

mod batch;
mod evaluator;
mod head;
mod hidden;
mod hidden_term;
mod pass;
mod recordings;
mod sequences;
mod tape;
mod term;
mod token_weights;
mod tokens;

pub use crate::model::Subject;
pub use batch::LossBatch;
pub use evaluator::Evaluator;
pub use head::{Teacher, teacher_bytes};
pub use hidden_term::{HiddenKind, HiddenTerm};
pub use pass::{
    Directions, LossPass, Margin, NegativePreferences, PreferencePairs, Representations, SteppingPass, Teaching,
};
pub use tape::{LossSlot, LossTape};
pub use term::{Prepared, TermLoss};
pub use token_weights::EntropyOver;
pub use tokens::token_loss_bytes;
