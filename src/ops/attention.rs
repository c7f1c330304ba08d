//! Rotary position embedding and causal attention over packed sequences.

use super::{Backend, Check, DType, Matrix, MatrixMut, Memory, Operation, Tensor};
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

    /// Fails unless the heads can share keys and values evenly.
    pub(super) fn check(&self, check: &Check) -> Result<()> {
        if self.num_key_value_heads == 0 || !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return Err(check.error("key/value heads must divide the attention heads".into()));
        }
        Ok(())
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Segment {
    /// Its first row in the batch.
    pub start: usize,
    /// Its number of rows, padding included.
    pub length: usize,
    /// Its number of real tokens; rows after them are padding, which no query sees as a key.
    pub valid: usize,
}

/// The sequences of a batch, in order and without gaps, on the host and on the device.
pub struct Segments<B: Memory> {
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
pub struct RopeTable<B: Memory> {
    /// [positions, D/2] f32, the attention factor of the scaling included.
    pub cos: Tensor<B>,
    /// [positions, D/2] f32.
    pub sin: Tensor<B>,
}

/// Rotates every query and key head of a batch in place: the pair (i, i + D/2) of a head at position p turns by the
/// table's angle (p, i).
///
/// Source: Transformers `apply_rotary_pos_emb` (the halves layout of the Hugging Face weights).
pub struct Rope<'a, B: Memory> {
    /// [T, (H+2G)·D]; values stay as they are.
    pub qkv: MatrixMut<'a, B>,
    /// [T, 1] u32, each below the rows of the table.
    pub positions: Matrix<'a, B>,
    /// The angles.
    pub table: &'a RopeTable<B>,
    /// The heads.
    pub shape: AttentionShape,
    /// Whether pairs turn by minus the angle, which is the backward pass.
    pub inverse: bool,
}

impl<B: Memory> Operation for Rope<'_, B> {
    const NAME: &'static str = "rope";
    type Output = ();

    fn check(&self, check: &Check) -> Result<()> {
        let Self { qkv, positions, table, shape, inverse: _ } = self;
        let cos = table.cos.view();
        let sin = table.sin.view();
        check.columns(shape.qkv_cols(), &[("qkv", qkv)])?;
        check.elements(qkv.rows, &[("positions", positions)])?;
        check.equal("columns of the table", cos.cols * 2, shape.head_dim)?;
        check.elements(cos.len(), &[("sin", &sin)])?;
        check.stored(check.compute, &[("qkv", qkv)])?;
        check.stored(DType::U32, &[("positions", positions)])?;
        check.stored(DType::F32, &[("cos", &cos), ("sin", &sin)])
    }
}

/// out = softmax(q kᵀ / √D) v for each head and sequence, over [`AttentionShape::visible_keys`]. A row that sees no key
/// gives out = 0 and log_sum_exp = −∞.
pub struct AttentionForward<'a, B: Memory> {
    /// [T, (H+2G)·D].
    pub qkv: Matrix<'a, B>,
    /// The sequences, T rows together.
    pub segments: &'a Segments<B>,
    /// The heads.
    pub shape: AttentionShape,
    /// [T, H·D].
    pub out: MatrixMut<'a, B>,
    /// [T, H] f32: the natural logarithm of Σ e^score, kept for backward.
    pub log_sum_exp: MatrixMut<'a, B>,
}

impl<B: Memory> Operation for AttentionForward<'_, B> {
    const NAME: &'static str = "attention_forward";
    type Output = ();

    fn check(&self, check: &Check) -> Result<()> {
        let Self { qkv, segments, shape, out, log_sum_exp } = self;
        shape.check(check)?;
        check.columns(shape.qkv_cols(), &[("qkv", qkv)])?;
        check.segments(segments, qkv.rows)?;
        check.rows(qkv.rows, &[("out", out)])?;
        check.columns(shape.query_cols(), &[("out", out)])?;
        check.elements(qkv.rows * shape.num_attention_heads, &[("log_sum_exp", log_sum_exp)])?;
        check.stored(check.compute, &[("qkv", qkv), ("out", out)])?;
        check.stored(DType::F32, &[("log_sum_exp", log_sum_exp)])
    }
}

/// Gradient of [`AttentionForward`] with respect to qkv, by recomputing the probabilities from log_sum_exp.
///
/// Source: FlashAttention-2 (arXiv 2307.08691), section 3.1.2: dS = P ∘ (dP − rowsum(dO ∘ O)).
pub struct AttentionBackward<'a, B: Memory> {
    /// [T, H·D].
    pub d_out: Matrix<'a, B>,
    /// [T, (H+2G)·D], as in forward.
    pub qkv: Matrix<'a, B>,
    /// [T, H·D], the result of forward.
    pub out: Matrix<'a, B>,
    /// [T, H] f32, the result of forward.
    pub log_sum_exp: Matrix<'a, B>,
    /// The sequences, T rows together.
    pub segments: &'a Segments<B>,
    /// The heads.
    pub shape: AttentionShape,
    /// [T, (H+2G)·D], overwritten.
    pub d_qkv: MatrixMut<'a, B>,
}

impl<B: Memory> Operation for AttentionBackward<'_, B> {
    const NAME: &'static str = "attention_backward";
    type Output = ();

    fn check(&self, check: &Check) -> Result<()> {
        let Self { d_out, qkv, out, log_sum_exp, segments, shape, d_qkv } = self;
        shape.check(check)?;
        check.columns(shape.qkv_cols(), &[("qkv", qkv)])?;
        check.segments(segments, qkv.rows)?;
        check.rows(qkv.rows, &[("out", out)])?;
        check.columns(shape.query_cols(), &[("out", out)])?;
        check.elements(qkv.rows * shape.num_attention_heads, &[("log_sum_exp", log_sum_exp)])?;
        check.elements(out.len(), &[("d_out", d_out)])?;
        check.elements(qkv.len(), &[("d_qkv", d_qkv)])?;
        check.stored(check.compute, &[("d_out", d_out), ("qkv", qkv), ("out", out), ("d_qkv", d_qkv)])?;
        check.stored(DType::F32, &[("log_sum_exp", log_sum_exp)])
    }
}
