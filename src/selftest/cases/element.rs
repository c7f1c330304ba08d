//! Embedding, rotary embedding, SwiGLU and the vector operations.

use super::{Case, shapes};
use crate::error::Result;
use crate::ops::{self, AttentionShape, Backend, DType, RopeTable, Tensor};
use crate::selftest::compare::{Bound, EXACT, rounded_once, summed};
use crate::selftest::reference::{self, Numbers};
use crate::selftest::trial::Trial;

/// (tokens, vocabulary, columns).
const TABLES: [(usize, usize, usize); 3] = [(1, 3, 5), (37, 11, 40), (300, 50, 65)];
const REAL_TABLES: [(usize, usize, usize); 1] = [(4095, 128_256, 4096)];
/// (tokens, heads, key/value heads, head size, inverse).
const ROTATIONS: [(usize, usize, usize, usize, bool); 4] =
    [(3, 1, 1, 6, false), (19, 4, 2, 16, true), (5, 2, 1, 128, false), (7, 3, 3, 64, true)];
const REAL_ROTATIONS: [(usize, usize, usize, usize, bool); 2] = [(4096, 32, 8, 128, false), (4096, 32, 8, 128, true)];
/// (tokens, intermediate size).
const GATES: [(usize, usize); 3] = [(2, 5), (13, 136), (3, 1033)];
const REAL_GATES: [(usize, usize); 1] = [(2047, 14336)];
/// Elements.
const VECTORS: [usize; 3] = [7, 1023, 20_000];
const REAL_VECTORS: [usize; 1] = [50_000_003];

pub(super) fn cases(full: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for (tokens, rows, cols) in shapes(full, &TABLES, &REAL_TABLES) {
        let shape = format!("{tokens} of {rows} x {cols}");
        cases.push(Case::new("gather_rows", shape.clone(), move |trial| gather_rows(trial, tokens, rows, cols)));
        cases.push(Case::new("embedding_backward", shape, move |trial| embedding_backward(trial, tokens, rows, cols)));
    }
    for (tokens, heads, groups, size, inverse) in shapes(full, &ROTATIONS, &REAL_ROTATIONS) {
        let shape = format!("{tokens} x ({heads} + 2 x {groups}) x {size}");
        let heads = AttentionShape {
            num_attention_heads: heads,
            num_key_value_heads: groups,
            head_dim: size,
            sliding_window: None,
        };
        let name = if inverse { "rope, inverse" } else { "rope" };
        cases.push(Case::new(name, shape, move |trial| rope(trial, tokens, heads, inverse)));
    }
    for (tokens, cols) in shapes(full, &GATES, &REAL_GATES) {
        let shape = format!("{tokens} x {cols}");
        cases.push(Case::new("swiglu_forward", shape.clone(), move |trial| swiglu_forward(trial, tokens, cols)));
        cases.push(Case::new("swiglu_backward", shape, move |trial| swiglu_backward(trial, tokens, cols)));
    }
    for len in shapes(full, &VECTORS, &REAL_VECTORS) {
        cases.push(Case::new("squared_norm", len.to_string(), move |trial| squared_norm(trial, len)));
        cases.push(Case::new("sign_mask", len.to_string(), move |trial| sign_mask(trial, len)));
    }
    for len in shapes(full, &[1, 77, 1500], &[4096]) {
        cases.push(Case::new("weighted_sum", len.to_string(), move |trial| weighted_sum(trial, len)));
    }
    cases
}

fn gather_rows(trial: &mut Trial, tokens: usize, rows: usize, cols: usize) -> Result<()> {
    let cuda = trial.cuda();
    let table = trial.normal(rows, cols, 1.0)?;
    let ids = trial.indices(tokens, rows)?;
    let out = trial.poisoned(trial.compute(), tokens, cols);
    let [out] = trial.launch([&out], |[out]| {
        cuda.run(ops::GatherRows { from: table.tensor.view(), indices: ids.tensor.view(), out: out.view_mut() })
    })?;
    trial.check("", &out, EXACT, reference::gather_rows(&table, &ids.values));
    Ok(())
}

/// Two of three tokens are the same one, as a frequent word: its row is a long sum.
fn embedding_backward(trial: &mut Trial, tokens: usize, rows: usize, cols: usize) -> Result<()> {
    let cuda = trial.cuda();
    let mut ids = trial.indices(tokens, rows)?.values;
    ids.iter_mut().enumerate().filter(|(t, _)| t % 3 != 0).for_each(|(_, id)| *id = rows as u32 - 1);
    let ids = trial.integers(ids)?;
    let d_out = trial.normal(tokens, cols, 1.0)?;
    let d_table = trial.starting(DType::F32, rows, cols, 0.1);
    let [found] = trial.launch([&d_table], |[d_table]| {
        cuda.run(ops::EmbeddingBackward {
            ids: ids.tensor.view(),
            d_out: d_out.tensor.view(),
            d_table: d_table.view_mut(),
        })
    })?;
    let formula = reference::embedding_backward(&ids.values, &d_out, d_table.start());
    trial.check("", &found, summed(DType::F32, tokens), formula);
    Ok(())
}

