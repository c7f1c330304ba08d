//! Kernels that pass over the tokens of a batch: norms, rotation, SwiGLU, embedding, losses on hidden states.

use std::collections::HashSet;

use super::super::{Bench, Spec, Work, count};
use super::sets;
use crate::backend::cuda::Cuda;
use crate::error::Result;
use crate::ops::{self, Backend, RopeTable, Tensor};

pub(super) fn run(bench: &mut Bench) {
    rms_norm_forward(bench);
    for weight in [false, true] {
        rms_norm_backward(bench, weight);
    }
    rope(bench);
    swiglu_forward(bench);
    swiglu_backward(bench);
    gather_rows(bench);
    embedding_backward(bench);
    representation_distance(bench);
    cosine_margin(bench);
    random_mapping(bench);
}

/// Tokens, hidden size and intermediate size.
fn sizes(bench: &Bench) -> (usize, usize, usize) {
    let shapes = &bench.options.shapes;
    (shapes.tokens(), shapes.model.hidden_size, shapes.model.intermediate_size)
}

/// Adds bytes that do not grow with the tokens.
fn plus(work: Work, bytes: f64) -> Work {
    Work { bytes: work.bytes + bytes, ..work }
}

fn rms_norm_forward(bench: &mut Bench) {
    let (tokens, d, _) = sizes(bench);
    // residual and delta in, sum and normed out.
    let work = plus(count::pass(tokens, d, 4.0, 1.0, bench.element()), d as f64 * bench.element());
    bench.row(Spec::new("rms_norm_forward", format!("{tokens} × {d}, with residual"), work), |bench| {
        let cuda = bench.cuda.clone();
        let data = &bench.data;
        let weight = data.matrix("norm weight", 1, d)?;
        let mut sets = sets(bench, work.bytes, |_| -> Result<[Tensor<Cuda>; 5]> {
            let matrix = |name| data.matrix(name, tokens, d);
            let inverse_rms = data.sums("inverse rms", tokens, 1)?;
            Ok([matrix("residual")?, matrix("delta")?, matrix("sum")?, matrix("normed")?, inverse_rms])
        })?;
        Ok(move |i| {
            let [residual, delta, sum, normed, inverse_rms] = sets.at(i);
            cuda.run(ops::RmsNormForward {
                residual: residual.view(),
                delta: Some(delta.view()),
                weight: weight.view(),
                epsilon: 1e-5,
                sum: Some(sum.view_mut()),
                normed: normed.view_mut(),
                inverse_rms: inverse_rms.view_mut(),
            })
        })
    });
}

fn rms_norm_backward(bench: &mut Bench, with_weight: bool) {
    let (tokens, d, _) = sizes(bench);
    // d_normed and x in, d_residual in and out.
    let weight_bytes = d as f64 * if with_weight { bench.element() + 8.0 } else { bench.element() };
    let work = plus(count::pass(tokens, d, 4.0, 1.0, bench.element()), weight_bytes);
    let name = if with_weight { "rms_norm_backward/d_weight" } else { "rms_norm_backward" };
    bench.row(Spec::new(name, format!("{tokens} × {d}"), work), |bench| {
        let cuda = bench.cuda.clone();
        let data = &bench.data;
        let weight = data.matrix("norm weight", 1, d)?;
        let inverse_rms = Tensor::from_f32(&cuda, "inverse rms", tokens, 1, &vec![1.0; tokens])?;
        let mut d_weight = data.sums("gradient of norm weight", 1, d)?;
        let mut sets = sets(bench, work.bytes, |_| -> Result<[Tensor<Cuda>; 3]> {
            let matrix = |name| data.matrix(name, tokens, d);
            Ok([matrix("gradient of normed")?, matrix("x")?, matrix("gradient of residual")?])
        })?;
        Ok(move |i| {
            let [d_normed, x, d_residual] = sets.at(i);
            let d_weight = if with_weight { Some(d_weight.view_mut()) } else { None };
            cuda.run(ops::RmsNormBackward {
                d_normed: d_normed.view(),
                x: x.view(),
                weight: weight.view(),
                inverse_rms: inverse_rms.view(),
                d_residual: d_residual.view_mut(),
                d_weight,
            })
        })
    });
}

