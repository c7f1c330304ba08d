//! Exact match: whether greedy decoding reproduces the labelled tokens of a sequence. One forward pass tells, because greedy
//! decoding that has been right so far continues from the very tokens of the data.

use rayon::prelude::*;

use super::perplexity::not_finite;
use super::sample::argmax;
use crate::error::{Error, Result};
use crate::model::Batch;
use crate::objective::{Evaluator, LossBatch, Subject};
use crate::ops::{Backend, IGNORE_INDEX};

/// Rows of logits that are on the host at a time.
const LOGIT_ROWS: usize = 128;

/// How much of a data set greedy decoding reproduces.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct ExactMatch {
    /// Share of the sequences whose every labelled token is the most probable one, given the tokens before it.
    pub accuracy: f64,
    /// Number of sequences with a labelled token.
    pub rows: u64,
    /// Of each sequence, in order, whether it matches; `None` where no token is labelled.
    #[serde(skip)]
    pub matches: Vec<Option<bool>>,
}

/// Measures `subject` on all `batches`. The first token of a sequence is not predicted and does not count.
///
/// Fails if no token has a label, and if a logit is NaN.
pub fn exact_match<B: Backend>(
    evaluator: &mut Evaluator<B>,
    subject: Subject<B>,
    batches: impl IntoIterator<Item = Batch>,
) -> Result<ExactMatch> {
    let mut matches = Vec::new();
    for (index, batch) in batches.into_iter().enumerate() {
        let batch = LossBatch::new(evaluator.model(), batch)?;
        matches.extend(batch_matches(evaluator, subject, &batch, index)?);
    }
    let count = |wanted: fn(&bool) -> bool| matches.iter().flatten().filter(|right| wanted(right)).count() as u64;
    let rows = count(|_| true);
    let right = count(|right| *right);
    if rows == 0 {
        let remedy = "give the data labels that are not all -100";
        return Err(Error::config("data", "no token of it has a label to predict", remedy));
    }
    Ok(ExactMatch { accuracy: right as f64 / rows as f64, rows, matches })
}

fn batch_matches<B: Backend>(
    evaluator: &mut Evaluator<B>,
    subject: Subject<B>,
    batch: &LossBatch<B>,
    index: usize,
) -> Result<Vec<Option<bool>>> {
    evaluator.forward(subject, batch)?;
    let targets = batch.host().next_token_targets();
    let labelled: Vec<u32> = (0..targets.len() as u32).filter(|&row| targets[row as usize] != IGNORE_INDEX).collect();
    let mut right = vec![None; targets.len()];
    for rows in labelled.chunks(LOGIT_ROWS) {
        let vocabulary = evaluator.model().config.vocab_size;
        let logits = evaluator.model().logits(subject.weights, evaluator.workspace(), rows)?;
        let predicted: Vec<Option<u32>> = logits.par_chunks(vocabulary).map(argmax).collect();
        for (predicted, &row) in predicted.into_iter().zip(rows) {
            let predicted = predicted.ok_or_else(|| not_finite(format!("a logit of batch {index}")))?;
            right[row as usize] = Some(predicted == targets[row as usize]);
        }
    }
    let sequence = |s: &crate::ops::Segment| {
        right[s.start..s.start + s.length].iter().flatten().copied().reduce(|all, right| all && right)
    };
    Ok(batch.host().segments.iter().map(sequence).collect())
}
