//! RMS norm, fused with the residual addition in front of it.

use super::{Backend, Matrix, MatrixMut, expect, shape_error};
use crate::error::Result;

/// sum = residual + delta (or residual where there is no delta); inverse_rms = 1/√(mean(sum²) + ε);
/// normed = sum · inverse_rms · weight.
///
/// residual, delta, sum, normed [T, d]; weight [1, d]; inverse_rms [T, 1] f32. `sum` is present exactly when `delta` is.
#[allow(clippy::too_many_arguments)]
pub fn rms_norm_forward<B: Backend>(
    backend: &B,
    residual: Matrix<B>,
    delta: Option<Matrix<B>>,
    weight: Matrix<B>,
    epsilon: f32,
    sum: Option<MatrixMut<B>>,
    normed: MatrixMut<B>,
    inverse_rms: MatrixMut<B>,
) -> Result<()> {
    const NAME: &str = "rms_norm_forward";
    if delta.is_some() != sum.is_some() {
        return Err(shape_error(NAME, "delta and sum must come together".into()));
    }
    expect(NAME, "elements of weight", weight.len(), residual.cols)?;
    for (what, len) in [
        ("normed", normed.len()),
        ("delta", delta.map_or(residual.len(), |m| m.len())),
        ("sum", sum.as_ref().map_or(residual.len(), |m| m.len())),
    ] {
        expect(NAME, &format!("elements of {what}"), len, residual.len())?;
    }
    expect(NAME, "rows of inverse_rms", inverse_rms.len(), residual.rows)?;
    backend.rms_norm_forward(residual, delta, weight, epsilon, sum, normed, inverse_rms)
}

/// With u = d_normed · weight and x̂ = x · inverse_rms: d_residual += inverse_rms · (u − x̂ · mean(u · x̂));
/// d_weight += Σ_t d_normed · x̂.
///
/// d_residual [T, d] accumulates (the gradient that came along the residual stream is already in it); x is the input of
/// the norm (the `sum` of forward); d_weight [1, d] f32.
pub fn rms_norm_backward<B: Backend>(
    backend: &B,
    d_normed: Matrix<B>,
    x: Matrix<B>,
    weight: Matrix<B>,
    inverse_rms: Matrix<B>,
    d_residual: MatrixMut<B>,
    d_weight: Option<MatrixMut<B>>,
) -> Result<()> {
    const NAME: &str = "rms_norm_backward";
    expect(NAME, "elements of x", x.len(), d_normed.len())?;
    expect(NAME, "elements of weight", weight.len(), d_normed.cols)?;
    expect(NAME, "rows of inverse_rms", inverse_rms.len(), d_normed.rows)?;
    expect(NAME, "elements of d_residual", d_residual.len(), d_normed.len())?;
    if let Some(d_weight) = &d_weight {
        expect(NAME, "elements of d_weight", d_weight.len(), d_normed.cols)?;
    }
    backend.rms_norm_backward(d_normed, x, weight, inverse_rms, d_residual, d_weight)
}
