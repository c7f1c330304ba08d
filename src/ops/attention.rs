//! Rotary position embedding and causal attention over packed sequences.

use super::{Backend, Matrix, MatrixMut, Tensor, expect, shape_error};
use crate::error::Result;

/// The heads of an attention layer. A row of a `qkv` matrix holds H query heads, then G key heads, then G value heads,
/// each of `head_dim` values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// H.
    pub num_attention_heads: usize,
    /// G; divides H.
    pub num_key_value_heads: usize,
    /// D.
    pub head_dim: usize,
    /// A query sees only the last `sliding_window` positions, itself included.
    pub sliding_window: Option<usize>,
}

impl AttentionShape {
    /// Columns of the query part: H·D.
    pub fn query_cols(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Columns of the key part (and of the value part): G·D.
    pub fn key_value_cols(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Columns of a qkv row: (H + 2G)·D.
    pub fn qkv_cols(&self) -> usize {
        self.query_cols() + 2 * self.key_value_cols()
    }

    /// The factor on the scores: 1/√D.
    pub fn score_scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// The keys that row `query` of a sequence sees, as a range of rows of that sequence: the causal past within the
    /// sliding window, without padding.
    pub fn visible_keys(&self, query: usize, valid: usize) -> std::ops::Range<usize> {
        let end = (query + 1).min(valid);
        let start = self.sliding_window.map_or(0, |window| (query + 1).saturating_sub(window));
        start.min(end)..end
    }
}

/// One sequence of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its first row in the batch.
    pub start: usize,
    /// Its number of rows, padding included.
    pub length: usize,
    /// Its number of real tokens; rows after them are padding, which no query sees as a key.
    pub valid: usize,
}

/// The sequences of a batch, in order and without gaps, on the host and on the device.
pub struct Segments<B: Backend> {
    /// The sequences.
    pub host: Vec<Segment>,
    /// (start, length, valid) of each, [n, 3] as u32.
    pub device: Tensor<B>,
}

impl<B: Backend> Segments<B> {
    /// Copies the table of sequences to the device.
    pub fn new(backend: &B, host: Vec<Segment>) -> Result<Self> {
        let device = Tensor::from_u32(backend, "segments", &flat(&host))?;
        Ok(Self { host, device })
    }

    /// Replaces the sequences by others, as many as the table has room for.
    pub fn refill(&mut self, backend: &B, host: Vec<Segment>) -> Result<()> {
        self.device.refill_u32(backend, &flat(&host))?;
        self.host = host;
        Ok(())
    }

    /// Rows of all sequences together.
    pub fn tokens(&self) -> usize {
        self.host.last().map_or(0, |s| s.start + s.length)
    }
}

fn flat(segments: &[Segment]) -> Vec<u32> {
    segments.iter().flat_map(|s| [s.start as u32, s.length as u32, s.valid as u32]).collect()
}

/// cos and sin of every position and frequency.
pub struct RopeTable<B: Backend> {
    /// [positions, D/2] f32, the attention factor of the scaling included.
    pub cos: Tensor<B>,
    /// [positions, D/2] f32.
    pub sin: Tensor<B>,
}

/// Rotates every query and key head of `qkv` [T, (H+2G)·D] in place: the pair (i, i + D/2) of a head at position p
/// turns by the table's angle (p, i); with `inverse` by minus that angle, which is the backward pass.
///
/// Source: Transformers `apply_rotary_pos_emb` (the halves layout of the Hugging Face weights).
pub fn rope<B: Backend>(
    backend: &B,
    qkv: MatrixMut<B>,
    positions: Matrix<B>,
    table: &RopeTable<B>,
    shape: AttentionShape,
    inverse: bool,
) -> Result<()> {
    const NAME: &str = "rope";
    expect(NAME, "columns of qkv", qkv.cols, shape.qkv_cols())?;
    expect(NAME, "number of positions", positions.len(), qkv.rows)?;
    expect(NAME, "columns of the table", table.cos.cols() * 2, shape.head_dim)?;
    backend.rope(qkv, positions, table, shape, inverse)
}

fn check<B: Backend>(
    name: &'static str,
    qkv: Matrix<B>,
    segments: &Segments<B>,
    shape: AttentionShape,
    out: (usize, usize),
    log_sum_exp: usize,
) -> Result<()> {
    if shape.num_key_value_heads == 0 || !shape.num_attention_heads.is_multiple_of(shape.num_key_value_heads) {
        return Err(shape_error(name, "key/value heads must divide the attention heads".into()));
    }
    expect(name, "columns of qkv", qkv.cols, shape.qkv_cols())?;
    expect(name, "tokens of the segments", segments.tokens(), qkv.rows)?;
    expect(name, "rows of out", out.0, qkv.rows)?;
    expect(name, "columns of out", out.1, shape.query_cols())?;
    expect(name, "elements of log_sum_exp", log_sum_exp, qkv.rows * shape.num_attention_heads)
}

/// out = softmax(q kᵀ / √D) v for each head and sequence, over [`AttentionShape::visible_keys`].
///
/// qkv [T, (H+2G)·D], out [T, H·D], log_sum_exp [T, H] f32 (natural logarithm, kept for backward). A row that sees no
/// key gives out = 0 and log_sum_exp = −∞.
pub fn attention_forward<B: Backend>(
    backend: &B,
    qkv: Matrix<B>,
    segments: &Segments<B>,
    shape: AttentionShape,
    out: MatrixMut<B>,
    log_sum_exp: MatrixMut<B>,
) -> Result<()> {
    check("attention_forward", qkv, segments, shape, (out.rows, out.cols), log_sum_exp.len())?;
    backend.attention_forward(qkv, segments, shape, out, log_sum_exp)
}

/// Gradient of [`attention_forward`] with respect to qkv, by recomputing the probabilities from log_sum_exp.
///
/// Source: FlashAttention-2 (arXiv 2307.08691), section 3.1.2: dS = P ∘ (dP − rowsum(dO ∘ O)).
#[allow(clippy::too_many_arguments)]
pub fn attention_backward<B: Backend>(
    backend: &B,
    d_out: Matrix<B>,
    qkv: Matrix<B>,
    out: Matrix<B>,
    log_sum_exp: Matrix<B>,
    segments: &Segments<B>,
    shape: AttentionShape,
    d_qkv: MatrixMut<B>,
) -> Result<()> {
    const NAME: &str = "attention_backward";
    check(NAME, qkv, segments, shape, (out.rows, out.cols), log_sum_exp.len())?;
    expect(NAME, "elements of d_out", d_out.len(), out.len())?;
    expect(NAME, "elements of d_qkv", d_qkv.len(), qkv.len())?;
    backend.attention_backward(d_out, qkv, out, log_sum_exp, segments, shape, d_qkv)
}
