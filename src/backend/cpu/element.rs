//! Rows of tables, SwiGLU, and the small vector operations.

use rayon::prelude::*;

use super::Cpu;
use super::vector::{dot, sigmoid, vectorised};
use super::view::{floats, floats_mut, integers, rows_per_task};
use crate::error::Result;
use crate::ops::{
    Checked, EmbeddingBackward, Execute, GatherRows, SignMask, SquaredNorm, SwigluBackward, SwigluForward, WeightedSum,
};

/// Elements of one task of a flat operation.
const CHUNK: usize = 1 << 15;

impl Execute<GatherRows<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<GatherRows<Cpu>>) -> Result<()> {
        let GatherRows { from, indices, out } = checked.operands();
        let cols = from.cols;
        let from = floats(from);
        for (row, &index) in floats_mut(out).chunks_mut(cols).zip(integers(indices)) {
            row.copy_from_slice(&from[index as usize * cols..][..cols]);
        }
        Ok(())
    }
}

impl Execute<EmbeddingBackward<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<EmbeddingBackward<Cpu>>) -> Result<()> {
        let EmbeddingBackward { ids, d_out, d_table } = checked.operands();
        let cols = d_out.cols;
        let d_table = floats_mut(d_table);
        for (&id, d) in integers(ids).iter().zip(floats(d_out).chunks(cols)) {
            d_table[id as usize * cols..][..cols].iter_mut().zip(d).for_each(|(t, d)| *t += d);
        }
        Ok(())
    }
}

vectorised! {
    fn swiglu_row(gate: &[f32], up: &[f32], h: &mut [f32]) {
        for ((h, g), u) in h.iter_mut().zip(gate).zip(up) {
            *h = g * sigmoid(*g) * u;
        }
    }
}

impl Execute<SwigluForward<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<SwigluForward<Cpu>>) -> Result<()> {
        let SwigluForward { gate_up, h } = checked.operands();
        let cols = h.cols;
        let rows = rows_per_task(2 * cols);
        let inputs = floats(gate_up).par_chunks(rows * 2 * cols);
        floats_mut(h).par_chunks_mut(rows * cols).zip(inputs).for_each(|(h, gate_up)| {
            for (h, row) in h.chunks_mut(cols).zip(gate_up.chunks(2 * cols)) {
                let (gate, up) = row.split_at(cols);
                swiglu_row(gate, up, h);
            }
        });
        Ok(())
    }
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

impl Execute<SwigluBackward<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<SwigluBackward<Cpu>>) -> Result<()> {
        let SwigluBackward { d_h, gate_up, d_gate_up } = checked.operands();
        let cols = d_h.cols;
        let rows = rows_per_task(2 * cols);
        let inputs = floats(d_h).par_chunks(rows * cols).zip(floats(gate_up).par_chunks(rows * 2 * cols));
        floats_mut(d_gate_up).par_chunks_mut(rows * 2 * cols).zip(inputs).for_each(|(out, (d_h, gate_up))| {
            let rows = out.chunks_mut(2 * cols).zip(d_h.chunks(cols).zip(gate_up.chunks(2 * cols)));
            for (out, (d_h, row)) in rows {
                let (d_gate, d_up) = out.split_at_mut(cols);
                let (gate, up) = row.split_at(cols);
                swiglu_row_backward(d_h, &gate[..cols], &up[..cols], &mut d_gate[..cols], &mut d_up[..cols]);
            }
        });
        Ok(())
    }
}

impl Execute<WeightedSum<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<WeightedSum<Cpu>>) -> Result<()> {
        let WeightedSum { a, b, scale, out } = checked.operands();
        let sum: f64 = floats(a).iter().zip(floats(b)).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        floats_mut(out)[0] += (f64::from(scale) * sum) as f32;
        Ok(())
    }
}

impl Execute<SquaredNorm<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<SquaredNorm<Cpu>>) -> Result<f64> {
        let SquaredNorm { x } = checked.operands();
        // Short f32 sums, long f64 sums: accurate, and fast enough to guard every step.
        let part = |chunk: &[f32]| -> f64 { chunk.chunks(256).map(|c| f64::from(dot(c, c))).sum() };
        let parts: Vec<f64> = floats(x).par_chunks(CHUNK).map(part).collect();
        Ok(parts.iter().sum())
    }
}

vectorised! {
    fn sign_mask(gradient: &mut [f32], accumulated: &mut [f32], masked: &[f32], shares: (f32, f32), scale: f32) {
        let (decay, fresh) = shares;
        for i in 0..gradient.len() {
            let sum = decay.mul_add(accumulated[i], fresh * gradient[i]);
            accumulated[i] = sum;
            let apart = (sum <= 0.0 && masked[i] >= 0.0) || (sum >= 0.0 && masked[i] <= 0.0);
            gradient[i] = if apart { sum } else { scale.mul_add(masked[i], sum) };
        }
    }
}

impl Execute<SignMask<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<SignMask<Cpu>>) -> Result<()> {
        let SignMask { masked, scale, decay, accumulated, gradient } = checked.operands();
        let shares = (decay as f32, (1.0 - decay) as f32);
        let states = floats_mut(accumulated).par_chunks_mut(CHUNK).zip(floats(masked).par_chunks(CHUNK));
        floats_mut(gradient).par_chunks_mut(CHUNK).zip(states).for_each(|(gradient, (accumulated, masked))| {
            sign_mask(gradient, accumulated, masked, shares, scale);
        });
        Ok(())
    }
}
