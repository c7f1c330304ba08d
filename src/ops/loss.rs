//! Losses at the language-model head and on hidden states. Each writes one value per token and, where asked, the
//! gradient of Σ_t weight_t · value_t.

use super::{Check, DType, Matrix, MatrixMut, Memory, Named, Operation, Segments};
use crate::error::Result;

/// The target of a token that has none.
pub const IGNORE_INDEX: u32 = u32::MAX;

/// What [`LossHead`] computes from the logits z of a token, p = softmax(z).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadLoss {
    /// `−log p[target]`. dz = p − onehot(target).
    CrossEntropy,
    /// Σ p log p, minus the entropy. dz = p · (log p + H) with H the entropy. Targets are not read.
    NegativeEntropy,
    /// Σ q (log q − log p), the divergence KL(q ‖ p) of p from the teacher's q, the softmax of the logits of [`HeadTeacher`].
    /// dz = p − q. Targets are not read.
    TeacherDivergence,
}

/// The model that [`HeadLoss::TeacherDivergence`] compares with. It has the same vocabulary; its hidden size may differ.
pub struct HeadTeacher<'a, B: Memory> {
    /// [T, d of the teacher], stored as the hidden states of the loss.
    pub hidden: Matrix<'a, B>,
    /// [V, d of the teacher], stored as hidden.
    pub head: Matrix<'a, B>,
}

impl<B: Memory> Clone for HeadTeacher<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Memory> Copy for HeadTeacher<'_, B> {}

/// Where [`LossHead`] puts gradients.
pub struct HeadGradients<'a, B: Memory> {
    /// [T, d], overwritten.
    pub d_hidden: MatrixMut<'a, B>,
    /// [V, d] f32, accumulated; absent where the head is frozen.
    pub d_head: Option<MatrixMut<'a, B>>,
}

/// The loss of each token's logits z = hidden headᵀ without keeping the [T, V] logits (nor a teacher's), and with `gradients` those of
/// Σ weight · value.
///
/// A token of weight 0 contributes nothing and its value is 0: backends skip it. A sequence's log-probability (DPO) is minus
/// the sum of its tokens' cross-entropies, so it needs no kind of its own.
pub struct LossHead<'a, B: Memory> {
    /// Which loss.
    pub loss: HeadLoss,
    /// [T, d].
    pub hidden: Matrix<'a, B>,
    /// [V, d], stored as hidden.
    pub head: Matrix<'a, B>,
    /// [T, 1] u32, [`IGNORE_INDEX`] for none. Only cross-entropy reads them.
    pub targets: Matrix<'a, B>,
    /// Present for [`HeadLoss::TeacherDivergence`] and for no other loss.
    pub teacher: Option<HeadTeacher<'a, B>>,
    /// [T, 1] f32.
    pub weights: Matrix<'a, B>,
    /// [T, 1] f32, overwritten.
    pub values: MatrixMut<'a, B>,
    /// Where gradients go, if they are wanted.
    pub gradients: Option<HeadGradients<'a, B>>,
}

impl<B: Memory> Operation for LossHead<'_, B> {
    const NAME: &'static str = "loss_head";
    type Output = ();

    fn check(&self, check: &Check) -> Result<()> {
        let Self { loss, hidden, head, targets, teacher, weights, values, gradients } = self;
        check.columns(hidden.cols, &[("the head", head)])?;
        check.elements(hidden.rows, &[("targets", targets), ("weights", weights), ("values", values)])?;
        check.product([("hidden", hidden), ("the head", head)], ("values", values))?;
        check.stored(DType::F32, &[("weights", weights), ("values", values)])?;
        check.stored(DType::U32, &[("targets", targets)])?;
        check_teacher(check, *loss, [hidden, head], teacher.as_ref())?;
        let Some(HeadGradients { d_hidden, d_head }) = gradients else { return Ok(()) };
        check.elements(hidden.len(), &[("d_hidden", d_hidden)])?;
        check.elements(head.len(), &[("d_head", d_head)])?;
        check.stored(hidden.dtype(), &[("d_hidden", d_hidden)])?;
        check.stored(DType::F32, &[("d_head", d_head)])
    }
}

