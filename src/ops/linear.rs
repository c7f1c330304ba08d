//! Linear layers and their low-rank adapters. A bias is an operation of its own ([`super::AddBias`]).

use super::{Buffer, Check, DType, Matrix, MatrixMut, Memory, Operation};
use crate::error::Result;

/// y = x wᵀ. The products of linear layers take floats of one dtype, whatever the device computes in.
pub struct LinearForward<'a, B: Memory> {
    /// [T, in].
    pub x: Matrix<'a, B>,
    /// [out, in], stored as x.
    pub w: Matrix<'a, B>,
    /// [T, out], stored as x or in f32.
    pub y: MatrixMut<'a, B>,
}

impl<B: Memory> Operation for LinearForward<'_, B> {
    const NAME: &'static str = "linear_forward";
    type Output = ();

    fn check(&self, check: &Check) -> Result<()> {
        let Self { x, w, y } = self;
        check.columns(x.cols, &[("w", w)])?;
        check.rows(x.rows, &[("y", y)])?;
        check.columns(w.rows, &[("y", y)])?;
        check.product([("x", x), ("w", w)], ("y", y))
    }
}

/// dx = dy w, or dx += dy w.
pub struct LinearBackwardInput<'a, B: Memory> {
    /// [T, out].
    pub dy: Matrix<'a, B>,
    /// [out, in], stored as dy.
    pub w: Matrix<'a, B>,
    /// [T, in], stored as dy or in f32.
    pub dx: MatrixMut<'a, B>,
    /// Whether dx is added to instead of overwritten.
    pub accumulate: bool,
}

impl<B: Memory> Operation for LinearBackwardInput<'_, B> {
    const NAME: &'static str = "linear_backward_input";
    type Output = ();

    fn check(&self, check: &Check) -> Result<()> {
        let Self { dy, w, dx, accumulate: _ } = self;
        check.rows(dy.cols, &[("w", w)])?;
        check.rows(dy.rows, &[("dx", dx)])?;
        check.columns(w.cols, &[("dx", dx)])?;
        check.product([("dy", dy), ("w", w)], ("dx", dx))
    }
}

/// dw += dyᵀ x.
pub struct LinearBackwardWeight<'a, B: Memory> {
    /// [T, out].
    pub dy: Matrix<'a, B>,
    /// [T, in], stored as dy.
    pub x: Matrix<'a, B>,
    /// [out, in], accumulated; stored as dy, or in f32 as every gradient of a model.
    pub dw: MatrixMut<'a, B>,
}

impl<B: Memory> Operation for LinearBackwardWeight<'_, B> {
    const NAME: &'static str = "linear_backward_weight";
    type Output = ();

    fn check(&self, check: &Check) -> Result<()> {
        let Self { dy, x, dw } = self;
        check.rows(dy.rows, &[("x", x)])?;
        check.rows(dy.cols, &[("dw", dw)])?;
        check.columns(x.cols, &[("dw", dw)])?;
        check.product([("dy", dy), ("x", x)], ("dw", dw))
    }
}

/// One adapted projection inside a fused linear layer: y[:, start..start + out] += scale · (x aᵀ) bᵀ.
///
/// The fused layers (q, k, v; gate, up) share x, and each of their projections has factors of its own.
pub struct LoraSlice<'a, B: Memory> {
    /// A, [r, in].
    pub a: Matrix<'a, B>,
    /// B, [out, r].
    pub b: Matrix<'a, B>,
    /// First column of y that the projection writes.
    pub start: usize,
    /// alpha / r (or alpha / √r where the adapter asks for rank stabilisation).
    pub scale: f32,
}

/// Dropout on the input of the adapters. The mask is a function of the key, so backward computes the same one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability of zeroing an element, in [0, 1).
    pub probability: f32,
    /// Key of the mask: element i of x is kept unless word i mod 4 of Philox block (i / 4, site, step) is small.
    pub seed: u64,
    /// Which projection of which layer, so that masks are independent.
    pub site: u32,
    /// Which step.
    pub step: u32,
}