fn rope(bench: &mut Bench) {
    let shapes = &bench.options.shapes;
    let tokens = shapes.tokens();
    let length = shapes.length;
    let sequences = shapes.sequences;
    let shape = shapes.model.attention();
    let frequencies = shapes.model.rope_frequencies();
    // Query and key heads in and out; the position of each token; cos and sin once.
    let columns = shape.query_cols() + shape.key_value_cols();
    let table_bytes = 2.0 * 4.0 * (length * frequencies.len()) as f64;
    let work = plus(count::pass(tokens, columns, 2.0, 1.0, bench.element()), table_bytes);
    bench.row(Spec::new("rope", format!("{tokens} × {columns}"), work), |bench| {
        let cuda = bench.cuda.clone();
        let half = frequencies.len();
        let angles = (0..length).flat_map(|p| frequencies.iter().map(move |f| p as f32 * f));
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.map(|angle| (angle.cos(), angle.sin())).unzip();
        let table = RopeTable {
            cos: Tensor::from_f32(&cuda, "rope cos", length, half, &cos)?,
            sin: Tensor::from_f32(&cuda, "rope sin", length, half, &sin)?,
        };
        let positions: Vec<u32> = (0..sequences).flat_map(|_| 0..length as u32).collect();
        let positions = Tensor::from_u32(&cuda, "positions", &positions)?;
        let mut sets = sets(bench, work.bytes / 2.0, |_| bench.data.matrix("qkv", tokens, shape.qkv_cols()))?;
        Ok(move |i| {
            cuda.run(ops::Rope {
                qkv: sets.at(i).view_mut(),
                positions: positions.view(),
                table: &table,
                shape,
                inverse: false,
            })
        })
    });
}

fn swiglu_forward(bench: &mut Bench) {
    let (tokens, _, f) = sizes(bench);
    let work = count::pass(tokens, f, 3.0, 0.0, bench.element());
    bench.row(Spec::new("swiglu_forward", format!("{tokens} × {f}"), work), |bench| {
        let cuda = bench.cuda.clone();
        let mut sets = sets(bench, work.bytes, |_| -> Result<[Tensor<Cuda>; 2]> {
            Ok([bench.data.matrix("gate and up", tokens, 2 * f)?, bench.data.matrix("h", tokens, f)?])
        })?;
        Ok(move |i| {
            let [gate_up, h] = sets.at(i);
            cuda.run(ops::SwigluForward { gate_up: gate_up.view(), h: h.view_mut() })
        })
    });
}

fn swiglu_backward(bench: &mut Bench) {
    let (tokens, _, f) = sizes(bench);
    let work = count::pass(tokens, f, 5.0, 0.0, bench.element());
    bench.row(Spec::new("swiglu_backward", format!("{tokens} × {f}"), work), |bench| {
        let cuda = bench.cuda.clone();
        let data = &bench.data;
        let mut sets = sets(bench, work.bytes, |_| -> Result<[Tensor<Cuda>; 3]> {
            let d_gate_up = data.matrix("gradient of gate and up", tokens, 2 * f)?;
            Ok([data.matrix("gradient of h", tokens, f)?, data.matrix("gate and up", tokens, 2 * f)?, d_gate_up])
        })?;
        Ok(move |i| {
            let [d_h, gate_up, d_gate_up] = sets.at(i);
            cuda.run(ops::SwigluBackward { d_h: d_h.view(), gate_up: gate_up.view(), d_gate_up: d_gate_up.view_mut() })
        })
    });
}

/// Token ids of a batch, and how many different ones there are: rows of a table that must move.
fn ids(bench: &Bench) -> (Vec<u32>, f64) {
    let shapes = &bench.options.shapes;
    let ids = bench.data.ids(shapes.tokens(), shapes.model.vocab_size);
    let different = ids.iter().collect::<HashSet<_>>().len();
    (ids, different as f64)
}

/// The embedding of tokens.
fn gather_rows(bench: &mut Bench) {
    let (tokens, d, _) = sizes(bench);
    let v = bench.options.shapes.model.vocab_size;
    let (ids, different) = ids(bench);
    let table_bytes = different * d as f64 * bench.element();
    let work = plus(count::pass(tokens, d, 1.0, 1.0, bench.element()), table_bytes);
    bench.row(Spec::new("gather_rows", format!("{tokens} of {v} × {d}"), work), |bench| {
        let cuda = bench.cuda.clone();
        let ids = Tensor::from_u32(&cuda, "tokens", &ids)?;
        let table = bench.data.matrix("embedding", v, d)?;
        let mut sets = sets(bench, work.bytes, |_| bench.data.matrix("embedded", tokens, d))?;
        Ok(move |i| cuda.run(ops::GatherRows { from: table.view(), indices: ids.view(), out: sets.at(i).view_mut() }))
    });
}

