//! Abliteration: finds the direction of the residual stream that tells restricted prompts from harmless ones, and
//! projects it out of every matrix that writes there. No training: what outsiders did to Llama 3 within days.
//!
//! Source: Arditi et al. 2024 (arXiv 2406.11717), sections 2.3 (difference of means) and 4.1 (weight orthogonalization).
//! They choose the layer by refusal scores; here the attacker takes the depth after which the restricted data that he
//! has is predicted best, which needs no judge.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::eval::perplexity;
use crate::model::{Batch, Model, Parameters};
use crate::objective::{Evaluator, LossBatch, Subject};
use crate::ops::{self, Backend, Tensor};

/// What the attacker has.
#[derive(Clone, Debug, Default)]
pub struct AbliterationData {
    /// Restricted rows, whose prompts (all up to the first learned token) give one mean.
    pub restricted: Vec<Batch>,
    /// Harmless rows, whose prompts give the other.
    pub harmless: Vec<Batch>,
}

/// What was removed.
#[derive(Clone, Debug, PartialEq)]
pub struct Abliteration {
    /// Depth of the hidden states that the direction was taken from: 1 is the output of the first layer.
    pub level: usize,
    /// The direction, of length 1.
    pub direction: Vec<f32>,
    /// Mean cross-entropy of the restricted rows afterwards.
    pub loss: f64,
    /// Tokens that went forward through the model to find it.
    pub tokens: u64,
}

/// Removes the direction found at `depth` (a fraction of the layers, above 0), or at the best of all depths where none is
/// given, from `weights`.
///
/// # Errors
/// [`Error::Config`] where a side has no rows, or where the two means are the same at every depth asked for.
pub fn abliterate<B: Backend>(
    evaluator: &mut Evaluator<B>,
    weights: &mut Parameters<B>,
    data: &AbliterationData,
    depth: Option<f64>,
) -> Result<Abliteration> {
    let model = Arc::clone(evaluator.model());
    let restricted = mean_states(evaluator, weights, &data.restricted, "restricted")?;
    let harmless = mean_states(evaluator, weights, &data.harmless, "harmless")?;
    let original = weights.download(&model.backend)?;
    let layers = model.config.num_hidden_layers;
    let levels = match depth {
        None => 1..=layers,
        Some(depth) => {
            let level = ((depth * layers as f64).round() as usize).clamp(1, layers);
            level..=level
        }
    };
    let mut tokens = restricted.tokens + harmless.tokens;
    let mut best: Option<Abliteration> = None;
    for level in levels {
        let Some(direction) = difference(&restricted.means[level - 1], &harmless.means[level - 1]) else { continue };
        let mut changed = original.clone();
        project_out(&model, &mut changed, &direction);
        weights.upload(&model.backend, &changed)?;
        let loss = perplexity(evaluator, Subject::plain(weights), data.restricted.iter().cloned())?.loss;
        tokens += data.restricted.iter().map(|batch| batch.len() as u64).sum::<u64>();
        if best.as_ref().is_none_or(|best| loss < best.loss) {
            best = Some(Abliteration { level, direction, loss, tokens: 0 });
        }
    }
    let Some(best) = best else {
        weights.upload(&model.backend, &original)?;
        let problem = "the hidden states of restricted and harmless prompts have the same mean";
        return Err(Error::config("attack.data", problem, "give it prompts that differ"));
    };
    let mut changed = original;
    project_out(&model, &mut changed, &best.direction);
    weights.upload(&model.backend, &changed)?;
    Ok(Abliteration { tokens, ..best })
}

