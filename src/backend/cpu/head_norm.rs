//! RMS norm of query and key heads.

use rayon::prelude::*;

use super::Cpu;
use super::vector::{sum_of, vectorised};
use super::view::{floats, floats_mut, rows_per_task};
use crate::error::Result;
use crate::ops::{AttentionShape, Checked, Execute, HeadNormBackward, HeadNormForward};

vectorised! {
    fn normalise(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
        let inverse = 1.0 / (sum_of(x, x, |a, b| a * b) / x.len() as f32 + epsilon).sqrt();
        for ((o, x), w) in out.iter_mut().zip(x).zip(weight) {
            *o = x * inverse * w;
        }
    }
}

vectorised! {
    /// Turns the gradient of a head's norm into the gradient of the head, and adds to `d_weight`.
    ///
    /// Both sums are in f64: what they add up cancels down to a small part of it.
    fn backward(x: &[f32], weight: &[f32], epsilon: f32, d: &mut [f32], d_weight: &mut [f64]) {
        let count = x.len() as f32;
        let inverse = 1.0 / (sum_of(x, x, |a, b| a * b) / count + epsilon).sqrt();
        let mut projection = 0.0f64;
        for i in 0..x.len() {
            d_weight[i] += f64::from(d[i] * x[i] * inverse);
            d[i] *= weight[i];
            projection += f64::from(d[i] * x[i]);
        }
        let mean = projection as f32 / count * inverse * inverse;
        for (d, x) in d.iter_mut().zip(x) {
            *d = inverse * (*d - x * mean);
        }
    }
}

/// The index of a head's weight: 0 for queries, 1 for keys; none for values.
fn weight_of(head: usize, shape: AttentionShape) -> Option<usize> {
    let queries = shape.num_attention_heads;
    match head {
        _ if head < queries => Some(0),
        _ if head < queries + shape.num_key_value_heads => Some(1),
        _ => None,
    }
}

impl Execute<HeadNormForward<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<HeadNormForward<Cpu>>) -> Result<()> {
        let HeadNormForward { qkv, weight, epsilon, shape, out } = checked.operands();
        let size = shape.head_dim;
        let cols = shape.qkv_cols();
        let weight = floats(weight);
        let task = rows_per_task(cols) * cols;
        floats_mut(out).par_chunks_mut(task).zip(floats(qkv).par_chunks(task)).for_each(|(out, qkv)| {
            for (out, row) in out.chunks_mut(cols).zip(qkv.chunks(cols)) {
                for (head, (out, x)) in out.chunks_mut(size).zip(row.chunks(size)).enumerate() {
                    match weight_of(head, shape) {
                        Some(index) => normalise(x, &weight[index * size..][..size], epsilon, out),
                        None => out.copy_from_slice(x),
                    }
                }
            }
        });
        Ok(())
    }
}

impl Execute<HeadNormBackward<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<HeadNormBackward<Cpu>>) -> Result<()> {
        let HeadNormBackward { qkv, weight, epsilon, shape, d_qkv, d_weight } = checked.operands();
        let size = shape.head_dim;
        let cols = shape.qkv_cols();
        let weight = floats(weight);
        let task = rows_per_task(cols) * cols;
        let tasks = floats_mut(d_qkv).par_chunks_mut(task).zip(floats(qkv).par_chunks(task));
        let sums: Vec<Vec<f64>> = tasks
            .map(|(d_qkv, qkv)| {
                let mut sums = vec![0.0; 2 * size];
                for (d_row, row) in d_qkv.chunks_mut(cols).zip(qkv.chunks(cols)) {
                    for (head, (d, x)) in d_row.chunks_mut(size).zip(row.chunks(size)).enumerate() {
                        let Some(index) = weight_of(head, shape) else { break };
                        let place = index * size..(index + 1) * size;
                        backward(x, &weight[place.clone()], epsilon, d, &mut sums[place]);
                    }
                }
                sums
            })
            .collect();
        let Some(d_weight) = d_weight else { return Ok(()) };
        let d_weight = floats_mut(d_weight);
        for sum in &sums {
            d_weight.iter_mut().zip(sum).for_each(|(d, s)| *d += *s as f32);
        }
        Ok(())
    }
}
