//! Keys and values of texts that are being continued: which slots of the cache belong to which text.

use super::Model;
use crate::error::{Error, Result};
use crate::ops::{Backend, Tensor};

/// The keys and values of all layers, for a fixed number of tokens. A token's slot is the same in every layer.
///
/// Slots are handed out to [`CachedSequence`]s and counted: one that several sequences share becomes free when the last of
/// them gives it back.
pub struct KeyValueCache<B: Backend> {
    /// [slots, 2·G·D] of each layer.
    pub(super) layers: Vec<Tensor<B>>,
    /// The number of sequences that use each slot.
    users: Vec<u32>,
    /// Slots without a user; the next one to hand out is the last.
    free: Vec<u32>,
}

/// A text whose keys and values are in a [`KeyValueCache`]. Give it back with [`KeyValueCache::release`]: dropping it does
/// not free its slots.
#[derive(Debug, Default)]
pub struct CachedSequence {
    slots: Vec<u32>,
}

impl CachedSequence {
    /// Number of its tokens.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether it has no token.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The slots of its tokens in order of position.
    pub(super) fn slots(&self) -> &[u32] {
        &self.slots
    }
}

impl<B: Backend> KeyValueCache<B> {
    /// Memory for `slots` tokens of `model`.
    pub fn new(model: &Model<B>, slots: usize) -> Result<Self> {
        let backend = &model.backend;
        let width = 2 * model.config.attention().key_value_cols();
        let count = u32::try_from(slots).ok().filter(|count| i32::try_from(*count).is_ok());
        let Some(count) = count else {
            let problem = format!("a cache of {slots} tokens is more than can be addressed");
            return Err(Error::config("batch", problem, "generate for fewer texts at a time"));
        };
        let layer = |_| Tensor::zeros(backend, "keys and values", slots, width, backend.compute_dtype());
        Ok(Self {
            layers: (0..model.config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            users: vec![0; slots],
            free: (0..count).rev().collect(),
        })
    }

    /// Number of slots that nobody uses.
    pub fn free_slots(&self) -> usize {
        self.free.len()
    }

    /// A sequence that begins with the first `length` tokens of `sequence` (all where it has fewer), in the same slots.
    pub fn fork(&mut self, sequence: &CachedSequence, length: usize) -> CachedSequence {
        let slots: Vec<u32> = sequence.slots.iter().take(length).copied().collect();
        for &slot in &slots {
            self.users[slot as usize] += 1;
        }
        CachedSequence { slots }
    }

    /// Forgets the tokens of a sequence from `length` on.
    pub fn truncate(&mut self, sequence: &mut CachedSequence, length: usize) {
        for slot in sequence.slots.drain(length.min(sequence.slots.len())..).rev() {
            self.users[slot as usize] -= 1;
            if self.users[slot as usize] == 0 {
                self.free.push(slot);
            }
        }
    }

    /// Takes a sequence's slots back.
    pub fn release(&mut self, mut sequence: CachedSequence) {
        self.truncate(&mut sequence, 0);
    }

    /// Gives a sequence slots for `count` more tokens. Fails, without a change, if there are fewer.
    pub(super) fn grow(&mut self, sequence: &mut CachedSequence, count: usize) -> Result<()> {
        let Some(left) = self.free.len().checked_sub(count) else {
            let problem = format!("{count} more tokens do not fit, {} are free", self.free.len());
            return Err(crate::ops::shape_error("KeyValueCache", problem));
        };
        for slot in self.free.drain(left..).rev() {
            self.users[slot as usize] = 1;
            sequence.slots.push(slot);
        }
        Ok(())
    }
}