fn rope(trial: &mut Trial, tokens: usize, shape: AttentionShape, inverse: bool) -> Result<()> {
    const POSITIONS: usize = 100;
    let cuda = trial.cuda();
    let dtype = trial.compute();
    let half = shape.head_dim / 2;
    let angle = move |i: usize| (i / half) as f64 * 500_000f64.powf(-((i % half) as f64) / half as f64);
    let cos = trial.changed(DType::F32, (POSITIONS, half), move |i, _| angle(i).cos() as f32)?;
    let sin = trial.changed(DType::F32, (POSITIONS, half), move |i, _| angle(i).sin() as f32)?;
    let positions = trial.indices(tokens, POSITIONS)?;
    let qkv = trial.starting(dtype, tokens, shape.qkv_cols(), 1.0);
    let cos_numbers = cos.table;
    let sin_numbers = sin.table;
    let table = RopeTable { cos: cos.tensor, sin: sin.tensor };
    let [found] = trial.launch([&qkv], |[qkv]| {
        cuda.run(ops::Rope { qkv: qkv.view_mut(), positions: positions.tensor.view(), table: &table, shape, inverse })
    })?;
    let angles = (&cos_numbers as &dyn Numbers, &sin_numbers as &dyn Numbers);
    trial.check(
        "",
        &found,
        rounded_once(dtype),
        reference::rope(qkv.start(), &positions.values, angles, shape, inverse),
    );
    Ok(())
}

fn swiglu_forward(trial: &mut Trial, tokens: usize, cols: usize) -> Result<()> {
    let cuda = trial.cuda();
    let dtype = trial.compute();
    let gate_up = trial.normal(tokens, 2 * cols, 2.0)?;
    let h = trial.poisoned(dtype, tokens, cols);
    let [h] =
        trial.launch([&h], |[h]| cuda.run(ops::SwigluForward { gate_up: gate_up.tensor.view(), h: h.view_mut() }))?;
    trial.check("", &h, rounded_once(dtype), reference::swiglu_forward(&gate_up));
    Ok(())
}

fn swiglu_backward(trial: &mut Trial, tokens: usize, cols: usize) -> Result<()> {
    let cuda = trial.cuda();
    let dtype = trial.compute();
    let d_h = trial.normal(tokens, cols, 1.0)?;
    let gate_up = trial.normal(tokens, 2 * cols, 2.0)?;
    let d_gate_up = trial.poisoned(dtype, tokens, 2 * cols);
    let [found] = trial.launch([&d_gate_up], |[d_gate_up]| {
        cuda.run(ops::SwigluBackward {
            d_h: d_h.tensor.view(),
            gate_up: gate_up.tensor.view(),
            d_gate_up: d_gate_up.view_mut(),
        })
    })?;
    trial.check("", &found, rounded_once(dtype), reference::swiglu_backward(&d_h, &gate_up));
    Ok(())
}

/// Losses times weights: neither is negative, so that the sum does not cancel.
fn weighted_sum(trial: &mut Trial, len: usize) -> Result<()> {
    let cuda = trial.cuda();
    let a = trial.changed(DType::F32, (1, len), |_, x| x.abs())?;
    let b = trial.changed(DType::F32, (1, len), |i, x| if i % 3 == 2 { 0.0 } else { x.abs() })?;
    let out = trial.starting_with((1, 1), |_, x| x.abs());
    let out = trial.output(DType::F32, out);
    let [found] = trial.launch([&out], |[out]| {
        cuda.run(ops::WeightedSum { a: a.tensor.view(), b: b.tensor.view(), scale: 0.25, out: out.view_mut() })
    })?;
    let sum = 0.25 * reference::dot(&a.row(0), &b.row(0));
    trial.check("", &found, summed(DType::F32, len), |_, _| vec![out.start().at(0, 0) + sum]);
    Ok(())
}

/// The host reads an f64: squares of f32 are exact in it, so only its own sums round.
fn squared_norm(trial: &mut Trial, len: usize) -> Result<()> {
    const F64_SUM: Bound = Bound::fixed(1e-12);
    let cuda = trial.cuda();
    let x = trial.normal_f32(1, len, 3.0)?;
    let norm = |tensor: &Tensor<_>| cuda.run(ops::SquaredNorm { x: tensor.view() });
    let first = norm(&x.tensor)?;
    let second = norm(&x.tensor)?;
    let row = x.row(0);
    trial.check_values("", &[first, second], &[reference::dot(&row, &row); 2], 0, F64_SUM);
    let not_finite = trial.changed(DType::F32, (1, len), move |i, x| if i == len - 1 { f32::INFINITY } else { x })?;
    trial.check_values("of an infinity", &[norm(&not_finite.tensor)?], &[f64::INFINITY], 0, EXACT);
    Ok(())
}

/// Gradients are multiples of 1/2 and sums of 1/4: no sign turns on a rounding.
fn sign_mask(trial: &mut Trial, len: usize) -> Result<()> {
    const SCALE: f32 = 0.125;
    let cuda = trial.cuda();
    let halves = |_: usize, x: f32| (2.0 * x).round() / 2.0;
    let masked = trial.changed(DType::F32, (1, len), halves)?;
    let [accumulated, gradient] = [0; 2].map(|_| {
        let start = trial.starting_with((1, len), halves);
        trial.output(DType::F32, start)
    });
    let [found_accumulated, found] = trial.launch([&accumulated, &gradient], |[accumulated, gradient]| {
        cuda.run(ops::SignMask {
            masked: masked.tensor.view(),
            scale: SCALE,
            decay: 0.5,
            accumulated: accumulated.view_mut(),
            gradient: gradient.view_mut(),
        })
    })?;
    let sum = |col: usize| 0.5 * accumulated.start().at(0, col) + 0.5 * gradient.start().at(0, col);
    trial.check("accumulated", &found_accumulated, EXACT, |_, cols| cols.iter().map(|&col| sum(col)).collect());
    trial.check("masked", &found, EXACT, |_, cols| {
        let element = |&col: &usize| {
            let (sum, masked) = (sum(col), masked.at(0, col));
            if sum * masked > 0.0 { sum + f64::from(SCALE) * masked } else { sum }
        };
        cols.iter().map(element).collect()
    });
    Ok(())
}
