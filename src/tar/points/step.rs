//! After one normalised step along the gradient of a loss: θ ∓ size · g/‖g‖.
//!
//! Down the loss of harmful data it is an attack of one step (Booster, arXiv 2409.01586, section 3; CTRAP, arXiv
//! 2505.16559); up the loss that is to be flat it is sharpness-aware minimisation (arXiv 2010.01412, equation 2).

use super::{Displace, Visit, Visited};
use crate::error::Result;
use crate::model::{GradientDestinations, Gradients, Model, Subject};
use crate::objective::{LossPass, LossTape, Prepared};
use crate::ops::Backend;
use crate::optimizer::Shift;
use crate::tar::composition::{Direction, Share, Step};

/// The way of one step.
pub(super) struct StepWay<B: Backend> {
    step: Step,
    gradient: Gradients<B>,
    shift: Shift<B>,
}

impl<B: Backend> StepWay<B> {
    pub fn new(model: &Model<B>, step: Step) -> Result<Self> {
        let backend = &model.backend;
        let gradient = Gradients::zeros(backend, "gradient of a step", model.layout())?;
        Ok(Self { step, gradient, shift: Shift::new(backend, model.layout().len())? })
    }
}

impl<B: Backend> Displace<B> for StepWay<B> {
    fn visit(&mut self, visit: Visit<B>) -> Result<Visited> {
        let Visit { trained, terms, mut ground, .. } = visit;
        let Step { data, loss, size, direction } = &self.step;
        let model = ground.models.evaluator.model().clone();
        let backend = &model.backend;
        terms.begin(&mut ground, 1, None)?;
        ground.batches.draw(&model, ground.streams, data)?;
        let batch = ground.batches.get(data)?;
        let prepared = if loss.needs_reference() {
            ground.models.with_reference(|evaluator, reference| loss.prepare(evaluator, reference, batch))?
        } else {
            Prepared::default()
        };
        self.gradient.clear(backend)?;
        let mut tape = LossTape::new(backend, loss.slots())?;
        let pass = LossPass {
            subject: Subject::plain(ground.models.weights),
            batch,
            scale: 1.0,
            destinations: Some(GradientDestinations::of_weights(&mut self.gradient)),
            loss: tape.slot(0),
        };
        loss.evaluate(ground.models.evaluator, pass, &prepared)?;
        prepared.give_back(ground.models.evaluator);
        let norm = self.gradient.norm_of(backend, trained)?;
        if norm != 0.0 {
            let length = if *direction == Direction::Down { -size / norm } else { size / norm };
            for range in trained {
                self.shift.add(backend, ground.models.weights, self.gradient.part(range.clone()), length)?;
            }
        }
        terms.take(&mut ground, None, Share::WHOLE)?;
        Ok(Visited { trajectory: None, terms: terms.end(ground.models.evaluator)? })
    }
}
