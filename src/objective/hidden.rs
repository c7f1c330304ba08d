//! Losses on hidden states, as visitors of the backward pass.

use super::LossSlot;
use super::tape::WeightedLosses;
use crate::error::Result;
use crate::model::{HiddenGradient, HiddenStates};
use crate::ops::{self, Backend, Matrix, MatrixMut, Tensor};

/// Adds up per-token losses of every depth in one slot of a tape.
pub(super) struct Recorder<'a, B: Backend> {
    pub backend: &'a B,
    pub loss: LossSlot<'a, B>,
    pub scale: f32,
    /// [T, 1], scratch.
    pub values: Tensor<B>,
    /// [T, 1]: the normalisation over tokens and depths, times `scale`.
    pub token_weights: Tensor<B>,
}

impl<B: Backend> Recorder<'_, B> {
    fn record(&mut self) -> Result<()> {
        let losses =
            WeightedLosses { values: self.values.view(), weights: self.token_weights.view(), scale: self.scale };
        self.loss.add(self.backend, losses)
    }
}

/// Mean L2 distance to the hidden states of a reference model.
pub(super) struct RepresentationDistance<'a, B: Backend> {
    pub recorder: Recorder<'a, B>,
    pub reference: &'a HiddenStates<B>,
}

impl<B: Backend> HiddenGradient<B> for RepresentationDistance<'_, B> {
    fn add(&mut self, level: usize, hidden: Matrix<B>, gradient: MatrixMut<B>) -> Result<()> {
        let Self { recorder, reference } = self;
        let reference = reference.at(level, hidden.rows);
        let weights = recorder.token_weights.view();
        let values = recorder.values.view_mut();
        recorder.backend.run(ops::RepresentationDistance {
            hidden,
            reference,
            weights,
            values,
            d_hidden: Some(gradient),
        })?;
        recorder.record()
    }
}

/// Random mapping: every hidden state towards its token's random direction.
pub(super) struct RandomMapping<'a, B: Backend> {
    pub recorder: Recorder<'a, B>,
    /// [V, d].
    pub table: &'a Tensor<B>,
    /// [T, 1].
    pub ids: &'a Tensor<B>,
}

impl<B: Backend> HiddenGradient<B> for RandomMapping<'_, B> {
    fn add(&mut self, _level: usize, hidden: Matrix<B>, gradient: MatrixMut<B>) -> Result<()> {
        let Self { recorder, table, ids } = self;
        let weights = recorder.token_weights.view();
        let values = recorder.values.view_mut();
        recorder.backend.run(ops::RandomMapping {
            hidden,
            table: table.view(),
            ids: ids.view(),
            weights,
            values,
            d_hidden: Some(gradient),
        })?;
        recorder.record()
    }
}
