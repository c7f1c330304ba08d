//! Where the activations of each layer lie, in as many buffers as there is memory for.

use crate::error::Result;
use crate::ops::{Backend, Matrix, MatrixMut, Tensor};

/// One kind of activation of all layers: slots with room for one layer on the largest batch each. On a smaller batch
/// several layers share a slot without overlapping; where there is not room for all even so, the last layers have a place
/// of their own and the others overwrite one another in the first place.
pub struct PerLayer<B: Backend> {
    slots: Vec<Tensor<B>>,
    layers: usize,
}

impl<B: Backend> PerLayer<B> {
    /// `slots` (at least one) for `layers` layers.
    pub(super) fn new(layers: usize, slots: usize, make: impl Fn() -> Result<Tensor<B>>) -> Result<Self> {
        Ok(Self { slots: (0..slots.max(1)).map(|_| make()).collect::<Result<_>>()?, layers })
    }

    /// The slot of a layer and its first row there.
    fn place(&self, layer: usize, tokens: usize) -> (usize, usize) {
        let each = layers_of_slot(self.slots[0].rows(), tokens);
        let shared = self.layers - own_layers(self.layers, self.slots.len() * each);
        let place = if layer < shared { 0 } else { layer - shared + usize::from(shared > 0) };
        (place / each, place % each * tokens)
    }

    /// That of `layer` on a batch of `tokens` tokens, [tokens, cols].
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

/// Layers that a slot for `capacity` tokens has room for on a batch of `tokens`.
fn layers_of_slot(capacity: usize, tokens: usize) -> usize {
    (capacity / tokens.max(1)).max(1)
}

/// How many of the layers have a place of their own among so many places: all, or all places but the shared one.
fn own_layers(layers: usize, places: usize) -> usize {
    if places >= layers { layers } else { places - 1 }
}

/// How many of `layers` layers, the last ones, keep what they compute on a batch of `tokens` tokens, with `slots` for
/// `capacity` tokens.
pub fn kept_layers(layers: usize, slots: usize, capacity: usize, tokens: usize) -> usize {
    own_layers(layers, slots * layers_of_slot(capacity, tokens))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;
    use crate::ops::DType;

    /// Whatever fits, layers with a place of their own share no row with any other, and the others all have the first place.
    #[test]
    fn own_places_do_not_overlap() {
        const CAPACITY: usize = 12;
        for layers in 1..7 {
            for slots in 1..=layers {
                let make = || Tensor::zeros(&Cpu, "slot", CAPACITY, 2, DType::F32);
                let all = PerLayer::<Cpu>::new(layers, slots, make).unwrap();
                for tokens in 1..=CAPACITY {
                    let kept = kept_layers(layers, slots, CAPACITY, tokens);
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
