//! Losses kept on the device until somebody asks, so that a trajectory never waits for one.

use crate::error::Result;
use crate::ops::{self, Backend, DType, Matrix, MatrixMut, Tensor};

/// Numbered slots for the losses of a trajectory or of a step.
pub struct LossTape<B: Backend> {
    slots: Tensor<B>,
    scales: Vec<f64>,
}

impl<B: Backend> LossTape<B> {
    /// `slots` losses, all 0.
    pub fn new(backend: &B, slots: usize) -> Result<Self> {
        Ok(Self { slots: Tensor::zeros(backend, "losses", slots, 1, DType::F32)?, scales: vec![1.0; slots] })
    }

    /// Sets every slot to 0.
    pub fn clear(&mut self, backend: &B) -> Result<()> {
        let len = self.scales.len();
        self.scales.fill(1.0);
        backend.clear(self.slots.buffer_mut(), 0, len)
    }

    /// Adds Σ values · weights to a slot; `scale` is the factor in the weights that a reader does not want to see.
    pub(super) fn add(
        &mut self,
        backend: &B,
        slot: usize,
        values: Matrix<B>,
        weights: Matrix<B>,
        scale: f32,
    ) -> Result<()> {
        self.scales[slot] = f64::from(scale);
        let out = MatrixMut { buffer: self.slots.buffer_mut(), offset: slot, rows: 1, cols: 1 };
        ops::weighted_sum(backend, values, weights, 1.0, out)
    }

    /// Copies slot 0 of another tape into a slot of this one.
    pub(super) fn take(&mut self, backend: &B, slot: usize, other: &Self) -> Result<()> {
        self.scales[slot] = other.scales[0];
        backend.copy(other.slots.buffer(), 0, self.slots.buffer_mut(), slot, 1)
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

/// A loss of scale 0 was not weighed at all and reads as 0.
fn unscaled(sum: f32, scale: f64) -> f64 {
    if scale == 0.0 { 0.0 } else { f64::from(sum) / scale }
}
