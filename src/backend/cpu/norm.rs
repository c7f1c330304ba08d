//! RMS norm, fused with the residual addition.

use rayon::prelude::*;

use super::Cpu;
use super::vector::{sum_of, vectorised};
use super::view::{floats, floats_mut, rows_per_task};
use crate::error::Result;
use crate::ops::{Checked, Execute, RmsNormBackward, RmsNormForward};

vectorised! {
    fn normalise(x: &[f32], weight: &[f32], epsilon: f32, normed: &mut [f32]) -> f32 {
        let mean = sum_of(x, x, |a, b| a * b) / x.len() as f32;
        let inverse = 1.0 / (mean + epsilon).sqrt();
        for ((n, x), w) in normed.iter_mut().zip(x).zip(weight) {
            *n = x * inverse * w;
        }
        inverse
    }
}

vectorised! {
    fn add(a: &[f32], b: &[f32], out: &mut [f32]) {
        for ((o, a), b) in out.iter_mut().zip(a).zip(b) {
            *o = a + b;
        }
    }
}

impl Execute<RmsNormForward<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<RmsNormForward<Cpu>>) -> Result<()> {
        let RmsNormForward { residual, delta, weight, epsilon, sum, normed, inverse_rms } = checked.operands();
        let cols = residual.cols;
        let rows = rows_per_task(residual.cols);
        let residual = floats(residual);
        let weight = floats(weight);
        let out = floats_mut(normed).par_chunks_mut(rows * cols).zip(floats_mut(inverse_rms).par_chunks_mut(rows));
        let Some((delta, sum)) = delta.zip(sum) else {
            out.zip(residual.par_chunks(rows * cols)).for_each(|((normed, inverse), x)| {
                for ((n, i), x) in normed.chunks_mut(cols).zip(inverse).zip(x.chunks(cols)) {
                    *i = normalise(x, weight, epsilon, n);
                }
            });
            return Ok(());
        };
        let sums = floats_mut(sum).par_chunks_mut(rows * cols);
        let inputs = residual.par_chunks(rows * cols).zip(floats(delta).par_chunks(rows * cols));
        out.zip(sums).zip(inputs).for_each(|(((normed, inverse), sum), (residual, delta))| {
            add(residual, delta, sum);
            for ((n, i), x) in normed.chunks_mut(cols).zip(inverse).zip(sum.chunks(cols)) {
                *i = normalise(x, weight, epsilon, n);
            }
        });
        Ok(())
    }
}

vectorised! {
    /// One row of the gradient: adds to `d_residual` and to the partial `d_weight`.
    fn row_backward(d_normed: &[f32], x: &[f32], weight: &[f32], inverse: f32, d_residual: &mut [f32], d_weight: &mut [f32]) {
        let mut projection = 0.0f64;
        for ((d, x), w) in d_normed.chunks(16).zip(x.chunks(16)).zip(weight.chunks(16)) {
            let mut part = 0.0f32;
            for i in 0..d.len() {
                part += d[i] * w[i] * x[i];
            }
            projection += f64::from(part);
        }
        let mean = (projection / x.len() as f64) as f32 * inverse * inverse;
        for i in 0..x.len() {
            d_residual[i] += inverse * (d_normed[i] * weight[i] - x[i] * mean);
            d_weight[i] += d_normed[i] * x[i] * inverse;
        }
    }
}

impl Execute<RmsNormBackward<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<RmsNormBackward<Cpu>>) -> Result<()> {
        let RmsNormBackward { d_normed, x, weight, inverse_rms, d_residual, d_weight } = checked.operands();
        let cols = x.cols;
        let rows = rows_per_task(x.cols);
        let x = floats(x);
        let weight = floats(weight);
        let inverse_rms = floats(inverse_rms);
        let inputs = floats(d_normed).par_chunks(rows * cols).zip(x.par_chunks(rows * cols));
        let tasks = floats_mut(d_residual).par_chunks_mut(rows * cols).zip(inverse_rms.par_chunks(rows)).zip(inputs);
        let partial: Vec<Vec<f32>> = tasks
            .map(|((d_residual, inverse), (d_normed, x))| {
                let mut partial = vec![0.0; cols];
                let rows = d_residual.chunks_mut(cols).zip(inverse).zip(d_normed.chunks(cols).zip(x.chunks(cols)));
                for ((d_residual, inverse), (d_normed, x)) in rows {
                    row_backward(d_normed, x, weight, *inverse, d_residual, &mut partial);
                }
                partial
            })
            .collect();
        let Some(d_weight) = d_weight else { return Ok(()) };
        let d_weight = floats_mut(d_weight);
        for partial in &partial {
            d_weight.iter_mut().zip(partial).for_each(|(d, p)| *d += p);
        }
        Ok(())
    }
}
