//! The weight of each token in a loss.

use serde::{Deserialize, Serialize};

use crate::model::Batch;
use crate::ops::IGNORE_INDEX;

/// The positions that a loss without targets averages over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntropyOver {
    /// Real tokens.
    #[default]
    Valid,
    /// Every position, padding included: what the TAR authors' code does.
    All,
    /// Positions whose next token is to be learned (an answer, not its prompt).
    Learned,
}

/// Token weights of a mean over the tokens that have a target, times `scale`. All are 0 where no token has one.
pub(super) fn learned_token_weights(targets: &[u32], scale: f32) -> Vec<f32> {
    mean_over(targets.iter().map(|&target| target != IGNORE_INDEX), scale)
}

/// Token weights of a mean over the positions that `over` names, times `scale`.
pub(super) fn token_weights_over(batch: &Batch, over: EntropyOver, scale: f32) -> Vec<f32> {
    match over {
        EntropyOver::Valid => mean_over(batch.is_real().into_iter(), scale),
        EntropyOver::All => mean_over(std::iter::repeat_n(true, batch.len()), scale),
        EntropyOver::Learned => learned_token_weights(&batch.next_token_targets(), scale),
    }
}

fn mean_over(counted: impl Iterator<Item = bool> + Clone, scale: f32) -> Vec<f32> {
    let count = counted.clone().filter(|&c| c).count();
    let weight = (f64::from(scale) / count.max(1) as f64) as f32;
    counted.map(|c| if c { weight } else { 0.0 }).collect()
}
