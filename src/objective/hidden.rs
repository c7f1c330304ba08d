//! Losses on hidden states, as visitors of the backward pass.

use super::LossSlot;
use super::hidden_term::HiddenKind;
use super::tape::WeightedLosses;
use crate::error::Result;
use crate::model::{HiddenGradient, HiddenStates};
use crate::ops::{self, Backend, DistanceKind, Matrix, MatrixMut, Tensor};

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
            kind: DistanceKind::Euclidean,
            hidden,
            reference,
            weights,
            values,
            d_hidden: Some(gradient),
        })?;
        recorder.record()
    }
}

/// The loss of a [`HiddenTerm`](super::HiddenTerm) at its depths.
pub(super) struct ChosenStates<'a, B: Backend> {
    pub recorder: Recorder<'a, B>,
    pub kind: HiddenKind,
    /// The depths, in ascending order.
    pub levels: &'a [usize],
    pub targets: Targets<'a, B>,
    /// What a triplet needs besides.
    pub mean: Option<MeanState<B>>,
}

/// What states are compared with.
pub(super) enum Targets<'a, B: Backend> {
    /// The reference model's states.
    States(&'a HiddenStates<B>),
    /// One state for all tokens and depths, [1, d].
    One(&'a Tensor<B>),
}

/// The mean of the reference's states over the positions of a batch.
pub(super) struct MeanState<B: Backend> {
    /// The weight of each position, [1, T].
    pub positions: Tensor<B>,
    /// [1, d].
    pub state: Tensor<B>,
}

impl<B: Backend> HiddenGradient<B> for ChosenStates<'_, B> {
    fn add(&mut self, level: usize, hidden: Matrix<B>, gradient: MatrixMut<B>) -> Result<()> {
        if self.levels.binary_search(&level).is_err() {
            return Ok(());
        }
        let backend = self.recorder.backend;
        let reference = match self.targets {
            Targets::States(states) => states.at(level, hidden.rows),
            Targets::One(state) => state.view(),
        };
        if let Some(MeanState { positions, state }) = &mut self.mean {
            let dx = state.view_mut();
            backend.run(ops::LinearBackwardInput { dy: positions.view(), w: reference, dx, accumulate: false })?;
        }
        let weights = self.recorder.token_weights.view();
        let values = self.recorder.values.view_mut();
        let d_hidden = Some(gradient);
        match self.kind {
            HiddenKind::Distance | HiddenKind::SquaredDistance | HiddenKind::ControlVector { .. } => {
                let norm = matches!(self.kind, HiddenKind::Distance);
                let kind = if norm { DistanceKind::Euclidean } else { DistanceKind::Squared };
                backend.run(ops::RepresentationDistance { kind, hidden, reference, weights, values, d_hidden })?;
            }
            HiddenKind::Cosine | HiddenKind::Triplet { .. } => {
                let margin = if let HiddenKind::Triplet { margin } = self.kind { margin } else { 0.0 };
                let toward = self.mean.as_ref().map(|mean| mean.state.view());
                let away = reference;
                backend.run(ops::CosineMargin { hidden, away, toward, margin, weights, values, d_hidden })?;
            }
        }
        self.recorder.record()
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
