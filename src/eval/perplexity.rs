//! Perplexity: how well a model predicts a text, whatever the batches it is read in.

use crate::error::{Error, Result};
use crate::model::Batch;
use crate::objective::{Evaluator, LossBatch, Subject};
use crate::ops::Backend;

/// How well a model predicts the learned tokens of a data set.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Perplexity {
    /// Mean cross-entropy of a token, in nats.
    pub loss: f64,
    /// e to the loss; JSON writes `null` where that exceeds an f64.
    pub perplexity: f64,
    /// Number of tokens that the mean is over: those with a label, but for the first of each sequence.
    pub tokens: u64,
}

/// Measures `subject` on all `batches`. Every token counts the same, so the size of the batches does not matter; sums are
/// f64.
///
/// Fails if no token has a label, and if a batch's loss is not finite.
pub fn perplexity<B: Backend>(
    evaluator: &mut Evaluator<B>,
    subject: Subject<B>,
    batches: impl IntoIterator<Item = Batch>,
) -> Result<Perplexity> {
    let mut sum = 0.0f64;
    let mut tokens = 0u64;
    for (index, batch) in batches.into_iter().enumerate() {
        let batch = LossBatch::new(evaluator.model(), batch)?;
        let loss = -evaluator.sequence_log_probabilities(subject, &batch)?.iter().sum::<f64>();
        if !loss.is_finite() {
            return Err(not_finite(format!("the cross-entropy of batch {index}")));
        }
        sum += loss;
        tokens += batch.learned_tokens() as u64;
    }
    if tokens == 0 {
        let remedy = "give the data labels that are not all -100";
        return Err(Error::config("data", "no token of it has a label to predict", remedy));
    }
    let loss = sum / tokens as f64;
    Ok(Perplexity { loss, perplexity: loss.exp(), tokens })
}

/// The error for a measured number that is NaN or infinite.
pub(super) fn not_finite(what: String) -> Error {
    Error::NonFinite {
        what,
        step: 0,
        remedy: "the weights are damaged, or a training run diverged: use another model".into(),
    }
}
