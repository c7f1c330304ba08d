//! RMS norm of query and key heads.

use super::{AttentionShape, Check, DType, Matrix, MatrixMut, Memory, Operation};
use crate::error::Result;

/// out = x / √(mean(x²) + ε) · w for every head x of queries and keys, with one w for all query heads and one for all key
/// heads. Value heads are copied.
///
/// Source: Transformers `Qwen3Attention` (`q_norm`, `k_norm`). Backward computes the statistics again from x.
pub struct HeadNormForward<'a, B: Memory> {
    /// [T, (H+2G)·D].
    pub qkv: Matrix<'a, B>,
    /// [2, D]: w of the query heads, w of the key heads.
    pub weight: Matrix<'a, B>,
    /// ε.
    pub epsilon: f32,
    /// The heads.
    pub shape: AttentionShape,
    /// [T, (H+2G)·D].
    pub out: MatrixMut<'a, B>,
}

impl<B: Memory> Operation for HeadNormForward<'_, B> {
    const NAME: &'static str = "head_norm_forward";
    type Output = ();

    fn check(&self, check: &Check) -> Result<()> {
        let Self { qkv, weight, epsilon: _, shape, out } = self;
        shape.check(check)?;
        check.columns(shape.qkv_cols(), &[("qkv", qkv), ("out", out)])?;
        check.rows(qkv.rows, &[("out", out)])?;
        check.elements(2 * shape.head_dim, &[("weight", weight)])?;
        check.stored(check.compute, &[("qkv", qkv), ("weight", weight), ("out", out)])
    }
}

/// Gradient of [`HeadNormForward`], in place. With i = 1 / √(mean(x²) + ε) and u = d · w for the gradient d of a head of
/// `out`: d = i · (u − x · i² · mean(u · x)); d_weight += Σ d · x · i over the tokens and the heads that share w. The
/// gradients of value heads stay.
pub struct HeadNormBackward<'a, B: Memory> {
    /// [T, (H+2G)·D], as in forward.
    pub qkv: Matrix<'a, B>,
    /// [2, D], as in forward.
    pub weight: Matrix<'a, B>,
    /// ε.
    pub epsilon: f32,
    /// The heads.
    pub shape: AttentionShape,
    /// [T, (H+2G)·D]: the gradient of `out`, which becomes the gradient of `qkv`.
    pub d_qkv: MatrixMut<'a, B>,
    /// [2, D] f32, accumulated; absent where the weight is frozen.
    pub d_weight: Option<MatrixMut<'a, B>>,
}

impl<B: Memory> Operation for HeadNormBackward<'_, B> {
    const NAME: &'static str = "head_norm_backward";
    type Output = ();

    fn check(&self, check: &Check) -> Result<()> {
        let Self { qkv, weight, epsilon: _, shape, d_qkv, d_weight } = self;
        shape.check(check)?;
        check.columns(shape.qkv_cols(), &[("qkv", qkv), ("d_qkv", d_qkv)])?;
        check.rows(qkv.rows, &[("d_qkv", d_qkv)])?;
        check.elements(2 * shape.head_dim, &[("weight", weight), ("d_weight", d_weight)])?;
        check.stored(check.compute, &[("qkv", qkv), ("weight", weight), ("d_qkv", d_qkv)])?;
        check.stored(DType::F32, &[("d_weight", d_weight)])
    }
}
