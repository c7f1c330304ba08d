//! What training minimises: cross-entropy, minus the entropy, preference loss (DPO), distance to a reference model's
//! hidden states, random mapping. An [`Evaluator`] runs forward, the loss, and backward where gradients are wanted.
//!
//! Every loss is a weighted sum of per-token values; the weights carry the normalisation and the caller's `scale`, so
//! the scale of a gradient (a TR weight, say) costs nothing.

mod batch;
mod evaluator;
mod hidden;
mod recordings;
mod tape;
mod weights;

pub use batch::LossBatch;
pub use evaluator::{Evaluator, Subject};
pub use tape::LossTape;
pub use weights::{EntropyOver, learned_weights, position_weights};
