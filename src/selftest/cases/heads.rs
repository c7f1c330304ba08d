//! The bias of queries, keys and values, and the norms of query and key heads.

use super::{Case, shapes};
use crate::error::Result;
use crate::ops::{self, AttentionShape, Backend, DType};
use crate::selftest::compare::{rounded_once, summed};
use crate::selftest::reference;
use crate::selftest::trial::Trial;

/// ε of Qwen 3.
const EPSILON: f32 = 1e-6;

/// (tokens, columns).
const BIASES: [(usize, usize); 4] = [(1, 5), (33, 264), (300, 72), (9, 1032)];
/// Qwen2.5-7B.
const REAL_BIASES: [(usize, usize); 1] = [(4095, 4608)];
/// (tokens, heads, key/value heads, head size).
const HEADS: [(usize, usize, usize, usize); 4] = [(3, 1, 1, 6), (19, 4, 2, 16), (70, 2, 1, 128), (7, 3, 3, 66)];
/// Qwen3-8B.
const REAL_HEADS: [(usize, usize, usize, usize); 1] = [(4095, 32, 8, 128)];

pub(super) fn cases(full: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for (tokens, cols) in shapes(full, &BIASES, &REAL_BIASES) {
        let shape = format!("{tokens} x {cols}");
        cases.push(Case::new("add_bias", shape.clone(), move |trial| add_bias(trial, tokens, cols)));
        cases.push(Case::new("bias_backward", shape, move |trial| bias_backward(trial, tokens, cols)));
    }
    for (tokens, heads, groups, size) in shapes(full, &HEADS, &REAL_HEADS) {
        let shape = format!("{tokens} x ({heads} + 2 x {groups}) x {size}");
        let heads = AttentionShape {
            num_attention_heads: heads,
            num_key_value_heads: groups,
            head_dim: size,
            sliding_window: None,
        };
        cases.push(Case::new("head_norm_forward", shape.clone(), move |trial| forward(trial, tokens, heads)));
        for with_weight in [false, true] {
            let name = if with_weight { "head_norm_backward + weight" } else { "head_norm_backward" };
            cases.push(Case::new(name, shape.clone(), move |trial| backward(trial, tokens, heads, with_weight)));
        }
    }
    cases
}

fn add_bias(trial: &mut Trial, tokens: usize, cols: usize) -> Result<()> {
    let cuda = trial.cuda();
    let dtype = trial.compute();
    let bias = trial.normal(1, cols, 1.0)?;
    let y = trial.starting(dtype, tokens, cols, 1.5);
    let [found] = trial.launch([&y], |[y]| cuda.run(ops::AddBias { bias: bias.tensor.view(), y: y.view_mut() }))?;
    trial.check("", &found, rounded_once(dtype), reference::add_bias(&bias, y.start()));
    Ok(())
}

fn bias_backward(trial: &mut Trial, tokens: usize, cols: usize) -> Result<()> {
    let cuda = trial.cuda();
    let dy = trial.normal(tokens, cols, 1.0)?;
    let d_bias = trial.starting(DType::F32, 1, cols, 1.0);
    let [found] = trial.launch([&d_bias], |[d_bias]| {
        cuda.run(ops::BiasBackward { dy: dy.tensor.view(), d_bias: d_bias.view_mut() })
    })?;
    trial.check("", &found, summed(DType::F32, tokens), reference::bias_backward(&dy, d_bias.start()));
    Ok(())
}

fn forward(trial: &mut Trial, tokens: usize, shape: AttentionShape) -> Result<()> {
    let cuda = trial.cuda();
    let dtype = trial.compute();
    let qkv = trial.normal(tokens, shape.qkv_cols(), 1.5)?;
    let weight = trial.changed(dtype, (2, shape.head_dim), |_, x| 1.0 + 0.2 * x)?;
    let out = trial.poisoned(dtype, tokens, shape.qkv_cols());
    let [out] = trial.launch([&out], |[out]| {
        cuda.run(ops::HeadNormForward {
            qkv: qkv.tensor.view(),
            weight: weight.tensor.view(),
            epsilon: EPSILON,
            shape,
            out: out.view_mut(),
        })
    })?;
    let formula = reference::head_norm(&qkv, &weight, f64::from(EPSILON), shape);
    trial.check("", &out, summed(dtype, shape.head_dim), formula);
    Ok(())
}

fn backward(trial: &mut Trial, tokens: usize, shape: AttentionShape, with_weight: bool) -> Result<()> {
    let cuda = trial.cuda();
    let dtype = trial.compute();
    let qkv = trial.normal(tokens, shape.qkv_cols(), 1.5)?;
    let weight = trial.changed(dtype, (2, shape.head_dim), |_, x| 1.0 + 0.2 * x)?;
    let d_qkv = trial.starting(dtype, tokens, shape.qkv_cols(), 1.0);
    let d_weight = trial.starting(DType::F32, 2, shape.head_dim, 1.0);
    let [found, found_weight] = trial.launch([&d_qkv, &d_weight], |[d_qkv, d_weight]| {
        let d_weight = with_weight.then(|| d_weight.view_mut());
        cuda.run(ops::HeadNormBackward {
            qkv: qkv.tensor.view(),
            weight: weight.tensor.view(),
            epsilon: EPSILON,
            shape,
            d_qkv: d_qkv.view_mut(),
            d_weight,
        })
    })?;
    let epsilon = f64::from(EPSILON);
    let formula = reference::head_norm_backward(&qkv, &weight, epsilon, shape, d_qkv.start());
    trial.check("d_qkv", &found, summed(dtype, shape.head_dim), formula);
    if with_weight {
        let terms = tokens * shape.num_attention_heads.max(shape.num_key_value_heads);
        let formula = reference::head_norm_weight(&qkv, epsilon, shape, d_qkv.start(), d_weight.start());
        trial.check("d_weight", &found_weight, summed(DType::F32, terms), formula);
    }
    Ok(())
}
