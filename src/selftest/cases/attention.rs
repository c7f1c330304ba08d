//! Attention, forward and backward.

use super::{Case, shapes};
use crate::error::Result;
use crate::ops::{self, AttentionShape, Backend, DType, Segment, Segments};
use crate::selftest::compare::{rounded_twice, several_roundings, summed};
use crate::selftest::reference::{self, Given};
use crate::selftest::trial::Trial;

/// Packed sequences as (rows, real tokens), heads as (H, G, D), and the window.
#[derive(Clone, Copy)]
struct Shape {
    sequences: &'static [(usize, usize)],
    heads: (usize, usize, usize),
    window: Option<usize>,
    /// Standard deviation of q, k and v.
    scale: f64,
}

const fn shape(sequences: &'static [(usize, usize)], heads: (usize, usize, usize)) -> Shape {
    Shape { sequences, heads, window: None, scale: 1.0 }
}

/// One-token sequences, padding, sequences of padding only, lengths around tiles, one and many key/value heads, windows, scores
/// so large that every probability is almost 0 or 1.
const SMALL: [Shape; 7] = [
    shape(&[(1, 1), (130, 129), (5, 3)], (2, 1, 128)),
    shape(&[(65, 65), (3, 0), (64, 60)], (4, 2, 64)),
    Shape { window: Some(17), ..shape(&[(90, 90)], (2, 2, 64)) },
    Shape { scale: 3.0, ..shape(&[(70, 66)], (2, 1, 128)) },
    shape(&[(1, 1), (33, 31), (17, 17)], (4, 2, 16)),
    Shape { window: Some(9), ..shape(&[(40, 40)], (3, 1, 24)) },
    shape(&[(19, 19)], (1, 1, 7)),
];
const REAL: [Shape; 3] = [
    shape(&[(1500, 1500), (2047, 2000), (1, 1), (548, 548)], (32, 8, 128)),
    Shape { window: Some(300), ..shape(&[(1024, 1024)], (32, 8, 128)) },
    shape(&[(1030, 1030), (994, 990)], (32, 8, 64)),
];

pub(super) fn cases(full: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for shape in shapes(full, &SMALL, &REAL) {
        let (heads, groups, size) = shape.heads;
        let lengths: Vec<String> = shape.sequences.iter().map(|(length, _)| length.to_string()).collect();
        let window = shape.window.map_or(String::new(), |window| format!(", window {window}"));
        let large = if shape.scale > 1.0 { ", large scores" } else { "" };
        let text = format!("{} x {heads}/{groups} x {size}{window}{large}", lengths.join("+"));
        cases.push(Case::new("attention", text, move |trial| attention(trial, shape)));
    }
    cases
}

/// Forward, then backward with what forward gave.
fn attention(trial: &mut Trial, shape: Shape) -> Result<()> {
    let cuda = trial.cuda();
    let dtype = trial.compute();
    let segments = segments(&shape);
    let heads = heads(&shape);
    let tokens = segments.last().map_or(0, |s| s.start + s.length);
    let on_device = Segments::new(cuda, segments.clone())?;
    let qkv = trial.normal(tokens, heads.qkv_cols(), shape.scale)?;
    let d_out = trial.normal(tokens, heads.query_cols(), 1.0)?;

    let out = trial.poisoned(dtype, tokens, heads.query_cols());
    let sums = trial.poisoned(DType::F32, tokens, heads.num_attention_heads);
    let [found, found_sums] = trial.launch([&out, &sums], |[out, sums]| {
        cuda.run(ops::AttentionForward {
            qkv: qkv.tensor.view(),
            segments: &on_device,
            shape: heads,
            out: out.view_mut(),
            log_sum_exp: sums.view_mut(),
        })
    })?;
    let formula = reference::Attention { qkv: &qkv, segments: &segments, shape: heads };
    // The probabilities are rounded before they multiply the values.
    trial.check("out", &found, rounded_twice(dtype, tokens), formula.forward());
    trial.check("log_sum_exp", &found_sums, summed(DType::F32, tokens), formula.log_sum_exp());

    let [out, sums] = trial.kept([&out, &sums], |[out, sums]| {
        cuda.run(ops::AttentionForward {
            qkv: qkv.tensor.view(),
            segments: &on_device,
            shape: heads,
            out: out.view_mut(),
            log_sum_exp: sums.view_mut(),
        })
    })?;
    let d_qkv = trial.poisoned(dtype, tokens, heads.qkv_cols());
    let [found] = trial.launch([&d_qkv], |[d_qkv]| {
        cuda.run(ops::AttentionBackward {
            d_out: d_out.tensor.view(),
            qkv: qkv.tensor.view(),
            out: out.tensor.view(),
            log_sum_exp: sums.tensor.view(),
            segments: &on_device,
            shape: heads,
            d_qkv: d_qkv.view_mut(),
        })
    })?;
    let given = Given { d_out: &d_out, out: &out, log_sum_exp: &sums };
    trial.check("d_qkv", &found, several_roundings(dtype), formula.backward(&given));
    Ok(())
}

fn heads(shape: &Shape) -> AttentionShape {
    let (num_attention_heads, num_key_value_heads, head_dim) = shape.heads;
    AttentionShape { num_attention_heads, num_key_value_heads, head_dim, sliding_window: shape.window }
}

fn segments(shape: &Shape) -> Vec<Segment> {
    let mut start = 0;
    let segment = |&(length, valid): &(usize, usize)| {
        start += length;
        Segment { start: start - length, length, valid }
    };
    shape.sequences.iter().map(segment).collect()
}