fn check_teacher<B: Memory>(
    check: &Check,
    loss: HeadLoss,
    [hidden, head]: [&Matrix<B>; 2],
    teacher: Option<&HeadTeacher<B>>,
) -> Result<()> {
    match (loss, teacher) {
        (HeadLoss::TeacherDivergence, Some(teacher)) => {
            let states: Named = ("the teacher's hidden states", &teacher.hidden);
            let teacher_head: Named = ("the teacher's head", &teacher.head);
            check.rows(hidden.rows, &[states])?;
            check.rows(head.rows, &[teacher_head])?;
            check.columns(teacher.hidden.cols, &[teacher_head])?;
            check.stored(hidden.dtype(), &[states, teacher_head])
        }
        (HeadLoss::TeacherDivergence, None) => Err(check.error("the divergence from a teacher needs one".into())),
        (_, Some(_)) => Err(check.error(format!("{loss:?} compares with no teacher"))),
        (_, None) => Ok(()),
    }
}

/// How [`RepresentationDistance`] measures, with δ_t = hidden_t − reference_t.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DistanceKind {
    /// value_t = ‖δ_t‖₂; its gradient is δ_t / value_t, and nothing where the distance is 0.
    ///
    /// Source: the retain loss of the TAR authors (`obj_model_mse_representations`), which is a norm despite its name.
    Euclidean,
    /// value_t = ‖δ_t‖₂²; its gradient is 2 δ_t.
    ///
    /// Source: both losses of RMU (arXiv 2403.03218, section 4).
    Squared,
}

/// value_t = the distance of hidden_t to reference_t; d_hidden += weight_t · its gradient.
pub struct RepresentationDistance<'a, B: Memory> {
    /// How the distance is measured.
    pub kind: DistanceKind,
    /// [T, d].
    pub hidden: Matrix<'a, B>,
    /// [T, d], or [1, d]: one for all tokens.
    pub reference: Matrix<'a, B>,
    /// [T, 1] f32.
    pub weights: Matrix<'a, B>,
    /// [T, 1] f32, overwritten.
    pub values: MatrixMut<'a, B>,
    /// [T, d], accumulated; absent where no gradient is wanted.
    pub d_hidden: Option<MatrixMut<'a, B>>,
}

impl<B: Memory> Operation for RepresentationDistance<'_, B> {
    const NAME: &'static str = "representation_distance";
    type Output = ();

    fn check(&self, check: &Check) -> Result<()> {
        let Self { kind: _, hidden, reference, weights, values, d_hidden } = self;
        targets(check, hidden, &[("reference", reference)])?;
        check.elements(hidden.len(), &[("d_hidden", d_hidden)])?;
        check.elements(hidden.rows, &[("weights", weights), ("values", values)])?;
        check.stored(check.compute, &[("hidden", hidden), ("reference", reference), ("d_hidden", d_hidden)])?;
        check.stored(DType::F32, &[("weights", weights), ("values", values)])
    }
}

/// Fails unless each matrix has the columns of `hidden`, and as many rows or one.
fn targets<B: Memory>(check: &Check, hidden: &Matrix<B>, matrices: &[(&str, &Matrix<B>)]) -> Result<()> {
    matrices.iter().try_for_each(|&(what, matrix)| {
        let rows = if matrix.rows == 1 { 1 } else { hidden.rows };
        check.columns(hidden.cols, &[(what, matrix)])?;
        check.rows(rows, &[(what, matrix)])
    })
}

