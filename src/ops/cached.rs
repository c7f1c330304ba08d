//! Attention of new tokens to the keys and values of earlier ones, which a cache keeps: a text grows by a token for the work
//! of a token.

use std::collections::HashSet;
use std::ops::Range;

use super::{AttentionShape, Backend, Check, DType, Matrix, MatrixMut, Memory, Operation, Tensor, shape_error};
use crate::error::Result;

/// New tokens of one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedSegment {
    /// Its first row in the batch.
    pub start: usize,
    /// Its number of rows.
    pub length: usize,
    /// The entries of [`CachedSegments::slots`] that are this sequence's: one a token in order of position, those of the new
    /// rows last.
    pub slots: Range<usize>,
}

/// The sequences that a batch of new rows continues, and the slots of a cache in which their keys and values lie.
///
/// A slot is a row of the cache. Any slot can serve any position of any sequence, so sequences that begin alike can share the
/// slots of their beginning, and what one leaves another can take.
pub struct CachedSegments<B: Memory> {
    /// The heads, and the window that the rows see through.
    pub shape: AttentionShape,
    /// The sequences, in order and without gaps.
    pub host: Vec<CachedSegment>,
    /// The slots of all sequences, one sequence after another.
    pub slots: Vec<u32>,
    /// The same on the device, [n, 1] u32.
    pub device_slots: Tensor<B>,
    /// For each new row (first entry of `slots` that it sees, number of entries, its own slot), [3 T, 1] u32.
    pub device_rows: Tensor<B>,
}

impl<B: Backend> CachedSegments<B> {
    /// Sequences as (number of new rows, slots of all its tokens with those of the new rows last). Fails where a sequence has
    /// more rows than slots, and where two new rows have one slot.
    pub fn new(backend: &B, shape: AttentionShape, sequences: &[(usize, &[u32])]) -> Result<Self> {
        let mut host = Vec::with_capacity(sequences.len());
        let mut slots = Vec::new();
        let mut rows = Vec::new();
        let mut written = HashSet::new();
        for &(length, own) in sequences {
            let Some(before) = own.len().checked_sub(length) else {
                return Err(shape_error(NAME, format!("{length} new rows have {} slots", own.len())));
            };
            for (position, &slot) in own.iter().enumerate().skip(before) {
                let visible = shape.visible_keys(position, own.len());
                rows.extend([(slots.len() + visible.start) as u32, visible.len() as u32, slot]);
                if !written.insert(slot) {
                    return Err(shape_error(NAME, format!("two new rows go to slot {slot}")));
                }
            }
            host.push(CachedSegment {
                start: written.len() - length,
                length,
                slots: slots.len()..slots.len() + own.len(),
            });
            slots.extend_from_slice(own);
        }
        if i32::try_from(slots.len()).is_err() {
            return Err(shape_error(NAME, format!("{} slots are more than one batch can count", slots.len())));
        }
        let device_slots = Tensor::from_u32(backend, "cache slots", &slots)?;
        let device_rows = Tensor::from_u32(backend, "cached rows", &rows)?;
        Ok(Self { shape, host, slots, device_slots, device_rows })
    }
}

impl<B: Memory> CachedSegments<B> {
    /// New rows of all sequences together.
    pub fn tokens(&self) -> usize {
        self.host.last().map_or(0, |s| s.start + s.length)
    }

    /// The slots of a sequence's new rows.
    pub fn new_slots(&self, segment: &CachedSegment) -> &[u32] {
        &self.slots[segment.slots.end - segment.length..segment.slots.end]
    }
}

const NAME: &str = "attention_cached";

/// Stores the keys and values of new rows in their slots of the cache; then out = softmax(q kᵀ / √D) v for each head and
/// new row, over the tokens of its sequence up to itself that are within the sliding window. It gives the rows of
/// [`super::AttentionForward`] over the whole sequences.
pub struct AttentionCached<'a, B: Memory> {
    /// [T, (H+2G)·D] of the new rows, keys and queries rotated.
    pub qkv: Matrix<'a, B>,
    /// The sequences and their slots, and the heads.
    pub segments: &'a CachedSegments<B>,
    /// [slots, 2·G·D], a slot's keys before its values.
    pub cache: MatrixMut<'a, B>,
    /// [T, H·D].
    pub out: MatrixMut<'a, B>,
}

impl<B: Memory> Operation for AttentionCached<'_, B> {
    const NAME: &'static str = NAME;
    type Output = ();

    fn check(&self, check: &Check) -> Result<()> {
        let Self { qkv, segments, cache, out } = self;
        let shape = segments.shape;
        shape.check(check)?;
        check.columns(shape.qkv_cols(), &[("qkv", qkv)])?;
        check.equal("new rows of the sequences", segments.tokens(), qkv.rows)?;
        check.columns(2 * shape.key_value_cols(), &[("the cache", cache)])?;
        check.rows(qkv.rows, &[("out", out)])?;
        check.columns(shape.query_cols(), &[("out", out)])?;
        if let Some(slot) = segments.slots.iter().find(|&&slot| slot as usize >= cache.rows) {
            return Err(check.error(format!("slot {slot} is beyond the {} of the cache", cache.rows)));
        }
        check.stored(check.compute, &[("qkv", qkv), ("the cache", cache), ("out", out)])?;
        let rows = segments.device_rows.view();
        let slots = segments.device_slots.view();
        check.stored(DType::U32, &[("the table of rows", &rows), ("the table of slots", &slots)])
    }
}
