//! The bias of a linear layer, and the norms of query and key heads.

use super::{Numbers, dot, inverse_rms};
use crate::ops::AttentionShape;

/// start + bias.
pub fn add_bias(bias: &dyn Numbers, start: &dyn Numbers) -> impl Fn(usize, &[usize]) -> Vec<f64> {
    |row, cols| cols.iter().map(|&col| start.at(row, col) + bias.at(0, col)).collect()
}

/// start + Σ_t dy.
pub fn bias_backward(dy: &dyn Numbers, start: &dyn Numbers) -> impl Fn(usize, &[usize]) -> Vec<f64> {
    |_, cols| {
        let sum = |col: usize| (0..dy.rows()).map(|t| dy.at(t, col)).sum::<f64>();
        cols.iter().map(|&col| start.at(0, col) + sum(col)).collect()
    }
}

/// The index of the weight of a column's head: 0 for queries, 1 for keys; none for values.
fn kind(col: usize, shape: AttentionShape) -> Option<usize> {
    let head = col / shape.head_dim;
    let normed = shape.num_attention_heads + shape.num_key_value_heads;
    (head < normed).then_some(usize::from(head >= shape.num_attention_heads))
}

/// The head of a column, in one row.
fn head(matrix: &dyn Numbers, row: usize, col: usize, size: usize) -> Vec<f64> {
    matrix.span(row, col / size * size, size)
}

/// x · inverse_rms · weight of each query and key head; values as they are.
pub fn head_norm(
    qkv: &dyn Numbers,
    weight: &dyn Numbers,
    epsilon: f64,
    shape: AttentionShape,
) -> impl Fn(usize, &[usize]) -> Vec<f64> {
    move |row, cols| {
        let size = shape.head_dim;
        let element = |&col: &usize| match kind(col, shape) {
            None => qkv.at(row, col),
            Some(kind) => {
                qkv.at(row, col) * inverse_rms(&head(qkv, row, col, size), epsilon) * weight.at(kind, col % size)
            }
        };
        cols.iter().map(element).collect()
    }
}

/// inverse_rms · (u − x̂ · mean(u · x̂)) of each query and key head, u = d · weight, x̂ = x · inverse_rms; values as they are.
pub fn head_norm_backward(
    qkv: &dyn Numbers,
    weight: &dyn Numbers,
    epsilon: f64,
    shape: AttentionShape,
    d: &dyn Numbers,
) -> impl Fn(usize, &[usize]) -> Vec<f64> {
    move |row, cols| {
        let size = shape.head_dim;
        let element = |&col: &usize| {
            let Some(kind) = kind(col, shape) else { return d.at(row, col) };
            let x = head(qkv, row, col, size);
            let inverse = inverse_rms(&x, epsilon);
            let u: Vec<f64> = head(d, row, col, size).iter().zip(weight.row(kind)).map(|(d, w)| d * w).collect();
            let unit: Vec<f64> = x.iter().map(|x| x * inverse).collect();
            inverse * (u[col % size] - unit[col % size] * dot(&u, &unit) / size as f64)
        };
        cols.iter().map(element).collect()
    }
}

/// start + Σ d · x · inverse_rms over the tokens and the heads that share a weight: row 0 the query heads, row 1 the key heads.
pub fn head_norm_weight(
    qkv: &dyn Numbers,
    epsilon: f64,
    shape: AttentionShape,
    d: &dyn Numbers,
    start: &dyn Numbers,
) -> impl Fn(usize, &[usize]) -> Vec<f64> {
    move |row, cols| {
        let size = shape.head_dim;
        let queries = shape.num_attention_heads;
        let heads = if row == 0 { 0..queries } else { queries..queries + shape.num_key_value_heads };
        let mut sums: Vec<f64> = cols.iter().map(|&col| start.at(row, col)).collect();
        for token in 0..qkv.rows() {
            for first in heads.clone().map(|head| head * size) {
                let inverse = inverse_rms(&qkv.span(token, first, size), epsilon);
                for (sum, col) in sums.iter_mut().zip(cols) {
                    *sum += d.at(token, first + col) * qkv.at(token, first + col) * inverse;
                }
            }
        }
        sums
    }
}