/// `value_t = max(0, cos(hidden_t, away_t) − cos(hidden_t, toward_t) + margin)`, without `toward` its cosine left out;
/// d_hidden += weight_t · d value_t / d hidden_t, and nothing where the value is 0. Norms in the cosines are at least 1e-8.
///
/// Without `toward` and with a margin of 0 it is the rerouting loss of circuit breakers (arXiv 2406.04313, section 3.2). With
/// `toward` it is the triplet loss of contrastive representation learning (arXiv 2506.11938, section 4.1) with
/// d(x, y) = 1 − cos(x, y).
pub struct CosineMargin<'a, B: Memory> {
    /// [T, d].
    pub hidden: Matrix<'a, B>,
    /// The states to turn from, [T, d], or [1, d]: one for all tokens.
    pub away: Matrix<'a, B>,
    /// The states to turn to, [T, d] or [1, d].
    pub toward: Option<Matrix<'a, B>>,
    /// How much nearer to `toward` than to `away` is near enough.
    pub margin: f32,
    /// [T, 1] f32.
    pub weights: Matrix<'a, B>,
    /// [T, 1] f32, overwritten.
    pub values: MatrixMut<'a, B>,
    /// [T, d], accumulated; absent where no gradient is wanted.
    pub d_hidden: Option<MatrixMut<'a, B>>,
}

impl<B: Memory> Operation for CosineMargin<'_, B> {
    const NAME: &'static str = "cosine_margin";
    type Output = ();

    fn check(&self, check: &Check) -> Result<()> {
        let Self { hidden, away, toward, margin, weights, values, d_hidden } = self;
        targets(check, hidden, &[("away", away)])?;
        if let Some(toward) = toward {
            targets(check, hidden, &[("toward", toward)])?;
        }
        if !margin.is_finite() {
            return Err(check.error(format!("the margin is {margin}, which is not finite")));
        }
        check.elements(hidden.len(), &[("d_hidden", d_hidden)])?;
        check.elements(hidden.rows, &[("weights", weights), ("values", values)])?;
        let stored: [Named; 4] = [("hidden", hidden), ("away", away), ("toward", toward), ("d_hidden", d_hidden)];
        check.stored(check.compute, &stored)?;
        check.stored(DType::F32, &[("weights", weights), ("values", values)])
    }
}

/// `value_t = 1 − |cos(hidden_t, table[id_t])|`; d_hidden += weight_t · d value_t / d hidden_t. Norms in the cosine are at
/// least 1e-8, as in `torch.nn.functional.cosine_similarity`.
///
/// Source: TAR's random mapping (arXiv 2408.00761, appendix).
pub struct RandomMapping<'a, B: Memory> {
    /// [T, d].
    pub hidden: Matrix<'a, B>,
    /// [V, d] f32.
    pub table: Matrix<'a, B>,
    /// [T, 1] u32. The caller has checked that each is below V.
    pub ids: Matrix<'a, B>,
    /// [T, 1] f32.
    pub weights: Matrix<'a, B>,
    /// [T, 1] f32, overwritten.
    pub values: MatrixMut<'a, B>,
    /// [T, d], accumulated; absent where no gradient is wanted.
    pub d_hidden: Option<MatrixMut<'a, B>>,
}

impl<B: Memory> Operation for RandomMapping<'_, B> {
    const NAME: &'static str = "random_mapping";
    type Output = ();

    fn check(&self, check: &Check) -> Result<()> {
        let Self { hidden, table, ids, weights, values, d_hidden } = self;
        check.columns(hidden.cols, &[("the table", table)])?;
        check.elements(hidden.rows, &[("ids", ids), ("weights", weights), ("values", values)])?;
        check.elements(hidden.len(), &[("d_hidden", d_hidden)])?;
        check.stored(check.compute, &[("hidden", hidden), ("d_hidden", d_hidden)])?;
        check.stored(DType::F32, &[("the table", table), ("weights", weights), ("values", values)])?;
        check.stored(DType::U32, &[("ids", ids)])
    }
}

