//! At an adversary that goes on learning beside the weights: it starts from θ, takes one step of plain SGD in each outer step,
//! and starts again from θ after some of them (MUDMAN, arXiv 2506.12484 v4, section 4).
//!
//! Gradients are taken where its step of the same outer step starts.

use super::{Displace, Visit, Visited};
use crate::error::Result;
use crate::model::{GradientDestinations, Gradients, Model, Parameters, ParkedParameters, Subject};
use crate::objective::{LossPass, LossTape};
use crate::ops::Backend;
use crate::optimizer::Shift;
use crate::tar::composition::{Persistent, Share};

/// The way to the adversary.
pub(super) struct PersistentWay<B: Backend> {
    settings: Persistent,
    /// The adversary's weights; absent before the first outer step.
    adversary: Option<ParkedParameters<B>>,
    gradient: Gradients<B>,
    shift: Shift<B>,
}

impl<B: Backend> PersistentWay<B> {
    pub fn new(model: &Model<B>, settings: Persistent) -> Result<Self> {
        let backend = &model.backend;
        let gradient = Gradients::zeros(backend, "gradient of an adversary", model.layout())?;
        Ok(Self { settings, adversary: None, gradient, shift: Shift::new(backend, model.layout().len())? })
    }

    /// Puts the adversary in the place of θ; where it starts again, it is θ.
    fn enter(&mut self, backend: &B, outer: u64, weights: &mut Parameters<B>) -> Result<()> {
        match &mut self.adversary {
            Some(adversary) if !outer.is_multiple_of(self.settings.fork_every) => adversary.fetch(backend, weights),
            Some(adversary) => adversary.park(backend, weights),
            none => {
                *none = Some(ParkedParameters::of(backend, "adversary weights", weights)?);
                Ok(())
            }
        }
    }
}

impl<B: Backend> Displace<B> for PersistentWay<B> {
    fn kept(&self, backend: &B, model: &Model<B>) -> Result<Option<Vec<f32>>> {
        let Some(adversary) = &self.adversary else { return Ok(None) };
        let mut weights = Parameters::zeros(backend, "adversary weights", model.layout())?;
        adversary.fetch(backend, &mut weights)?;
        Ok(Some(weights.download(backend)?))
    }

    fn restore(&mut self, backend: &B, model: &Model<B>, kept: &[f32]) -> Result<()> {
        let weights = Parameters::from_host(backend, "adversary weights", model.layout(), kept)?;
        self.adversary = Some(ParkedParameters::of(backend, "adversary weights", &weights)?);
        Ok(())
    }

    fn visit(&mut self, visit: Visit<B>) -> Result<Visited> {
        let Visit { outer, trained, terms, mut ground, .. } = visit;
        let model = ground.models.evaluator.model().clone();
        let backend = &model.backend;
        terms.begin(&mut ground, 1, None)?;
        ground.batches.draw(&model, ground.streams, &self.settings.data)?;
        self.enter(backend, outer, ground.models.weights)?;
        terms.take(&mut ground, None, Share::WHOLE)?;
        self.gradient.clear(backend)?;
        let mut tape = LossTape::new(backend, 1)?;
        ground.models.evaluator.cross_entropy(LossPass {
            subject: Subject::plain(ground.models.weights),
            batch: ground.batches.get(&self.settings.data)?,
            scale: 1.0,
            destinations: Some(GradientDestinations::of_weights(&mut self.gradient)),
            loss: tape.slot(0),
        })?;
        // An adversary that is no number would stay one until it starts again.
        if self.gradient.norm_of(backend, trained)?.is_finite() {
            for place in trained {
                let gradient = self.gradient.part(place.clone());
                self.shift.add(backend, ground.models.weights, gradient, -self.settings.lr)?;
            }
            if let Some(adversary) = &mut self.adversary {
                adversary.park(backend, ground.models.weights)?;
            }
        }
        Ok(Visited { trajectory: None, terms: terms.end(ground.models.evaluator)? })
    }
}
