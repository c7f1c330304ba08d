//! What a loss at the language-model head compares predictions with: the batch's next tokens, one fixed token, or a teacher.

use super::tokens::FixedTargets;
use crate::error::Result;
use crate::model::{Model, ModelConfig, Parameters, Workspace};
use crate::ops::{Backend, CopyValues, DType, HeadLoss, HeadTeacher, RecordingKey, Tensor};

/// A loss at the head, with what it compares with.
pub(super) struct HeadCall<'a, B: Backend> {
    pub loss: HeadLoss,
    /// Targets in the place of the batch's.
    pub fixed: Option<&'a FixedTargets<B>>,
    pub teacher: Option<&'a Teacher<B>>,
}

impl<B: Backend> Clone for HeadCall<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for HeadCall<'_, B> {}

impl<B: Backend> HeadCall<'_, B> {
    /// A loss that compares with the batch's next tokens, or with nothing.
    pub fn of(loss: HeadLoss) -> Self {
        Self { loss, fixed: None, teacher: None }
    }

    /// Adds the memory that the call reads besides the batch's.
    pub fn add_to_key(&self, key: &mut RecordingKey) {
        key.optional_buffer(self.fixed.map(|fixed| fixed.values.buffer()));
        key.optional_buffer(self.teacher.map(|teacher| teacher.hidden.buffer()));
        key.optional_buffer(self.teacher.map(|teacher| teacher.head.buffer()));
    }
}

/// A teacher's final hidden states on one batch and a copy of its head, from which its logits are computed chunk by chunk.
pub struct Teacher<B: Backend> {
    /// [capacity, d].
    hidden: Tensor<B>,
    /// [V, d].
    head: Tensor<B>,
    /// Tokens of the batch.
    tokens: usize,
}

impl<B: Backend> Teacher<B> {
    /// Memory for batches of up to `capacity` tokens.
    pub(super) fn with_room(model: &Model<B>, capacity: usize) -> Result<Self> {
        let dtype = model.backend.compute_dtype();
        let block = model.layout().lm_head();
        let hidden = Tensor::zeros(&model.backend, "teacher's hidden states", capacity, block.cols, dtype)?;
        let head = Tensor::zeros(&model.backend, "teacher's head", block.rows, block.cols, dtype)?;
        Ok(Self { hidden, head, tokens: 0 })
    }

    /// Keeps the last hidden states of a forward pass of `weights` over `tokens` tokens.
    pub(super) fn keep(
        &mut self,
        model: &Model<B>,
        workspace: &Workspace<B>,
        weights: &Parameters<B>,
        tokens: usize,
    ) -> Result<()> {
        let from = workspace.hidden_state(model.config.num_hidden_layers, tokens);
        model.backend.run(CopyValues { from, to: self.hidden.top_mut(tokens) })?;
        let from = weights.matrix(model.layout().lm_head());
        model.backend.run(CopyValues { from, to: self.head.view_mut() })?;
        self.tokens = tokens;
        Ok(())
    }

    pub(super) fn operands(&self) -> HeadTeacher<'_, B> {
        HeadTeacher { hidden: self.hidden.top(self.tokens), head: self.head.view() }
    }
}

/// Bytes of a [`Teacher`] for batches of up to `capacity` tokens.
pub fn teacher_bytes(config: &ModelConfig, capacity: u64, compute: DType) -> u64 {
    let rows = capacity.saturating_add(config.vocab_size as u64);
    rows.saturating_mul((config.hidden_size * compute.bytes()) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;
    use crate::demo::Experiment;
    use crate::ops::Buffer;

    #[test]
    fn planned_bytes_are_the_allocated_ones() {
        let model = Model::new(Cpu, Experiment::<Cpu>::model_config(), 8).unwrap();
        let teacher = Teacher::with_room(&model, 21).unwrap();
        let buffers = [teacher.hidden.buffer(), teacher.head.buffer()];
        let allocated: usize = buffers.map(|buffer| buffer.len() * buffer.dtype().bytes()).iter().sum();
        assert_eq!(teacher_bytes(&model.config, 21, DType::F32), allocated as u64);
    }
}
