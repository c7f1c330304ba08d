//! At rounded weights: θ with its projections rounded to a few bits, as those do it who run the model on small machines. The
//! gradient is taken there and applied to θ, as if rounding were the identity (the straight-through estimator, arXiv
//! 1308.3432).

use super::{Displace, Visit, Visited};
use crate::edits::Quantization;
use crate::error::Result;
use crate::ops::Backend;
use crate::tar::composition::Share;

/// The way of rounding.
pub(super) struct RoundingWay {
    rounding: Quantization,
}

impl RoundingWay {
    pub fn new(rounding: Quantization) -> Self {
        Self { rounding }
    }
}

impl<B: Backend> Displace<B> for RoundingWay {
    fn visit(&mut self, visit: Visit<B>) -> Result<Visited> {
        let Visit { terms, mut ground, .. } = visit;
        let model = ground.models.evaluator.model().clone();
        terms.begin(&mut ground, 1, None)?;
        let mut weights = ground.models.weights.download(&model.backend)?;
        self.rounding.round(&model, &mut weights);
        ground.models.weights.upload(&model.backend, &weights)?;
        terms.take(&mut ground, None, Share::WHOLE)?;
        Ok(Visited { trajectory: None, terms: terms.end(ground.models.evaluator)? })
    }
}
