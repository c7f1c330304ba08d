//! A backward pass that keeps no whole gradient: each part of the weights steps as soon as its gradient is complete.
//!
//! Lv et al., "Full Parameter Fine-tuning for Large Language Models with Limited Resources" (LOMO, arXiv 2306.09782). A
//! part is the head, the final norm, a layer, or the embedding. It steps after its last use in the pass, so that the
//! weights end where a step after the whole pass leaves them, bit for bit. The caller says which step it is.

use std::ops::Range;

use super::forward::{LayerPass, Linear};
use super::{
    DeviceBatch, GradientDestinations, GradientView, Model, ModelLayout, Parameters, PartGradient, Subject, Workspace,
};
use crate::error::Result;
use crate::ops::{Backend, RecordingKey};

/// A step of the weights that can be taken part by part, such as an optimizer's.
pub trait PartStep<B: Backend> {
    /// Steps the weights whose gradients `part` holds, and no others.
    fn step_part(&mut self, backend: &B, weights: &mut Parameters<B>, part: GradientView<B>) -> Result<()>;

    /// Adds to a recording's key what a step depends on: its rule and its memory.
    fn add_to_key(&self, key: &mut RecordingKey);
}

/// Memory for the gradient of one part at a time.
pub struct PartGradients<B: Backend> {
    part: PartGradient<B>,
    /// The gradient of an embedding that is also the head, from the first part of the pass to the last.
    tied: Option<PartGradient<B>>,
    head: Range<usize>,
}

impl<B: Backend> PartGradients<B> {
    /// Memory for the parts of `layout`. `name` is the buffers' name in the memory plan.
    pub fn new(backend: &B, name: &str, layout: &ModelLayout) -> Result<Self> {
        let embedding = || PartGradient::new(backend, &format!("{name} of the embedding"), layout.embed_tokens().len());
        let tied = if layout.is_tied() { Some(embedding()?) } else { None };
        let part = PartGradient::new(backend, name, layout.largest_part())?;
        Ok(Self { part, tied, head: layout.lm_head().range() })
    }

    /// Adds its memory to a recording's key.
    pub(crate) fn add_to_key(&self, key: &mut RecordingKey) {
        key.buffer(self.part.buffer());
    }

    /// Memory for the gradient that the loss head of the next pass adds, all zero.
    pub fn head(&mut self, backend: &B) -> Result<&mut PartGradient<B>> {
        let gradients = self.tied.as_mut().unwrap_or(&mut self.part);
        gradients.move_to(backend, self.head.clone())?;
        Ok(gradients)
    }
}

impl<B: Backend> Model<B> {
    /// The backward pass for weights without an adapter, after a loss head that added to [`PartGradients::head`]. Steps
    /// each part once.
    pub fn backward_stepping(
        &self,
        weights: &mut Parameters<B>,
        batch: &DeviceBatch<B>,
        workspace: &mut Workspace<B>,
        gradients: &mut PartGradients<B>,
        stepper: &mut dyn PartStep<B>,
    ) -> Result<()> {
        let backend = &self.backend;
        let layout = self.layout();
        let tokens = batch.len();
        workspace.check_fits(tokens)?;
        let PartGradients { part, tied, .. } = gradients;
        if tied.is_none() {
            stepper.step_part(backend, weights, part.view())?;
        }
        part.move_to(backend, layout.final_norm().range())?;
        self.backward_final_norm(weights, tokens, workspace, &mut GradientDestinations::of_part(part))?;
        stepper.step_part(backend, weights, part.view())?;
        for layer in (0..self.config.num_hidden_layers).rev() {
            part.move_to(backend, layout.layer(layer).range())?;
            let linear = Linear { model: self, subject: Subject::plain(weights), layer };
            LayerPass { linear, tokens }.backward(batch, workspace, &mut GradientDestinations::of_part(part))?;
            stepper.step_part(backend, weights, part.view())?;
        }
        let embedding = match tied {
            Some(from_head) => from_head,
            None => {
                part.move_to(backend, layout.embed_tokens().range())?;
                part
            }
        };
        self.backward_embedding(batch, workspace, &mut GradientDestinations::of_part(embedding))?;
        stepper.step_part(backend, weights, embedding.view())
    }
}
