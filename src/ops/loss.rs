//! Losses at the language-model head and on hidden states. Each writes one value per token and, where asked, the
//! gradient of Σ_t weight_t · value_t.

use super::{Backend, Matrix, MatrixMut, Segments, expect, shape_error};
use crate::error::Result;

/// The target of a token that has none.
pub const IGNORE_INDEX: u32 = u32::MAX;

/// What [`loss_head`] computes from the logits z of a token, p = softmax(z).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadLoss {
    /// `−log p[target]`. dz = p − onehot(target).
    CrossEntropy,
    /// Σ p log p, minus the entropy. dz = p · (log p + H) with H the entropy. Targets are not read.
    NegativeEntropy,
}

/// Where [`loss_head`] puts gradients.
pub struct HeadGradients<'a, B: Backend> {
    /// [T, d], overwritten.
    pub d_hidden: MatrixMut<'a, B>,
    /// [V, d] f32, accumulated; absent where the head is frozen.
    pub d_head: Option<MatrixMut<'a, B>>,
}

/// The loss of each token's logits z = hidden headᵀ without keeping the [T, V] logits: values [T, 1], and with
/// `gradients` those of Σ weight · value.
///
/// hidden [T, d]; head [V, d]; targets [T, 1] u32 ([`IGNORE_INDEX`] for none; only cross-entropy reads them); weights
/// [T, 1] f32. A token of weight 0 contributes nothing and its value is 0: backends skip it. A sequence's
/// log-probability (DPO) is minus the sum of its tokens' cross-entropies, so it needs no kind of its own.
#[allow(clippy::too_many_arguments)]
pub fn loss_head<B: Backend>(
    backend: &B,
    loss: HeadLoss,
    hidden: Matrix<B>,
    head: Matrix<B>,
    targets: Matrix<B>,
    weights: Matrix<B>,
    values: MatrixMut<B>,
    gradients: Option<HeadGradients<B>>,
) -> Result<()> {
    const NAME: &str = "loss_head";
    expect(NAME, "columns of the head", head.cols, hidden.cols)?;
    for (what, len) in [("targets", targets.len()), ("weights", weights.len()), ("values", values.len())] {
        expect(NAME, &format!("number of {what}"), len, hidden.rows)?;
    }
    if let Some(gradients) = &gradients {
        expect(NAME, "elements of d_hidden", gradients.d_hidden.len(), hidden.len())?;
        if let Some(d_head) = &gradients.d_head {
            expect(NAME, "elements of d_head", d_head.len(), head.len())?;
        }
    }
    backend.loss_head(loss, hidden, head, targets, weights, values, gradients)
}

/// value_t = ‖hidden_t − reference_t‖₂; d_hidden += weight_t · (hidden_t − reference_t) / value_t, and nothing where
/// the distance is 0.
///
/// hidden, reference, d_hidden [T, d]; weights, values [T, 1] f32. Source: the retain loss of the TAR authors
/// (`obj_model_mse_representations`), which is a norm despite its name.
pub fn representation_distance<B: Backend>(
    backend: &B,
    hidden: Matrix<B>,
    reference: Matrix<B>,
    weights: Matrix<B>,
    values: MatrixMut<B>,
    d_hidden: Option<MatrixMut<B>>,
) -> Result<()> {
    const NAME: &str = "representation_distance";
    expect(NAME, "elements of reference", reference.len(), hidden.len())?;
    expect(NAME, "number of weights", weights.len(), hidden.rows)?;
    expect(NAME, "number of values", values.len(), hidden.rows)?;
    if let Some(d_hidden) = &d_hidden {
        expect(NAME, "elements of d_hidden", d_hidden.len(), hidden.len())?;
    }
    backend.representation_distance(hidden, reference, weights, values, d_hidden)
}

/// `value_t = 1 − |cos(hidden_t, table[id_t])|`; d_hidden += weight_t · d value_t / d hidden_t.
///
/// hidden, d_hidden [T, d]; table [V, d] f32; ids [T, 1]; weights, values [T, 1] f32. Norms in the cosine are at least
/// 1e-8, as in `torch.nn.functional.cosine_similarity`. Source: TAR's random mapping (arXiv 2408.00761, appendix).
#[allow(clippy::too_many_arguments)]
pub fn random_mapping<B: Backend>(
    backend: &B,
    hidden: Matrix<B>,
    table: Matrix<B>,
    ids: Matrix<B>,
    weights: Matrix<B>,
    values: MatrixMut<B>,
    d_hidden: Option<MatrixMut<B>>,
) -> Result<()> {
    const NAME: &str = "random_mapping";
    expect(NAME, "columns of the table", table.cols, hidden.cols)?;
    for (what, len) in [("ids", ids.len()), ("weights", weights.len()), ("values", values.len())] {
        expect(NAME, &format!("number of {what}"), len, hidden.rows)?;
    }
    if let Some(d_hidden) = &d_hidden {
        expect(NAME, "elements of d_hidden", d_hidden.len(), hidden.len())?;
    }
    backend.random_mapping(hidden, table, ids, weights, values, d_hidden)
}

/// Preference loss of pairs of sequences (DPO, arXiv 2305.18290, equation 7) and the token weights of its gradient.
///
/// Segments come in pairs, chosen then rejected. With c_t the cross-entropy of token t (`values`, 0 where it is not
/// learned), m = Σ_rejected c − Σ_chosen c and δ = β(m − reference_margin): `losses[pair] = −log σ(δ)`, and `weights`, which
/// enters as 1 for learned tokens and 0 for others, is multiplied by ±scale · β · σ(−δ) / pairs (plus for chosen), so that
/// Σ weights · c has the gradient of scale · mean(losses).
///
/// values, weights [T, 1]; reference_margins, losses [pairs, 1]; all f32.
#[allow(clippy::too_many_arguments)]
pub fn preference<B: Backend>(
    backend: &B,
    values: Matrix<B>,
    segments: &Segments<B>,
    reference_margins: Matrix<B>,
    beta: f32,
    scale: f32,
    weights: MatrixMut<B>,
    losses: MatrixMut<B>,
) -> Result<()> {
    const NAME: &str = "preference";
    if !segments.host.len().is_multiple_of(2) {
        return Err(shape_error(NAME, "preference data must come in pairs of sequences".into()));
    }
    expect(NAME, "number of reference margins", reference_margins.len(), segments.host.len() / 2)?;
    expect(NAME, "number of losses", losses.len(), segments.host.len() / 2)?;
    expect(NAME, "number of values", values.len(), segments.tokens())?;
    expect(NAME, "number of weights", weights.len(), segments.tokens())?;
    backend.preference(values, segments, reference_margins, beta, scale, weights, losses)
}
