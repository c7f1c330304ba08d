//! RMS norm, fused with the residual addition in front of it.

use super::{Check, DType, Matrix, MatrixMut, Memory, Operation};
use crate::error::Result;

/// sum = residual + delta (or residual where there is no delta); inverse_rms = 1/√(mean(sum²) + ε);
/// normed = sum · inverse_rms · weight.
pub struct RmsNormForward<'a, B: Memory> {
    /// [T, d].
    pub residual: Matrix<'a, B>,
    /// [T, d].
    pub delta: Option<Matrix<'a, B>>,
    /// [1, d].
    pub weight: Matrix<'a, B>,
    /// ε.
    pub epsilon: f32,
    /// [T, d], present exactly where `delta` is.
    pub sum: Option<MatrixMut<'a, B>>,
    /// [T, d].
    pub normed: MatrixMut<'a, B>,
    /// [T, 1] f32, kept for backward.
    pub inverse_rms: MatrixMut<'a, B>,
}

impl<B: Memory> Operation for RmsNormForward<'_, B> {
    const NAME: &'static str = "rms_norm_forward";
    type Output = ();

    fn check(&self, check: &Check) -> Result<()> {
        let Self { residual, delta, weight, epsilon: _, sum, normed, inverse_rms } = self;
        if delta.is_some() != sum.is_some() {
            return Err(check.error("delta and sum must come together".into()));
        }
        check.elements(residual.cols, &[("weight", weight)])?;
        check.elements(residual.len(), &[("normed", normed), ("delta", delta), ("sum", sum)])?;
        check.elements(residual.rows, &[("inverse_rms", inverse_rms)])?;
        check.stored(check.compute, &[("residual", residual), ("delta", delta), ("weight", weight)])?;
        check.stored(check.compute, &[("sum", sum), ("normed", normed)])?;
        check.stored(DType::F32, &[("inverse_rms", inverse_rms)])
    }
}

/// Gradient of [`RmsNormForward`]. With u = d_normed · weight and x̂ = x · inverse_rms:
/// d_residual += inverse_rms · (u − x̂ · mean(u · x̂)); d_weight += Σ_t d_normed · x̂.
pub struct RmsNormBackward<'a, B: Memory> {
    /// [T, d].
    pub d_normed: Matrix<'a, B>,
    /// [T, d], the input of the norm: `sum` of forward, or `residual` where there was no delta.
    pub x: Matrix<'a, B>,
    /// [1, d].
    pub weight: Matrix<'a, B>,
    /// [T, 1] f32, the result of forward.
    pub inverse_rms: Matrix<'a, B>,
    /// [T, d], accumulated: the gradient that came along the residual stream is already in it.
    pub d_residual: MatrixMut<'a, B>,
    /// [1, d] f32, accumulated; absent where the weight is frozen.
    pub d_weight: Option<MatrixMut<'a, B>>,
}

impl<B: Memory> Operation for RmsNormBackward<'_, B> {
    const NAME: &'static str = "rms_norm_backward";
    type Output = ();

    fn check(&self, check: &Check) -> Result<()> {
        let Self { d_normed, x, weight, inverse_rms, d_residual, d_weight } = self;
        check.elements(d_normed.len(), &[("x", x), ("d_residual", d_residual)])?;
        check.elements(d_normed.cols, &[("weight", weight), ("d_weight", d_weight)])?;
        check.elements(d_normed.rows, &[("inverse_rms", inverse_rms)])?;
        check.stored(check.compute, &[("d_normed", d_normed), ("x", x), ("weight", weight)])?;
        check.stored(check.compute, &[("d_residual", d_residual)])?;
        check.stored(DType::F32, &[("inverse_rms", inverse_rms), ("d_weight", d_weight)])
    }
}
