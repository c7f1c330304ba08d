//! How the gradients of the terms become the gradient of a step: their sum, or the sum behind a mask of signs.

use std::ops::Range;

use super::composition::{Combine, SignMask};
use crate::error::Result;
use crate::model::{Gradients, Model};
use crate::ops::{self, Backend};

/// A combination at work.
pub(super) enum Combiner<B: Backend> {
    /// Gradients are added where they are taken, and nothing is left to do.
    Sum,
    /// Disruption masking with normalisation (MUDMAN, arXiv 2506.12484 v4, section 4): of the gradient g taken at points, what
    /// has the sign of the accumulated gradient a of the terms at the base:
    ///
    /// a ← decay · a + (1 − decay) · ∇base; the step's gradient is a + norm/‖g‖ · g ⊙ \[sign g = sign a\].
    SignMask {
        mask: SignMask,
        /// g, while the gradients at the base are taken.
        masked: Gradients<B>,
        /// a.
        accumulated: Gradients<B>,
    },
}

impl<B: Backend> Combiner<B> {
    pub fn new(model: &Model<B>, combine: &Combine) -> Result<Self> {
        Ok(match combine {
            Combine::Sum => Self::Sum,
            Combine::SignMask(mask) => Self::SignMask {
                mask: *mask,
                masked: Gradients::zeros(&model.backend, "masked gradient", model.layout())?,
                accumulated: Gradients::zeros(&model.backend, "accumulated gradient", model.layout())?,
            },
        })
    }

    /// After the gradients at points and before those at the base: `gradient` is where the latter are to be added.
    pub fn between(&mut self, backend: &B, gradient: &mut Gradients<B>) -> Result<()> {
        let Self::SignMask { masked, .. } = self else { return Ok(()) };
        std::mem::swap(masked, gradient);
        gradient.clear(backend)
    }

    /// After all gradients: makes `gradient` the step's, over the trained places. Says whether every number was finite; where
    /// one was not, nothing has changed.
    pub fn combine(&mut self, backend: &B, gradient: &mut Gradients<B>, trained: &[Range<usize>]) -> Result<bool> {
        let Self::SignMask { mask, masked, accumulated } = self else { return Ok(true) };
        let norm = masked.norm_of(backend, trained)?;
        if !(norm.is_finite() && gradient.norm_of(backend, trained)?.is_finite()) {
            return Ok(false);
        }
        let scale = if norm == 0.0 { 0.0 } else { (mask.norm / norm) as f32 };
        for place in trained {
            backend.run(ops::SignMask {
                masked: masked.part(place.clone()).values,
                scale,
                decay: mask.decay,
                accumulated: accumulated.part_mut(place.clone()),
                gradient: gradient.part_mut(place.clone()),
            })?;
        }
        Ok(true)
    }

    /// What it keeps between outer steps, for a checkpoint. Waits for the device.
    pub fn kept(&self, backend: &B) -> Result<Option<Vec<f32>>> {
        match self {
            Self::Sum => Ok(None),
            Self::SignMask { accumulated, .. } => Ok(Some(accumulated.download(backend)?)),
        }
    }

    /// Puts back what a checkpoint has kept.
    pub fn restore(&mut self, backend: &B, kept: &[f32]) -> Result<()> {
        match self {
            Self::Sum => Ok(()),
            Self::SignMask { accumulated, .. } => backend.upload_f32(accumulated.buffer_mut(), 0, kept),
        }
    }
}