/// Preference loss of pairs of sequences (DPO, arXiv 2305.18290, equation 7) and the token weights of its gradient.
///
/// Segments come in pairs, chosen then rejected. With c_t the cross-entropy of token t (`values`, 0 where it is not
/// learned), m = Σ_rejected c − Σ_chosen c and δ = β(m − reference_margin): `losses[pair] = −log σ(δ)`, and `weights`, which
/// enters as 1 for learned tokens and 0 for others, is multiplied by ±scale · β · σ(−δ) / pairs (plus for chosen), so that
/// Σ weights · c has the gradient of scale · mean(losses).
pub struct Preference<'a, B: Memory> {
    /// [T, 1] f32.
    pub values: Matrix<'a, B>,
    /// The sequences, T rows together.
    pub segments: &'a Segments<B>,
    /// [pairs, 1] f32.
    pub reference_margins: Matrix<'a, B>,
    /// β.
    pub beta: f32,
    /// The factor on the gradient.
    pub scale: f32,
    /// [T, 1] f32, multiplied.
    pub weights: MatrixMut<'a, B>,
    /// [pairs, 1] f32, overwritten.
    pub losses: MatrixMut<'a, B>,
}

impl<B: Memory> Operation for Preference<'_, B> {
    const NAME: &'static str = "preference";
    type Output = ();

    fn check(&self, check: &Check) -> Result<()> {
        let Self { values, segments, reference_margins, beta: _, scale: _, weights, losses } = self;
        if !segments.host.len().is_multiple_of(2) {
            return Err(check.error("preference data must come in pairs of sequences".into()));
        }
        check.segments(segments, values.len())?;
        let pairs = segments.host.len() / 2;
        check.elements(pairs, &[("the reference margins", reference_margins), ("losses", losses)])?;
        check.elements(values.len(), &[("weights", weights)])?;
        check.stored(DType::F32, &[("values", values), ("the reference margins", reference_margins)])?;
        check.stored(DType::F32, &[("weights", weights), ("losses", losses)])
    }
}

/// Negative preference loss of sequences (NPO, arXiv 2404.05868, equation 3; SimNPO, arXiv 2410.07163, equation 4) and the
/// token weights of its gradient.
///
/// With c_t the cross-entropy of token t (`values`, 0 where it is not learned), ℓ = −Σ c of a sequence and
/// x = β(ℓ / length − reference): `losses[sequence] = 2/β · log(1 + eˣ)`, and `weights`, which enters as 1 for learned tokens
/// and 0 for others, is multiplied by −scale · 2σ(x) / length / sequences, so that Σ weights · c has the gradient of
/// scale · mean(losses).
///
/// NPO has lengths of 1 and the reference model's log-probabilities; SimNPO has the numbers of learned tokens and −γ/β.
pub struct NegativePreference<'a, B: Memory> {
    /// [T, 1] f32.
    pub values: Matrix<'a, B>,
    /// The sequences, T rows together.
    pub segments: &'a Segments<B>,
    /// [sequences, 1] f32. The caller has checked that each is above 0.
    pub lengths: Matrix<'a, B>,
    /// [sequences, 1] f32.
    pub references: Matrix<'a, B>,
    /// β, above 0.
    pub beta: f32,
    /// The factor on the gradient.
    pub scale: f32,
    /// [T, 1] f32, multiplied.
    pub weights: MatrixMut<'a, B>,
    /// [sequences, 1] f32, overwritten.
    pub losses: MatrixMut<'a, B>,
}

impl<B: Memory> Operation for NegativePreference<'_, B> {
    const NAME: &'static str = "negative_preference";
    type Output = ();

    fn check(&self, check: &Check) -> Result<()> {
        let Self { values, segments, lengths, references, beta, scale: _, weights, losses } = self;
        if !(beta.is_finite() && *beta > 0.0) {
            return Err(check.error(format!("beta is {beta}, expected a number above 0")));
        }
        check.segments(segments, values.len())?;
        let of_sequences: [Named; 3] = [("lengths", lengths), ("references", references), ("losses", losses)];
        check.elements(segments.host.len(), &of_sequences)?;
        check.elements(values.len(), &[("weights", weights)])?;
        check.stored(DType::F32, &of_sequences)?;
        check.stored(DType::F32, &[("values", values), ("weights", weights)])
    }
}
