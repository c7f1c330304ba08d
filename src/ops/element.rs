//! Embedding, SwiGLU, and the small vector operations.

use super::{Backend, Matrix, MatrixMut, expect};
use crate::error::Result;

/// `out[t] = table[ids[t]]`; ids [T, 1] u32, table [V, d], out [T, d]. The caller has checked that every id is below V.
pub fn embedding_forward<B: Backend>(backend: &B, ids: Matrix<B>, table: Matrix<B>, out: MatrixMut<B>) -> Result<()> {
    const NAME: &str = "embedding_forward";
    expect(NAME, "number of ids", ids.len(), out.rows)?;
    expect(NAME, "columns of out", out.cols, table.cols)?;
    backend.embedding_forward(ids, table, out)
}

/// `d_table[ids[t]] += d_out[t]`, summed in token order, so that the result does not depend on the schedule.
pub fn embedding_backward<B: Backend>(
    backend: &B,
    ids: Matrix<B>,
    d_out: Matrix<B>,
    d_table: MatrixMut<B>,
) -> Result<()> {
    const NAME: &str = "embedding_backward";
    expect(NAME, "number of ids", ids.len(), d_out.rows)?;
    expect(NAME, "columns of d_table", d_table.cols, d_out.cols)?;
    backend.embedding_backward(ids, d_out, d_table)
}

/// `out[i] = from[indices[i]]`; indices [n, 1] u32, each below the rows of `from`.
pub fn gather_rows<B: Backend>(backend: &B, from: Matrix<B>, indices: Matrix<B>, out: MatrixMut<B>) -> Result<()> {
    const NAME: &str = "gather_rows";
    expect(NAME, "number of indices", indices.len(), out.rows)?;
    expect(NAME, "columns of out", out.cols, from.cols)?;
    backend.gather_rows(from, indices, out)
}

/// h = silu(gate) · up, with gate_up [T, 2F] = [gate | up] and h [T, F].
pub fn swiglu_forward<B: Backend>(backend: &B, gate_up: Matrix<B>, h: MatrixMut<B>) -> Result<()> {
    const NAME: &str = "swiglu_forward";
    expect(NAME, "columns of gate_up", gate_up.cols, 2 * h.cols)?;
    expect(NAME, "rows of gate_up", gate_up.rows, h.rows)?;
    backend.swiglu_forward(gate_up, h)
}

/// d_gate = d_h · up · σ(gate)(1 + gate(1 − σ(gate))), d_up = d_h · silu(gate); shapes as in [`swiglu_forward`].
pub fn swiglu_backward<B: Backend>(
    backend: &B,
    d_h: Matrix<B>,
    gate_up: Matrix<B>,
    d_gate_up: MatrixMut<B>,
) -> Result<()> {
    const NAME: &str = "swiglu_backward";
    expect(NAME, "columns of gate_up", gate_up.cols, 2 * d_h.cols)?;
    expect(NAME, "rows of gate_up", gate_up.rows, d_h.rows)?;
    expect(NAME, "elements of d_gate_up", d_gate_up.len(), gate_up.len())?;
    backend.swiglu_backward(d_h, gate_up, d_gate_up)
}

/// y += alpha · x, in f32.
pub fn axpy<B: Backend>(backend: &B, alpha: f32, x: Matrix<B>, y: MatrixMut<B>) -> Result<()> {
    expect("axpy", "elements of y", y.len(), x.len())?;
    backend.axpy(alpha, x, y)
}

/// `out[0] += scale · Σ a · b`, in f32 with a fixed order of summation: how per-token values become a loss on the device.
pub fn weighted_sum<B: Backend>(backend: &B, a: Matrix<B>, b: Matrix<B>, scale: f32, out: MatrixMut<B>) -> Result<()> {
    expect("weighted_sum", "elements of b", b.len(), a.len())?;
    expect("weighted_sum", "elements of out", out.len(), 1)?;
    backend.weighted_sum(a, b, scale, out)
}

/// Σ x², accumulated in f64 in a fixed order. Not finite exactly when some x is not. Waits for the device.
pub fn squared_norm<B: Backend>(backend: &B, x: Matrix<B>) -> Result<f64> {
    backend.squared_norm(x)
}
