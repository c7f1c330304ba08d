//! Rows of tables, SwiGLU, and the small vector operations.

use super::{Check, DType, Matrix, MatrixMut, Memory, Operation};
use crate::error::Result;

/// `out[i] = from[indices[i]]`: the embedding of tokens, among others.
pub struct GatherRows<'a, B: Memory> {
    /// [V, d].
    pub from: Matrix<'a, B>,
    /// [n, 1] u32. The caller has checked that each is below the rows of `from`.
    pub indices: Matrix<'a, B>,
    /// [n, d].
    pub out: MatrixMut<'a, B>,
}

impl<B: Memory> Operation for GatherRows<'_, B> {
    const NAME: &'static str = "gather_rows";
    type Output = ();

    fn check(&self, check: &Check) -> Result<()> {
        let Self { from, indices, out } = self;
        check.elements(out.rows, &[("indices", indices)])?;
        check.columns(from.cols, &[("out", out)])?;
        check.stored(check.compute, &[("from", from), ("out", out)])?;
        check.stored(DType::U32, &[("indices", indices)])
    }
}

/// `d_table[ids[t]] += d_out[t]`, summed in token order, so that the result does not depend on the schedule.
pub struct EmbeddingBackward<'a, B: Memory> {
    /// [T, 1] u32. The caller has checked that each is below V.
    pub ids: Matrix<'a, B>,
    /// [T, d].
    pub d_out: Matrix<'a, B>,
    /// [V, d] f32, accumulated.
    pub d_table: MatrixMut<'a, B>,
}

impl<B: Memory> Operation for EmbeddingBackward<'_, B> {
    const NAME: &'static str = "embedding_backward";
    type Output = ();

    fn check(&self, check: &Check) -> Result<()> {
        let Self { ids, d_out, d_table } = self;
        check.elements(d_out.rows, &[("ids", ids)])?;
        check.columns(d_out.cols, &[("d_table", d_table)])?;
        check.stored(DType::U32, &[("ids", ids)])?;
        check.stored(check.compute, &[("d_out", d_out)])?;
        check.stored(DType::F32, &[("d_table", d_table)])
    }
}

/// h = silu(gate) · up.
pub struct SwigluForward<'a, B: Memory> {
    /// [T, 2F] = [gate | up].
    pub gate_up: Matrix<'a, B>,
    /// [T, F].
    pub h: MatrixMut<'a, B>,
}

impl<B: Memory> Operation for SwigluForward<'_, B> {
    const NAME: &'static str = "swiglu_forward";
    type Output = ();

    fn check(&self, check: &Check) -> Result<()> {
        let Self { gate_up, h } = self;
        check.columns(2 * h.cols, &[("gate_up", gate_up)])?;
        check.rows(h.rows, &[("gate_up", gate_up)])?;
        check.stored(check.compute, &[("gate_up", gate_up), ("h", h)])
    }
}

/// Gradient of [`SwigluForward`]: d_gate = d_h · up · σ(gate)(1 + gate(1 − σ(gate))), d_up = d_h · silu(gate).
pub struct SwigluBackward<'a, B: Memory> {
    /// [T, F].
    pub d_h: Matrix<'a, B>,
    /// [T, 2F] = [gate | up].
    pub gate_up: Matrix<'a, B>,
    /// [T, 2F] = [d_gate | d_up], overwritten.
    pub d_gate_up: MatrixMut<'a, B>,
}

impl<B: Memory> Operation for SwigluBackward<'_, B> {
    const NAME: &'static str = "swiglu_backward";
    type Output = ();

    fn check(&self, check: &Check) -> Result<()> {
        let Self { d_h, gate_up, d_gate_up } = self;
        check.columns(2 * d_h.cols, &[("gate_up", gate_up)])?;
        check.rows(d_h.rows, &[("gate_up", gate_up)])?;
        check.elements(gate_up.len(), &[("d_gate_up", d_gate_up)])?;
        check.stored(check.compute, &[("d_h", d_h), ("gate_up", gate_up), ("d_gate_up", d_gate_up)])
    }
}

/// `out[0] += scale · Σ a · b`, in f32 with a fixed order of summation: how per-token values become a loss on the device.
pub struct WeightedSum<'a, B: Memory> {
    /// `[n]` f32.
    pub a: Matrix<'a, B>,
    /// `[n]` f32.
    pub b: Matrix<'a, B>,
    /// The factor on the sum.
    pub scale: f32,
    /// One f32, accumulated.
    pub out: MatrixMut<'a, B>,
}

impl<B: Memory> Operation for WeightedSum<'_, B> {
    const NAME: &'static str = "weighted_sum";
    type Output = ();

    fn check(&self, check: &Check) -> Result<()> {
        let Self { a, b, scale: _, out } = self;
        check.elements(a.len(), &[("b", b)])?;
        check.elements(1, &[("out", out)])?;
        check.stored(DType::F32, &[("a", a), ("b", b), ("out", out)])
    }
}

/// Σ x² on the host, accumulated in f64 in a fixed order. Not finite exactly when some x is not. Waits for the device.
pub struct SquaredNorm<'a, B: Memory> {
    /// `[n]` f32.
    pub x: Matrix<'a, B>,
}

impl<B: Memory> Operation for SquaredNorm<'_, B> {
    const NAME: &'static str = "squared_norm";
    type Output = f64;

    fn check(&self, check: &Check) -> Result<()> {
        check.stored(DType::F32, &[("x", &self.x)])
    }
}

/// Accumulates a gradient, and adds to the accumulated one what of another has its sign:
///
/// accumulated = decay · accumulated + (1 − decay) · gradient; gradient = accumulated + scale · masked where
/// sign(masked) = sign(accumulated), elsewhere accumulated alone.
///
/// An element that is not a number stays one. Source: disruption masking (arXiv 2506.12484 v4, section 4).
pub struct SignMask<'a, B: Memory> {
    /// `[n]` f32.
    pub masked: Matrix<'a, B>,
    /// The factor on `masked`.
    pub scale: f32,
    /// The share of `accumulated` that stays.
    pub decay: f64,
    /// `[n]` f32, updated.
    pub accumulated: MatrixMut<'a, B>,
    /// `[n]` f32: this step's in, the sum out.
    pub gradient: MatrixMut<'a, B>,
}

impl<B: Memory> Operation for SignMask<'_, B> {
    const NAME: &'static str = "sign_mask";
    type Output = ();

    fn check(&self, check: &Check) -> Result<()> {
        let Self { masked, scale: _, decay, accumulated, gradient } = self;
        if !(0.0..=1.0).contains(decay) {
            return Err(check.error(format!("the decay is {decay}, which is not between 0 and 1")));
        }
        check.elements(gradient.len(), &[("masked", masked), ("accumulated", accumulated)])?;
        check.stored(DType::F32, &[("masked", masked), ("accumulated", accumulated), ("gradient", gradient)])
    }
}
