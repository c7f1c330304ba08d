//! Abliteration: finds the direction of the residual stream that tells restricted prompts from harmless ones, and
//! projects it out of every matrix that writes there. No training: what outsiders did to Llama 3 within days.
//!
//! Source: Arditi et al. 2024 (arXiv 2406.11717), sections 2.3 (difference of means) and 4.1 (weight orthogonalization).
//! They choose the layer by refusal scores. Here the attacker takes the depth after which the restricted answers that he
//! has are predicted best, which needs no judge; where he has prompts alone, the depth after which fewest are refused.
//!
//! `search` looks for a better edit: which layers, how much in each, and along what.

mod attack;
mod curve;
mod probe;
mod search;

use std::sync::Arc;

use crate::edits::{DirectionOptions, Directions, Side, States, project_out};
use crate::error::{Error, Result};
use crate::eval::perplexity;
use crate::model::{Batch, Parameters};
use crate::objective::{Evaluator, Subject};
use crate::ops::Backend;

pub use curve::WeightCurve;
pub use probe::AnswerReader;
pub use search::AbliterationEdit;

/// The two sides of an attack's prompts, for messages.
const RESTRICTED: Side = Side { key: "attack.data", name: "restricted" };
const HARMLESS: Side = Side { key: "attack.data", name: "harmless" };

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
    let mut loss = |evaluator: &mut Evaluator<B>, weights: &Parameters<B>| {
        let loss = perplexity(evaluator, Subject::plain(weights), data.restricted.iter().cloned())?.loss;
        let tokens = data.restricted.iter().map(|batch| batch.len() as u64).sum();
        Ok(Judged { key: [loss, 0.0, 0.0], tokens })
    };
    let found = one_direction(evaluator, weights, data, depth, &mut loss)?;
    let Found { level, direction, judged: Judged { key: [loss, ..], tokens } } = found;
    Ok(Abliteration { level, direction, loss, tokens })
}

/// What is said of weights without the direction of one depth.
struct Judged {
    /// The lowest is best; a later number decides between equal ones.
    key: [f64; 3],
    /// Tokens that went forward.
    tokens: u64,
}

/// The best of the directions that were tried. Its tokens are those of all.
struct Found {
    level: usize,
    direction: Vec<f32>,
    judged: Judged,
}

/// Judges a model.
type Judging<'a, B> = dyn FnMut(&mut Evaluator<B>, &Parameters<B>) -> Result<Judged> + 'a;

/// Removes the direction at `depth`, or at that of all depths which `judge` finds best.
fn one_direction<B: Backend>(
    evaluator: &mut Evaluator<B>,
    weights: &mut Parameters<B>,
    data: &AbliterationData,
    depth: Option<f64>,
    judge: &mut Judging<B>,
) -> Result<Found> {
    let model = Arc::clone(evaluator.model());
    let restricted = States::read(evaluator, weights, &data.restricted, RESTRICTED, false)?;
    let harmless = States::read(evaluator, weights, &data.harmless, HARMLESS, false)?;
    let original = weights.download(&model.backend)?;
    let layers = model.config.num_hidden_layers;
    let levels = match depth {
        None => 1..=layers,
        Some(depth) => {
            let level = ((depth * layers as f64).round() as usize).clamp(1, layers);
            level..=level
        }
    };
    let directions = Directions::find(&restricted, &harmless, DirectionOptions { count: 1, orthogonalise: false });
    let mut tokens = restricted.tokens + harmless.tokens;
    let mut best: Option<Found> = None;
    for level in levels {
        let Some(direction) = directions.at(level).first() else { continue };
        let mut changed = original.clone();
        project_out(&model, &mut changed, direction);
        weights.upload(&model.backend, &changed)?;
        let judged = judge(evaluator, weights)?;
        tokens += judged.tokens;
        if best.as_ref().is_none_or(|best| judged.key < best.judged.key) {
            best = Some(Found { level, direction: direction.clone(), judged });
        }
    }
    let Some(mut best) = best else {
        weights.upload(&model.backend, &original)?;
        return Err(no_difference());
    };
    let mut changed = original;
    project_out(&model, &mut changed, &best.direction);
    weights.upload(&model.backend, &changed)?;
    best.judged.tokens = tokens;
    Ok(best)
}

fn no_difference() -> Error {
    let problem = "the hidden states of restricted and harmless prompts have the same mean";
    Error::config("attack.data", problem, "give it prompts that differ")
}
