//! Causal attention over packed sequences.

use super::{Numbers, dot};
use crate::ops::{AttentionShape, Segment};

/// The operands of attention.
pub struct Attention<'a> {
    /// `[T, (H+2G)·D]`.
    pub qkv: &'a dyn Numbers,
    pub segments: &'a [Segment],
    pub shape: AttentionShape,
}

/// What backward is given besides.
pub struct Given<'a> {
    /// Gradient of the output.
    pub d_out: &'a dyn Numbers,
    /// Output of forward, as stored.
    pub out: &'a dyn Numbers,
    /// log Σ exp of the scores, as stored.
    pub log_sum_exp: &'a dyn Numbers,
}

impl Attention<'_> {
    fn segment(&self, row: usize) -> &Segment {
        let holds = |s: &&Segment| (s.start..s.start + s.length).contains(&row);
        self.segments.iter().find(holds).expect("every row belongs to a segment")
    }

    /// The rows that row `query` sees: not after it, not padding, within the window.
    fn visible(&self, query: usize) -> std::ops::Range<usize> {
        let segment = self.segment(query);
        let end = (query + 1).min(segment.start + segment.valid);
        let first = self.shape.sliding_window.map_or(0, |window| (query + 1).saturating_sub(window));
        first.max(segment.start).min(end)..end
    }

    fn part(&self, row: usize, first: usize) -> Vec<f64> {
        self.qkv.span(row, first, self.shape.head_dim)
    }

    fn query(&self, row: usize, head: usize) -> Vec<f64> {
        self.part(row, head * self.shape.head_dim)
    }

    fn key(&self, row: usize, group: usize) -> Vec<f64> {
        self.part(row, (self.shape.num_attention_heads + group) * self.shape.head_dim)
    }

    fn value(&self, row: usize, group: usize) -> Vec<f64> {
        let before = self.shape.num_attention_heads + self.shape.num_key_value_heads;
        self.part(row, (before + group) * self.shape.head_dim)
    }

    fn heads_of_a_group(&self) -> usize {
        self.shape.num_attention_heads / self.shape.num_key_value_heads
    }

    fn scale(&self) -> f64 {
        1.0 / (self.shape.head_dim as f64).sqrt()
    }

    /// Scores of one query over what it sees, and log Σ exp of them.
    fn scores(&self, row: usize, head: usize) -> (Vec<f64>, f64) {
        let q = self.query(row, head);
        let group = head / self.heads_of_a_group();
        let scores: Vec<f64> = self.visible(row).map(|key| self.scale() * dot(&q, &self.key(key, group))).collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if scores.is_empty() {
            return (scores, f64::NEG_INFINITY);
        }
        let sum: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
        (scores, largest + sum.ln())
    }

    /// out = softmax(q kᵀ / √D) v.
    pub fn forward(&self) -> impl Fn(usize, &[usize]) -> Vec<f64> {
        |row, cols| {
            let size = self.shape.head_dim;
            by_block(cols, size, |head| {
                let (scores, log_sum_exp) = self.scores(row, head);
                let mut out = vec![0.0; size];
                for (key, score) in self.visible(row).zip(scores) {
                    add(&mut out, (score - log_sum_exp).exp(), &self.value(key, head / self.heads_of_a_group()));
                }
                out
            })
        }
    }

    /// log Σ exp of the scores, `[T, H]`.
    pub fn log_sum_exp(&self) -> impl Fn(usize, &[usize]) -> Vec<f64> {
        |row, cols| cols.iter().map(|&head| self.scores(row, head).1).collect()
    }

    /// d_qkv: dS = P ∘ (dP − Σ dO ∘ O).
    pub fn backward(&self, given: &Given) -> impl Fn(usize, &[usize]) -> Vec<f64> {
        move |row, cols| {
            let AttentionShape { num_attention_heads: heads, num_key_value_heads: groups, head_dim: size, .. } =
                self.shape;
            by_block(cols, size, |block| {
                if block < heads {
                    self.d_query(given, row, block)
                } else if block < heads + groups {
                    self.d_key_value(given, row, block - heads).0
                } else {
                    self.d_key_value(given, row, block - heads - groups).1
                }
            })
        }
    }

    /// (probability, dS) of a query and a key that it sees.
    fn pair(&self, given: &Given, head: usize, (query, key): (usize, usize)) -> (f64, f64) {
        let group = head / self.heads_of_a_group();
        let first = head * self.shape.head_dim;
        let of_head = |matrix: &dyn Numbers| matrix.span(query, first, self.shape.head_dim);
        let d_out = of_head(given.d_out);
        let out = of_head(given.out);
        let score = self.scale() * dot(&self.query(query, head), &self.key(key, group));
        let probability = (score - given.log_sum_exp.at(query, head)).exp();
        let d_probability = dot(&d_out, &self.value(key, group));
        (probability, probability * (d_probability - dot(&d_out, &out)))
    }

    fn d_query(&self, given: &Given, row: usize, head: usize) -> Vec<f64> {
        let mut gradient = vec![0.0; self.shape.head_dim];
        for key in self.visible(row) {
            let (_, d_score) = self.pair(given, head, (row, key));
            add(&mut gradient, self.scale() * d_score, &self.key(key, head / self.heads_of_a_group()));
        }
        gradient
    }

    fn d_key_value(&self, given: &Given, row: usize, group: usize) -> (Vec<f64>, Vec<f64>) {
        let size = self.shape.head_dim;
        let mut d_key = vec![0.0; size];
        let mut d_value = vec![0.0; size];
        let segment = self.segment(row);
        let heads = group * self.heads_of_a_group()..(group + 1) * self.heads_of_a_group();
        for query in row..segment.start + segment.length {
            if !self.visible(query).contains(&row) {
                continue;
            }
            for head in heads.clone() {
                let (probability, d_score) = self.pair(given, head, (query, row));
                let d_out = given.d_out.span(query, head * size, size);
                add(&mut d_key, self.scale() * d_score, &self.query(query, head));
                add(&mut d_value, probability, &d_out);
            }
        }
        (d_key, d_value)
    }
}

/// The wanted columns of a row that consists of blocks of `size`, each block computed once.
pub(super) fn by_block(cols: &[usize], size: usize, block: impl Fn(usize) -> Vec<f64>) -> Vec<f64> {
    let mut last: Option<(usize, Vec<f64>)> = None;
    let element = |&col: &usize| {
        let index = col / size;
        if last.as_ref().is_none_or(|(known, _)| *known != index) {
            last = Some((index, block(index)));
        }
        last.as_ref().map_or(f64::NAN, |(_, values)| values[col % size])
    };
    cols.iter().map(element).collect()
}

pub(super) fn add(sum: &mut [f64], factor: f64, x: &[f64]) {
    sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += factor * x);
}