/// The slices of a layer from `input` to `output` columns, whose ranks together are the columns of s.
fn check_slices<B: Memory>(
    check: &Check,
    slices: &[LoraSlice<B>],
    input: &Matrix<B>,
    output_cols: usize,
    rank_cols: usize,
) -> Result<()> {
    let mut ranks = 0;
    for LoraSlice { a, b, start, scale: _ } in slices {
        check.columns(input.cols, &[("A", a)])?;
        check.columns(a.rows, &[("B", b)])?;
        if start.checked_add(b.rows).is_none_or(|end| end > output_cols) {
            return Err(check.error(format!("columns {start}.. of B do not fit {output_cols} outputs")));
        }
        check.stored(input.dtype(), &[("A", a), ("B", b)])?;
        ranks += a.rows;
    }
    check.equal("columns of s", rank_cols, ranks)
}

/// s = dropout(x) [a₁; a₂; …]ᵀ, then y[:, slice] += scale · s_slice bᵀ. All operands are floats of one dtype.
///
/// Source: LoRA (arXiv 2106.09685), PEFT `lora.Linear`.
pub struct LoraForward<'a, B: Memory> {
    /// [T, in].
    pub x: Matrix<'a, B>,
    /// The adapted projections of the layer.
    pub slices: &'a [LoraSlice<'a, B>],
    /// Dropout on x.
    pub dropout: Option<Dropout>,
    /// [T, Σr], kept for backward.
    pub s: MatrixMut<'a, B>,
    /// [T, out], accumulated.
    pub y: MatrixMut<'a, B>,
}

impl<B: Memory> Operation for LoraForward<'_, B> {
    const NAME: &'static str = "lora_forward";
    type Output = ();

    fn check(&self, check: &Check) -> Result<()> {
        let Self { x, slices, dropout: _, s, y } = self;
        check_slices(check, slices, x, y.cols, s.cols)?;
        check.rows(x.rows, &[("s", s), ("y", y)])?;
        check.product([("x", x), ("s", &s.as_matrix())], ("y", y))?;
        check.stored(x.dtype(), &[("y", y)])
    }
}

/// Gradient of [`LoraForward`]: ds = scale · dy_slice b; db += scale · dy_sliceᵀ s; da += dsᵀ dropout(x);
/// dx += dropout'(ds a). All operands but `gradients` are floats of one dtype.
pub struct LoraBackward<'a, B: Memory> {
    /// [T, out].
    pub dy: Matrix<'a, B>,
    /// [T, in], as in forward.
    pub x: Matrix<'a, B>,
    /// [T, Σr], the result of forward.
    pub s: Matrix<'a, B>,
    /// The adapted projections of the layer.
    pub slices: &'a [LoraSlice<'a, B>],
    /// As in forward.
    pub dropout: Option<Dropout>,
    /// A buffer of f32, accumulated: the gradient of a factor at offset o of its own buffer is at o here. Absent where only
    /// dx is wanted.
    pub gradients: Option<&'a mut B::Buffer>,
    /// [T, Σr], scratch.
    pub ds: MatrixMut<'a, B>,
    /// [T, in], accumulated.
    pub dx: MatrixMut<'a, B>,
}

impl<B: Memory> Operation for LoraBackward<'_, B> {
    const NAME: &'static str = "lora_backward";
    type Output = ();

    fn check(&self, check: &Check) -> Result<()> {
        let Self { dy, x, s, slices, dropout: _, gradients, ds, dx } = self;
        check_slices(check, slices, x, dy.cols, s.cols)?;
        check.columns(s.cols, &[("ds", ds)])?;
        check.rows(dy.rows, &[("x", x), ("s", s), ("ds", ds), ("dx", dx)])?;
        check.columns(x.cols, &[("dx", dx)])?;
        check.product([("x", x), ("dy", dy)], ("s", s))?;
        check.stored(x.dtype(), &[("s", s), ("ds", ds), ("dx", dx)])?;
        for LoraSlice { a, b, .. } in *slices {
            for (what, factor) in [("the gradient of A", a), ("the gradient of B", b)] {
                let Some(buffer) = gradients else { continue };
                check.range(what, &**buffer, factor.offset, factor.len())?;
                check.dtype(what, buffer.dtype(), DType::F32)?;
            }
        }
        Ok(())
    }
}