/// Takes the component along `direction` (of length 1) out of everything that a model writes to its residual stream: the
/// rows of the embedding, and the outputs of o_proj and down_proj. `weights` are all of the model's, in its layout. A
/// head that is tied to the embedding changes with it.
pub fn project_out<B: Backend>(model: &Model<B>, weights: &mut [f32], direction: &[f32]) {
    let layout = model.layout();
    for row in weights[layout.embed_tokens().range()].chunks_exact_mut(direction.len()) {
        let along: f64 = row.iter().zip(direction).map(|(w, r)| f64::from(*w) * f64::from(*r)).sum();
        row.iter_mut().zip(direction).for_each(|(w, r)| *w = (f64::from(*w) - along * f64::from(*r)) as f32);
    }
    for layer in 0..model.config.num_hidden_layers {
        let blocks = layout.layer(layer);
        for block in [blocks.o_proj, blocks.down_proj] {
            let matrix = &mut weights[block.range()];
            let mut along = vec![0.0f64; block.cols];
            for (row, r) in matrix.chunks_exact(block.cols).zip(direction) {
                along.iter_mut().zip(row).for_each(|(sum, w)| *sum += f64::from(*w) * f64::from(*r));
            }
            for (row, r) in matrix.chunks_exact_mut(block.cols).zip(direction) {
                row.iter_mut().zip(&along).for_each(|(w, sum)| *w = (f64::from(*w) - sum * f64::from(*r)) as f32);
            }
        }
    }
}

/// Means of the hidden states at the last token of prompts.
struct MeanStates {
    /// Of the levels 1 to L.
    means: Vec<Vec<f64>>,
    tokens: u64,
}

fn mean_states<B: Backend>(
    evaluator: &mut Evaluator<B>,
    weights: &Parameters<B>,
    rows: &[Batch],
    side: &str,
) -> Result<MeanStates> {
    let model = Arc::clone(evaluator.model());
    let width = model.config.hidden_size;
    let layers = model.config.num_hidden_layers;
    let mut sums = vec![vec![0.0f64; width]; layers];
    let mut count = 0u64;
    let mut tokens = 0;
    for batch in rows.iter().map(prompts).filter(|batch| !batch.is_empty()) {
        let last: Vec<u32> = batch.segments.iter().map(|s| (s.start + s.length - 1) as u32).collect();
        let batch = LossBatch::new(&model, batch)?;
        evaluator.forward(Subject::plain(weights), &batch)?;
        let indices = Tensor::from_u32(&model.backend, "last tokens", &last)?;
        let mut states = Tensor::zeros(&model.backend, "states", last.len(), width, model.backend.compute_dtype())?;
        for (level, sum) in (1..=layers).zip(&mut sums) {
            let hidden = evaluator.workspace().residual(level, batch.host().len());
            model.backend.run(ops::GatherRows { from: hidden, indices: indices.view(), out: states.view_mut() })?;
            for row in states.to_vec(&model.backend)?.chunks_exact(width) {
                sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
            }
        }
        count += last.len() as u64;
        tokens += batch.host().len() as u64;
    }
    if count == 0 {
        return Err(Error::config("attack.data", format!("there are no {side} rows"), "give it both sides"));
    }
    sums.iter_mut().flatten().for_each(|sum| *sum /= count as f64);
    Ok(MeanStates { means: sums, tokens })
}

/// The prompts of a batch's rows: all before the first learned token, or the whole row where it learns from the start.
fn prompts(batch: &Batch) -> Batch {
    let mut prompts = Batch::default();
    for s in &batch.segments {
        let row = s.start..s.start + s.valid;
        let learned = batch.labels[row.clone()].iter().skip(1).position(|&label| label != ops::IGNORE_INDEX);
        let length = match learned.map(|index| index + 1) {
            Some(first) if first > 1 => first,
            _ => s.valid,
        };
        let tokens = &batch.tokens[row][..length];
        if !tokens.is_empty() {
            prompts.push(tokens, &vec![ops::IGNORE_INDEX; length], length);
        }
    }
    prompts
}

/// (a − b) / |a − b|; none where they are the same, or not finite.
fn difference(a: &[f64], b: &[f64]) -> Option<Vec<f32>> {
    let norm = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
    (norm.is_finite() && norm > 0.0).then(|| a.iter().zip(b).map(|(a, b)| ((a - b) / norm) as f32).collect())
}
