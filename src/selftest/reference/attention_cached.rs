//! Attention of new rows to a cache.

use super::attention::{add, by_block};
use super::{Numbers, dot};
use crate::ops::{AttentionShape, CachedSegment};

/// The operands of attention to a cache.
pub struct CachedAttention<'a> {
    /// New rows, `[T, (H+2G)·D]`.
    pub qkv: &'a dyn Numbers,
    /// What the cache holds before, `[slots, 2·G·D]`.
    pub cache: &'a dyn Numbers,
    pub segments: &'a [CachedSegment],
    /// The slots of all sequences, in order of position.
    pub slots: &'a [u32],
    pub shape: AttentionShape,
}

impl CachedAttention<'_> {
    /// The new row that goes to a slot, if one does.
    fn new_row(&self, slot: u32) -> Option<usize> {
        let of = |s: &CachedSegment| {
            let own = &self.slots[s.slots.end - s.length..s.slots.end];
            own.iter().position(|&other| other == slot).map(|index| s.start + index)
        };
        self.segments.iter().find_map(of)
    }

    /// Columns of a slot after the new rows are in.
    fn held(&self, slot: u32, first: usize, len: usize) -> Vec<f64> {
        match self.new_row(slot) {
            Some(row) => self.qkv.span(row, self.shape.query_cols() + first, len),
            None => self.cache.span(slot as usize, first, len),
        }
    }

    /// What the cache holds after.
    pub fn stored(&self) -> impl Fn(usize, &[usize]) -> Vec<f64> {
        |slot, cols| {
            let held = self.held(slot as u32, 0, 2 * self.shape.key_value_cols());
            cols.iter().map(|&col| held[col]).collect()
        }
    }

    /// The slots that a new row sees: its sequence's up to its own, the last ones where there is a window.
    fn seen(&self, row: usize) -> &[u32] {
        let holds = |s: &&CachedSegment| (s.start..s.start + s.length).contains(&row);
        let segment = self.segments.iter().find(holds).expect("every row belongs to a sequence");
        let end = segment.slots.end - (segment.start + segment.length - 1 - row);
        let length = end - segment.slots.start;
        &self.slots[end - self.shape.sliding_window.map_or(length, |window| window.min(length))..end]
    }

    /// out = softmax(q kᵀ / √D) v.
    pub fn forward(&self) -> impl Fn(usize, &[usize]) -> Vec<f64> {
        |row, cols| {
            let size = self.shape.head_dim;
            let share = self.shape.num_attention_heads / self.shape.num_key_value_heads;
            by_block(cols, size, |head| {
                let query = self.qkv.span(row, head * size, size);
                let group = head / share;
                let score = |&slot: &u32| dot(&query, &self.held(slot, group * size, size)) / (size as f64).sqrt();
                let scores: Vec<f64> = self.seen(row).iter().map(score).collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
                let mut out = vec![0.0; size];
                for (&slot, score) in self.seen(row).iter().zip(scores) {
                    let value = self.held(slot, self.shape.key_value_cols() + group * size, size);
                    add(&mut out, (score - largest).exp() / total, &value);
                }
                out
            })
        }
    }
}
