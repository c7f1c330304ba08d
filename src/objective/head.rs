//! What a loss at the language-model head compares predictions with: the batch's next tokens, one fixed token, or a teacher.

use super::tokens::FixedTargets;
use crate::error::Result;
use crate::model::{Model, Parameters, Workspace};
use crate::ops::{Backend, CopyValues, HeadLoss, HeadTeacher, RecordingKey, Tensor};

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
