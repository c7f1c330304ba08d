//! Losses kept on the device until somebody asks, so that a trajectory never waits for one.

use crate::error::Result;
use crate::ops::{self, Backend, DType, Matrix, MatrixMut, Tensor};

/// Numbered slots for the losses of a trajectory or of a step.
pub struct LossTape<B: Backend> {
    slots: Tensor<B>,
    /// The factor in each slot's sum, which readers divide out again.
    scales: Vec<f64>,
}

/// One slot of a tape: where a pass adds its loss.
pub struct LossSlot<'a, B: Backend> {
    tape: &'a mut LossTape<B>,
    index: usize,
}

/// The operands of a loss that is a weighted sum.
pub(super) struct WeightedLosses<'a, B: Backend> {
    /// [T, 1].
    pub values: Matrix<'a, B>,
    /// [T, 1]: the normalisation, times `scale`.
    pub weights: Matrix<'a, B>,
    /// The factor in `weights`.
    pub scale: f32,
}

impl<B: Backend> LossTape<B> {
    /// `slots` losses, all 0.
    pub fn new(backend: &B, slots: usize) -> Result<Self> {
        Ok(Self { slots: Tensor::zeros(backend, "losses", slots, 1, DType::F32)?, scales: vec![1.0; slots] })
    }

    /// Sets every slot to 0.
    pub fn clear(&mut self, backend: &B) -> Result<()> {
        self.scales.fill(1.0);
        backend.run(ops::Clear { to: self.slots.view_mut() })
    }

    /// The slot of this number.
    pub fn slot(&mut self, index: usize) -> LossSlot<'_, B> {
        LossSlot { tape: self, index }
    }

    /// Every loss, without its scale. Waits for the device.
    pub fn read(&self, backend: &B) -> Result<Vec<f64>> {
        let sums = self.slots.to_vec(backend)?;
        Ok(sums.iter().zip(&self.scales).map(|(sum, scale)| unscaled(*sum, *scale)).collect())
    }

    /// One loss, without its scale. Waits for the device.
    pub fn read_one(&self, backend: &B, slot: usize) -> Result<f64> {
        let sum = backend.download_f32(self.slots.buffer(), slot, 1)?;
        Ok(unscaled(sum[0], self.scales[slot]))
    }
}

impl<B: Backend> LossSlot<'_, B> {
    /// The same slot for a shorter time.
    pub(super) fn reborrow(&mut self) -> LossSlot<'_, B> {
        LossSlot { tape: self.tape, index: self.index }
    }

    /// The slot after this one.
    pub(super) fn next(self) -> Self {
        Self { index: self.index + 1, ..self }
    }

    fn sum_mut(&mut self) -> MatrixMut<'_, B> {
        MatrixMut { buffer: self.tape.slots.buffer_mut(), offset: self.index, rows: 1, cols: 1 }
    }

    /// Adds Σ values · weights. Reading the tape divides by the scale.
    pub(super) fn add(&mut self, backend: &B, losses: WeightedLosses<B>) -> Result<()> {
        self.tape.scales[self.index] = f64::from(losses.scale);
        let out = self.sum_mut();
        backend.run(ops::WeightedSum { a: losses.values, b: losses.weights, scale: 1.0, out })
    }

    /// Copies slot 0 of another tape here.
    pub(super) fn take(&mut self, backend: &B, other: &LossTape<B>) -> Result<()> {
        self.tape.scales[self.index] = other.scales[0];
        backend.run(ops::CopyValues { from: other.slots.top(1), to: self.sum_mut() })
    }
}

/// The loss in a slot's sum. A loss of scale 0 has no weight at all and reads as 0.
fn unscaled(sum: f32, scale: f64) -> f64 {
    if scale == 0.0 { 0.0 } else { f64::from(sum) / scale }
}
