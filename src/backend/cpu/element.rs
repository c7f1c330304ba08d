//! Embedding, SwiGLU, and the small vector operations.

use rayon::prelude::*;

use super::Cpu;
use super::vector::{dot, sigmoid, vectorised};
use super::view::{floats, floats_mut, integers, rows_per_task};
use crate::ops::{Matrix, MatrixMut};

/// Elements of one task of a flat operation.
const CHUNK: usize = 1 << 15;

pub(super) fn gather_rows(from: Matrix<Cpu>, indices: Matrix<Cpu>, out: MatrixMut<Cpu>) {
    let cols = from.cols;
    let from = floats(from);
    for (row, &index) in floats_mut(out).chunks_mut(cols).zip(integers(indices)) {
        row.copy_from_slice(&from[index as usize * cols..][..cols]);
    }
}

pub(super) fn embedding_backward(ids: Matrix<Cpu>, d_out: Matrix<Cpu>, d_table: MatrixMut<Cpu>) {
    let cols = d_out.cols;
    let d_table = floats_mut(d_table);
    for (&id, d) in integers(ids).iter().zip(floats(d_out).chunks(cols)) {
        d_table[id as usize * cols..][..cols].iter_mut().zip(d).for_each(|(t, d)| *t += d);
    }
}

vectorised! {
    fn swiglu_row(gate: &[f32], up: &[f32], h: &mut [f32]) {
        for ((h, g), u) in h.iter_mut().zip(gate).zip(up) {
            *h = g * sigmoid(*g) * u;
        }
    }
}

pub(super) fn swiglu_forward(gate_up: Matrix<Cpu>, h: MatrixMut<Cpu>) {
    let cols = h.cols;
    let rows = rows_per_task(2 * cols);
    let inputs = floats(gate_up).par_chunks(rows * 2 * cols);
    floats_mut(h).par_chunks_mut(rows * cols).zip(inputs).for_each(|(h, gate_up)| {
        for (h, row) in h.chunks_mut(cols).zip(gate_up.chunks(2 * cols)) {
            let (gate, up) = row.split_at(cols);
            swiglu_row(gate, up, h);
        }
    });
}

vectorised! {
    fn swiglu_row_backward(d_h: &[f32], gate: &[f32], up: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
        for i in 0..d_h.len() {
            let s = sigmoid(gate[i]);
            let silu = gate[i] * s;
            d_up[i] = d_h[i] * silu;
            d_gate[i] = d_h[i] * up[i] * (s + silu * (1.0 - s));
        }
    }
}

pub(super) fn swiglu_backward(d_h: Matrix<Cpu>, gate_up: Matrix<Cpu>, d_gate_up: MatrixMut<Cpu>) {
    let cols = d_h.cols;
    let rows = rows_per_task(2 * cols);
    let inputs = floats(d_h).par_chunks(rows * cols).zip(floats(gate_up).par_chunks(rows * 2 * cols));
    floats_mut(d_gate_up).par_chunks_mut(rows * 2 * cols).zip(inputs).for_each(|(out, (d_h, gate_up))| {
        let rows = out.chunks_mut(2 * cols).zip(d_h.chunks(cols).zip(gate_up.chunks(2 * cols)));
        for (out, (d_h, row)) in rows {
            let ((d_gate, d_up), (gate, up)) = (out.split_at_mut(cols), row.split_at(cols));
            swiglu_row_backward(d_h, &gate[..cols], &up[..cols], &mut d_gate[..cols], &mut d_up[..cols]);
        }
    });
}

pub(super) fn axpy(alpha: f32, x: Matrix<Cpu>, y: MatrixMut<Cpu>) {
    floats_mut(y).par_chunks_mut(CHUNK).zip(floats(x).par_chunks(CHUNK)).for_each(|(y, x)| {
        y.iter_mut().zip(x).for_each(|(y, x)| *y += alpha * x);
    });
}

pub(super) fn weighted_sum(a: Matrix<Cpu>, b: Matrix<Cpu>, scale: f32, out: MatrixMut<Cpu>) {
    let sum: f64 = floats(a).iter().zip(floats(b)).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    floats_mut(out)[0] += (f64::from(scale) * sum) as f32;
}

pub(super) fn squared_norm(x: Matrix<Cpu>) -> f64 {
    // Short f32 sums, long f64 sums: accurate, and fast enough to guard every step.
    let part = |chunk: &[f32]| -> f64 { chunk.chunks(256).map(|c| f64::from(dot(c, c))).sum() };
    let parts: Vec<f64> = floats(x).par_chunks(CHUNK).map(part).collect();
    parts.iter().sum()
}
