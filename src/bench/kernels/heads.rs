//! Kernels of families whose queries, keys and values have biases (Qwen 2) or whose heads have norms (Qwen 3), at the
//! sizes of the bench's model.

use super::super::{Bench, Spec, Work, count};
use super::sets;
use crate::backend::cuda::Cuda;
use crate::error::Result;
use crate::ops::{self, Backend, Tensor};

pub(super) fn run(bench: &mut Bench) {
    add_bias(bench);
    bias_backward(bench);
    head_norm_forward(bench);
    for weight in [false, true] {
        head_norm_backward(bench, weight);
    }
}

/// Tokens and columns of qkv.
fn sizes(bench: &Bench) -> (usize, usize) {
    let shapes = &bench.options.shapes;
    (shapes.tokens(), shapes.model.attention().qkv_cols())
}

/// The work of a pass over `stored` matrices of `columns` columns, with `bytes` that do not grow with the tokens.
fn pass(bench: &Bench, columns: usize, stored: f64, bytes: f64) -> Work {
    let work = count::pass(bench.options.shapes.tokens(), columns, stored, 0.0, bench.element());
    Work { bytes: work.bytes + bytes, ..work }
}

fn add_bias(bench: &mut Bench) {
    let (tokens, cols) = sizes(bench);
    let work = pass(bench, cols, 2.0, cols as f64 * bench.element());
    bench.row(Spec::new("add_bias", format!("{tokens} × {cols}"), work), |bench| {
        let cuda = bench.cuda.clone();
        let bias = bench.data.matrix("bias", 1, cols)?;
        let mut sets = sets(bench, work.bytes / 2.0, |_| bench.data.matrix("qkv", tokens, cols))?;
        Ok(move |i| cuda.run(ops::AddBias { bias: bias.view(), y: sets.at(i).view_mut() }))
    });
}

fn bias_backward(bench: &mut Bench) {
    let (tokens, cols) = sizes(bench);
    let work = pass(bench, cols, 1.0, 8.0 * cols as f64);
    bench.row(Spec::new("bias_backward", format!("{tokens} × {cols}"), work), |bench| {
        let cuda = bench.cuda.clone();
        let mut d_bias = bench.data.sums("gradient of bias", 1, cols)?;
        let mut sets = sets(bench, work.bytes, |_| bench.data.matrix("gradient of qkv", tokens, cols))?;
        Ok(move |i| cuda.run(ops::BiasBackward { dy: sets.at(i).view(), d_bias: d_bias.view_mut() }))
    });
}

fn head_norm_forward(bench: &mut Bench) {
    let (tokens, cols) = sizes(bench);
    let shape = bench.options.shapes.model.attention();
    let work = pass(bench, cols, 2.0, 2.0 * shape.head_dim as f64 * bench.element());
    bench.row(Spec::new("head_norm_forward", format!("{tokens} × {cols}"), work), |bench| {
        let cuda = bench.cuda.clone();
        let data = &bench.data;
        let weight = data.matrix("head norm weights", 2, shape.head_dim)?;
        let mut sets = sets(bench, work.bytes, |_| -> Result<[Tensor<Cuda>; 2]> {
            Ok([data.matrix("qkv", tokens, cols)?, data.matrix("normed heads", tokens, cols)?])
        })?;
        Ok(move |i| {
            let [qkv, out] = sets.at(i);
            let out = out.view_mut();
            cuda.run(ops::HeadNormForward { qkv: qkv.view(), weight: weight.view(), epsilon: 1e-6, shape, out })
        })
    });
}

fn head_norm_backward(bench: &mut Bench, with_weight: bool) {
    let (tokens, cols) = sizes(bench);
    let shape = bench.options.shapes.model.attention();
    let normed = shape.query_cols() + shape.key_value_cols();
    let weight_bytes = 2.0 * shape.head_dim as f64 * if with_weight { bench.element() + 8.0 } else { bench.element() };
    // Heads and gradients in, gradients out.
    let work = pass(bench, normed, 3.0, weight_bytes);
    let name = if with_weight { "head_norm_backward/d_weight" } else { "head_norm_backward" };
    bench.row(Spec::new(name, format!("{tokens} × {normed}"), work), |bench| {
        let cuda = bench.cuda.clone();
        let data = &bench.data;
        let weight = data.matrix("head norm weights", 2, shape.head_dim)?;
        let mut d_weight = data.sums("gradient of head norm weights", 2, shape.head_dim)?;
        let mut sets = sets(bench, work.bytes, |_| -> Result<[Tensor<Cuda>; 2]> {
            Ok([data.matrix("qkv", tokens, cols)?, data.matrix("gradient of qkv", tokens, cols)?])
        })?;
        Ok(move |i| {
            let [qkv, d_qkv] = sets.at(i);
            cuda.run(ops::HeadNormBackward {
                qkv: qkv.view(),
                weight: weight.view(),
                epsilon: 1e-6,
                shape,
                d_qkv: d_qkv.view_mut(),
                d_weight: if with_weight { Some(d_weight.view_mut()) } else { None },
            })
        })
    });
}
