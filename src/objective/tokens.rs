//! The loss of each token, how much it counts, and targets that are not the batch's.

use crate::error::Result;
use crate::ops::{Backend, DType, Tensor};

/// Memory for the per-token losses of one pass at a time.
pub(super) struct TokenLosses<B: Backend> {
    /// The loss of each token, [T, 1] f32.
    pub values: Tensor<B>,
    /// The weight of each token in the loss of its batch, [T, 1] f32.
    pub weights: Tensor<B>,
}

impl<B: Backend> TokenLosses<B> {
    /// Memory for batches of up to `capacity` tokens: [`token_loss_bytes`].
    pub fn new(backend: &B, capacity: usize) -> Result<Self> {
        let column = |name: &str| Tensor::zeros(backend, name, capacity, 1, DType::F32);
        Ok(Self { values: column("loss values")?, weights: column("loss weights")? })
    }
}

/// One token as the target of every row.
pub(super) struct FixedTargets<B: Backend> {
    pub token: u32,
    /// [capacity, 1] u32.
    pub values: Tensor<B>,
}

impl<B: Backend> FixedTargets<B> {
    /// Targets of batches of up to `capacity` tokens.
    pub fn new(backend: &B, token: u32, capacity: usize) -> Result<Self> {
        Ok(Self { token, values: Tensor::from_u32(backend, "fixed targets", &vec![token; capacity])? })
    }
}

/// Bytes that an [`Evaluator`](super::Evaluator) for batches of up to `capacity` tokens keeps besides its workspace.
pub fn token_loss_bytes(capacity: u64) -> u64 {
    capacity.saturating_mul(2 * DType::F32.bytes() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;
    use crate::ops::Buffer;

    #[test]
    fn planned_bytes_are_the_allocated_ones() {
        let losses = TokenLosses::new(&Cpu, 21).unwrap();
        let buffers = [losses.values.buffer(), losses.weights.buffer()];
        let allocated: usize = buffers.map(|buffer| buffer.len() * buffer.dtype().bytes()).iter().sum();
        assert_eq!(token_loss_bytes(21), allocated as u64);
    }
}