fn embedding_backward(bench: &mut Bench) {
    let (tokens, d, _) = sizes(bench);
    let v = bench.options.shapes.model.vocab_size;
    let (ids, different) = ids(bench);
    let work = plus(count::pass(tokens, d, 1.0, 1.0, bench.element()), different * d as f64 * 8.0);
    bench.row(Spec::new("embedding_backward", format!("{tokens} of {v} × {d}"), work), |bench| {
        let cuda = bench.cuda.clone();
        let ids = Tensor::from_u32(&cuda, "tokens", &ids)?;
        let mut d_table = bench.data.sums("gradient of embedding", v, d)?;
        let mut sets = sets(bench, work.bytes, |_| bench.data.matrix("gradient of embedded", tokens, d))?;
        Ok(move |i| {
            cuda.run(ops::EmbeddingBackward { ids: ids.view(), d_out: sets.at(i).view(), d_table: d_table.view_mut() })
        })
    });
}

/// Operands of a loss on hidden states: the states, what they are compared with, the gradient, and the values.
fn hidden_operands(bench: &Bench, tokens: usize, d: usize) -> Result<[Tensor<Cuda>; 4]> {
    let data = &bench.data;
    let matrix = |name| data.matrix(name, tokens, d);
    let values = data.sums("values", tokens, 1)?;
    Ok([matrix("hidden")?, matrix("reference")?, matrix("gradient of hidden")?, values])
}

fn token_weights(cuda: &Cuda, tokens: usize) -> Result<Tensor<Cuda>> {
    Tensor::from_f32(cuda, "loss weights", tokens, 1, &vec![1.0 / tokens as f32; tokens])
}

fn representation_distance(bench: &mut Bench) {
    let (tokens, d, _) = sizes(bench);
    // hidden and reference in, d_hidden in and out; weights in, values out.
    let work = count::pass(tokens, d, 4.0, 2.0, bench.element());
    bench.row(Spec::new("representation_distance", format!("{tokens} × {d}"), work), |bench| {
        let cuda = bench.cuda.clone();
        let weights = token_weights(&bench.cuda, tokens)?;
        let mut sets = sets(bench, work.bytes, |_| hidden_operands(bench, tokens, d))?;
        Ok(move |i| {
            let [hidden, reference, d_hidden, values] = sets.at(i);
            cuda.run(ops::RepresentationDistance {
                kind: ops::DistanceKind::Euclidean,
                hidden: hidden.view(),
                reference: reference.view(),
                weights: weights.view(),
                values: values.view_mut(),
                d_hidden: Some(d_hidden.view_mut()),
            })
        })
    });
}

fn cosine_margin(bench: &mut Bench) {
    let (tokens, d, _) = sizes(bench);
    for (name, matrices) in [("cosine_margin", 4.0), ("cosine_margin/two", 5.0)] {
        // hidden, away and toward in, d_hidden in and out; weights in, values out.
        let work = count::pass(tokens, d, matrices, 2.0, bench.element());
        bench.row(Spec::new(name, format!("{tokens} × {d}"), work), |bench| {
            let cuda = bench.cuda.clone();
            let weights = token_weights(&bench.cuda, tokens)?;
            let toward = if matrices == 5.0 { Some(bench.data.matrix("toward", tokens, d)?) } else { None };
            let mut sets = sets(bench, work.bytes, |_| hidden_operands(bench, tokens, d))?;
            Ok(move |i| {
                let [hidden, away, d_hidden, values] = sets.at(i);
                cuda.run(ops::CosineMargin {
                    hidden: hidden.view(),
                    away: away.view(),
                    toward: toward.as_ref().map(Tensor::view),
                    margin: 1.0,
                    weights: weights.view(),
                    values: values.view_mut(),
                    d_hidden: Some(d_hidden.view_mut()),
                })
            })
        });
    }
}

fn random_mapping(bench: &mut Bench) {
    let (tokens, d, _) = sizes(bench);
    let v = bench.options.shapes.model.vocab_size;
    let (ids, different) = ids(bench);
    // hidden in, d_hidden in and out; weights and ids in, values out; rows of the table in f32.
    let work = plus(count::pass(tokens, d, 3.0, 3.0, bench.element()), different * d as f64 * 4.0);
    bench.row(Spec::new("random_mapping", format!("{tokens} of {v} × {d}"), work), |bench| {
        let cuda = bench.cuda.clone();
        let weights = token_weights(&bench.cuda, tokens)?;
        let ids = Tensor::from_u32(&cuda, "tokens", &ids)?;
        let table = bench.data.normal("random directions", v, d, crate::ops::DType::F32, 1.0)?;
        let mut sets = sets(bench, work.bytes, |_| hidden_operands(bench, tokens, d))?;
        Ok(move |i| {
            let [hidden, _, d_hidden, values] = sets.at(i);
            cuda.run(ops::RandomMapping {
                hidden: hidden.view(),
                table: table.view(),
                ids: ids.view(),
                weights: weights.view(),
                values: values.view_mut(),
                d_hidden: Some(d_hidden.view_mut()),
            })
        })
    });
}
