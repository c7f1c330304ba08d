//! Embedding, RMS norm, rotary embedding, SwiGLU and the vector operations.

use std::collections::HashMap;

use super::{Numbers, dot, sigmoid};
use crate::ops::AttentionShape;

/// `out[i] = from[indices[i]]`.
pub fn gather_rows(from: &dyn Numbers, indices: &[u32]) -> impl Fn(usize, &[usize]) -> Vec<f64> {
    |row, cols| cols.iter().map(|&col| from.at(indices[row] as usize, col)).collect()
}

/// `start[id] + Σ d_out[t]` over the tokens t with that id.
pub fn embedding_backward(
    ids: &[u32],
    d_out: &dyn Numbers,
    start: &dyn Numbers,
) -> impl Fn(usize, &[usize]) -> Vec<f64> {
    let mut tokens: HashMap<u32, Vec<usize>> = HashMap::new();
    ids.iter().enumerate().for_each(|(token, &id)| tokens.entry(id).or_default().push(token));
    move |row, cols| {
        let tokens = tokens.get(&(row as u32)).map_or(&[][..], Vec::as_slice);
        let sum = |col: usize| tokens.iter().map(|&token| d_out.at(token, col)).sum::<f64>();
        cols.iter().map(|&col| start.at(row, col) + sum(col)).collect()
    }
}

/// residual + delta, one row.
pub fn residual_sum(residual: &dyn Numbers, delta: Option<&dyn Numbers>, row: usize) -> Vec<f64> {
    let mut sum = residual.row(row);
    if let Some(delta) = delta {
        sum.iter_mut().zip(delta.row(row)).for_each(|(sum, delta)| *sum += delta);
    }
    sum
}

/// 1 / √(mean(x²) + ε).
pub fn inverse_rms(x: &[f64], epsilon: f64) -> f64 {
    1.0 / (dot(x, x) / x.len() as f64 + epsilon).sqrt()
}

/// x · inverse_rms · weight, one row.
pub fn normed(x: &[f64], weight: &dyn Numbers, epsilon: f64) -> Vec<f64> {
    let inverse = inverse_rms(x, epsilon);
    x.iter().enumerate().map(|(col, x)| x * inverse * weight.at(0, col)).collect()
}

/// start + inverse_rms · (u − x̂ · mean(u · x̂)), u = d_normed · weight, x̂ = x · inverse_rms.
pub fn rms_norm_backward(
    d_normed: &dyn Numbers,
    x: &dyn Numbers,
    weight: &dyn Numbers,
    inverse: &dyn Numbers,
    start: &dyn Numbers,
) -> impl Fn(usize, &[usize]) -> Vec<f64> {
    move |row, cols| {
        let inverse = inverse.at(row, 0);
        let u: Vec<f64> = d_normed.row(row).iter().zip(weight.row(0)).map(|(d, w)| d * w).collect();
        let unit: Vec<f64> = x.row(row).iter().map(|x| x * inverse).collect();
        let mean = dot(&u, &unit) / u.len() as f64;
        cols.iter().map(|&col| start.at(row, col) + inverse * (u[col] - unit[col] * mean)).collect()
    }
}

/// start + Σ_t d_normed · x · inverse_rms.
pub fn rms_norm_weight(
    d_normed: &dyn Numbers,
    x: &dyn Numbers,
    inverse: &dyn Numbers,
    start: &dyn Numbers,
) -> impl Fn(usize, &[usize]) -> Vec<f64> {
    move |_, cols| {
        let term = |t: usize, col: usize| d_normed.at(t, col) * x.at(t, col) * inverse.at(t, 0);
        cols.iter().map(|&col| start.at(0, col) + (0..x.rows()).map(|t| term(t, col)).sum::<f64>()).collect()
    }
}

/// The pair (i, i + D/2) of each query and key head turned by the angle of its position, or back.
pub fn rope(
    qkv: &dyn Numbers,
    positions: &[u32],
    (cos, sin): (&dyn Numbers, &dyn Numbers),
    shape: AttentionShape,
    inverse: bool,
) -> impl Fn(usize, &[usize]) -> Vec<f64> {
    move |row, cols| {
        let size = shape.head_dim;
        let half = shape.head_dim / 2;
        let position = positions[row] as usize;
        let turned = (shape.num_attention_heads + shape.num_key_value_heads) * size;
        let sign = if inverse { -1.0 } else { 1.0 };
        let element = |&col: &usize| {
            if col >= turned {
                return qkv.at(row, col);
            }
            let frequency = col % size % half;
            let cos = cos.at(position, frequency);
            let sin = sign * sin.at(position, frequency);
            if col % size < half {
                qkv.at(row, col) * cos - qkv.at(row, col + half) * sin
            } else {
                qkv.at(row, col) * cos + qkv.at(row, col - half) * sin
            }
        };
        cols.iter().map(element).collect()
    }
}

/// silu(gate) · up.
pub fn swiglu_forward(gate_up: &dyn Numbers) -> impl Fn(usize, &[usize]) -> Vec<f64> {
    |row, cols| {
        let half = gate_up.cols() / 2;
        let element = |&col: &usize| {
            let gate = gate_up.at(row, col);
            gate * sigmoid(gate) * gate_up.at(row, half + col)
        };
        cols.iter().map(element).collect()
    }
}

/// `[d_h · up · silu'(gate) | d_h · silu(gate)]`.
pub fn swiglu_backward(d_h: &dyn Numbers, gate_up: &dyn Numbers) -> impl Fn(usize, &[usize]) -> Vec<f64> {
    move |row, cols| {
        let half = gate_up.cols() / 2;
        let element = |&col: &usize| {
            let gate = gate_up.at(row, col % half);
            let d_h = d_h.at(row, col % half);
            let sigma = sigmoid(gate);
            if col < half {
                d_h * gate_up.at(row, half + col) * sigma * (1.0 + gate * (1.0 - sigma))
            } else {
                d_h * gate * sigma
            }
        };
        cols.iter().map(element).collect()
    }
}
