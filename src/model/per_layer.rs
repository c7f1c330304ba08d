//! Memory for the activations of each layer, in as many buffers as there is room for.

use crate::ops::{Backend, Matrix, MatrixMut, Tensor};

/// One kind of activation of all layers, in slots that each have room for one layer on the largest batch. A smaller batch
/// divides each slot into several places. Layers have a place of their own from the last one down; where places run out,
/// the first layers overwrite one another in the first place. Five layers on a batch of half the largest, in two slots:
///
/// ```text
/// slot 0 | layer 0, then layer 1 | layer 2 |
/// slot 1 | layer 3               | layer 4 |
/// ```
pub(super) struct PerLayer<B: Backend> {
    slots: Vec<Tensor<B>>,
    layers: usize,
}

/// The sizes that decide which layers have a place of their own in a `PerLayer`.
#[derive(Clone, Copy, Debug)]
pub struct LayerMemory {
    /// Number of layers.
    pub layers: usize,
    /// Number of slots, at least one.
    pub slots: usize,
    /// Tokens that a slot has room for.
    pub capacity: usize,
}

impl LayerMemory {
    /// The number of layers, from the last one down, that keep what they compute on a batch of `tokens` tokens: all, or one
    /// for each place but the shared one.
    pub fn kept_layers(&self, tokens: usize) -> usize {
        let places = self.slots * self.places_of_slot(tokens);
        if places >= self.layers { self.layers } else { places - 1 }
    }

    /// The number of layers that one slot has room for.
    fn places_of_slot(&self, tokens: usize) -> usize {
        (self.capacity / tokens.max(1)).max(1)
    }
}

impl<B: Backend> PerLayer<B> {
    /// At least one slot, for `layers` layers.
    pub(super) fn new(layers: usize, slots: Vec<Tensor<B>>) -> Self {
        Self { slots, layers }
    }

    /// The slot of a layer and its first row there.
    fn place(&self, layer: usize, tokens: usize) -> (usize, usize) {
        let memory = LayerMemory { layers: self.layers, slots: self.slots.len(), capacity: self.slots[0].rows() };
        let each = memory.places_of_slot(tokens);
        let shared = self.layers - memory.kept_layers(tokens);
        let place = if layer < shared { 0 } else { layer - shared + usize::from(shared > 0) };
        (place / each, place % each * tokens)
    }

    /// The activation of `layer` on a batch of `tokens` tokens, [tokens, cols].
    pub fn top(&self, layer: usize, tokens: usize) -> Matrix<'_, B> {
        let cols = self.slots[0].cols();
        self.shaped(layer, tokens, cols)
    }

    /// As [`PerLayer::top`], to write.
    pub fn top_mut(&mut self, layer: usize, tokens: usize) -> MatrixMut<'_, B> {
        let cols = self.slots[0].cols();
        self.shaped_mut(layer, tokens, cols)
    }

    /// The front of a layer's place as a matrix of `cols` columns, no more than the slot has.
    pub fn shaped(&self, layer: usize, tokens: usize, cols: usize) -> Matrix<'_, B> {
        let (slot, row) = self.place(layer, tokens);
        let slot = &self.slots[slot];
        assert!(cols <= slot.cols() && row + tokens <= slot.rows(), "a matrix larger than its buffer");
        Matrix { buffer: slot.buffer(), offset: row * slot.cols(), rows: tokens, cols }
    }

    /// As [`PerLayer::shaped`], to write.
    pub fn shaped_mut(&mut self, layer: usize, tokens: usize, cols: usize) -> MatrixMut<'_, B> {
        let (slot, row) = self.place(layer, tokens);
        let slot = &mut self.slots[slot];
        assert!(cols <= slot.cols() && row + tokens <= slot.rows(), "a matrix larger than its buffer");
        let offset = row * slot.cols();
        MatrixMut { buffer: slot.buffer_mut(), offset, rows: tokens, cols }
    }

    /// All slots.
    #[cfg(test)]
    pub fn slots(&self) -> &[Tensor<B>] {
        &self.slots
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;
    use crate::ops::DType;

    /// Layers with a place of their own share no row with any other, and all others have the first place.
    #[test]
    fn own_places_do_not_overlap() {
        const CAPACITY: usize = 12;
        for layers in 1..7 {
            for slots in 1..=layers {
                let make = |_| Tensor::zeros(&Cpu, "slot", CAPACITY, 2, DType::F32).unwrap();
                let all = PerLayer::<Cpu>::new(layers, (0..slots).map(make).collect());
                for tokens in 1..=CAPACITY {
                    let kept = LayerMemory { layers, slots, capacity: CAPACITY }.kept_layers(tokens);
                    let mut used = vec![false; slots * CAPACITY];
                    for layer in 0..layers {
                        let (slot, row) = all.place(layer, tokens);
                        assert!(slot < slots && row + tokens <= CAPACITY, "{layers} {slots} {tokens}");
                        let rows = &mut used[slot * CAPACITY + row..][..tokens];
                        let shared = layer < layers - kept;
                        assert!(!shared || (slot, row) == (0, 0), "{layers} {slots} {tokens}");
                        assert!(rows.iter().all(|used| !used) || (shared && layer > 0), "{layers} {slots} {tokens}");
                        rows.fill(true);
                    }
                    assert!(kept == layers || kept + 1 >= slots, "no slot is left empty");
                    assert!(tokens < CAPACITY || kept == if slots == layers { layers } else { slots - 1 });
                }
            }
        }
    }
}
