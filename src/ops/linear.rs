//! Linear layers without bias and their low-rank adapters.

use super::{Backend, Matrix, MatrixMut, expect, shape_error};
use crate::error::Result;

/// y = x wᵀ with x [T, in], w [out, in], y [T, out].
pub fn linear_forward<B: Backend>(backend: &B, x: Matrix<B>, w: Matrix<B>, y: MatrixMut<B>) -> Result<()> {
    const NAME: &str = "linear_forward";
    expect(NAME, "columns of w", w.cols, x.cols)?;
    expect(NAME, "rows of y", y.rows, x.rows)?;
    expect(NAME, "columns of y", y.cols, w.rows)?;
    backend.linear_forward(x, w, y)
}

/// dx = dy w (or dx += dy w) with dy [T, out], w [out, in], dx [T, in].
pub fn linear_backward_input<B: Backend>(
    backend: &B,
    dy: Matrix<B>,
    w: Matrix<B>,
    dx: MatrixMut<B>,
    accumulate: bool,
) -> Result<()> {
    const NAME: &str = "linear_backward_input";
    expect(NAME, "rows of w", w.rows, dy.cols)?;
    expect(NAME, "rows of dx", dx.rows, dy.rows)?;
    expect(NAME, "columns of dx", dx.cols, w.cols)?;
    backend.linear_backward_input(dy, w, dx, accumulate)
}

/// dw += dyᵀ x with dy [T, out], x [T, in], dw [out, in] in f32.
pub fn linear_backward_weight<B: Backend>(backend: &B, dy: Matrix<B>, x: Matrix<B>, dw: MatrixMut<B>) -> Result<()> {
    const NAME: &str = "linear_backward_weight";
    expect(NAME, "rows of x", x.rows, dy.rows)?;
    expect(NAME, "rows of dw", dw.rows, dy.cols)?;
    expect(NAME, "columns of dw", dw.cols, x.cols)?;
    backend.linear_backward_weight(dy, x, dw)
}

/// One adapted projection inside a fused linear layer: y[:, start..start + out] += scale · (x aᵀ) bᵀ.
///
/// The fused layers (q, k, v; gate, up) share x, and each of their projections has factors of its own.
pub struct LoraSlice<'a, B: Backend> {
    /// A, [r, in].
    pub a: Matrix<'a, B>,
    /// B, [out, r].
    pub b: Matrix<'a, B>,
    /// First column of y that the projection writes.
    pub start: usize,
    /// alpha / r (or alpha / √r where the adapter asks for rank stabilisation).
    pub scale: f32,
}

/// Where the gradients of the factors go. The slices' factors and their gradients have the same places (offsets) in
/// two buffers of one layout.
pub struct LoraGradients<'a, B: Backend> {
    /// The buffer of gradients (f32); the gradient of a factor at offset o of its own buffer is added at o here.
    pub buffer: &'a mut B::Buffer,
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

fn check_slices<B: Backend>(
    name: &'static str,
    x_cols: usize,
    y_cols: usize,
    s_cols: usize,
    slices: &[LoraSlice<B>],
) -> Result<()> {
    let mut ranks = 0;
    for slice in slices {
        expect(name, "columns of A", slice.a.cols, x_cols)?;
        expect(name, "columns of B", slice.b.cols, slice.a.rows)?;
        if slice.start + slice.b.rows > y_cols {
            return Err(shape_error(name, format!("columns {}.. of B do not fit {y_cols} outputs", slice.start)));
        }
        ranks += slice.a.rows;
    }
    expect(name, "columns of s", s_cols, ranks)
}

/// s = dropout(x) [a₁; a₂; …]ᵀ, then y[:, slice] += scale · s_slice bᵀ, with x [T, in], s [T, Σr], y [T, out].
///
/// s is kept for backward. Source: LoRA (arXiv 2106.09685), PEFT `lora.Linear`.
pub fn lora_forward<B: Backend>(
    backend: &B,
    x: Matrix<B>,
    slices: &[LoraSlice<B>],
    dropout: Option<Dropout>,
    s: MatrixMut<B>,
    y: MatrixMut<B>,
) -> Result<()> {
    const NAME: &str = "lora_forward";
    check_slices(NAME, x.cols, y.cols, s.cols, slices)?;
    expect(NAME, "rows of s", s.rows, x.rows)?;
    expect(NAME, "rows of y", y.rows, x.rows)?;
    backend.lora_forward(x, slices, dropout, s, y)
}

/// ds = scale · dy_slice b; db += scale · dy_sliceᵀ s; da += dsᵀ dropout(x); dx += dropout'(ds a).
///
/// `gradients` is absent where only dx is wanted. ds [T, Σr] is scratch.
#[allow(clippy::too_many_arguments)]
pub fn lora_backward<B: Backend>(
    backend: &B,
    dy: Matrix<B>,
    x: Matrix<B>,
    s: Matrix<B>,
    slices: &[LoraSlice<B>],
    dropout: Option<Dropout>,
    gradients: Option<LoraGradients<B>>,
    ds: MatrixMut<B>,
    dx: MatrixMut<B>,
) -> Result<()> {
    const NAME: &str = "lora_backward";
    check_slices(NAME, x.cols, dy.cols, s.cols, slices)?;
    expect(NAME, "columns of ds", ds.cols, s.cols)?;
    for (what, rows) in [("x", x.rows), ("s", s.rows), ("ds", ds.rows), ("dx", dx.rows)] {
        expect(NAME, &format!("rows of {what}"), rows, dy.rows)?;
    }
    expect(NAME, "columns of dx", dx.cols, x.cols)?;
    backend.lora_backward(dy, x, s, slices, dropout, gradients, ds, dx)
}
