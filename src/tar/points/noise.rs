//! At random noise around θ: θ + ε with independent Gaussian ε, in each visit anew (randomised smoothing).

use super::{Displace, Visit, Visited};
use crate::error::Result;
use crate::ops::Backend;
use crate::random::{Random, Stream};
use crate::tar::composition::{Noise, Share};
use crate::training::{NoiseDraw, add_noise};

/// The way of noise.
pub(super) struct NoiseWay {
    noise: Noise,
}

impl NoiseWay {
    pub fn new(noise: Noise) -> Self {
        Self { noise }
    }
}

impl<B: Backend> Displace<B> for NoiseWay {
    fn visits(&self) -> u64 {
        self.noise.tasks
    }

    fn visit(&mut self, visit: Visit<B>) -> Result<Visited> {
        let Visit { seed, outer, task, trained, terms, mut ground, .. } = visit;
        let Noise { relative, tasks } = self.noise;
        let model = ground.models.evaluator.model().clone();
        terms.begin(&mut ground, 1, None)?;
        let of_tensor = |index: usize| Random::new(seed, Stream::Displacement, outer, (task << 16) | index as u64);
        let draw = NoiseDraw { relative, places: trained, of_tensor: &of_tensor };
        add_noise(&model, ground.models.weights, draw)?;
        terms.take(&mut ground, None, Share { tasks, ..Share::WHOLE })?;
        Ok(Visited { trajectory: None, terms: terms.end(ground.models.evaluator)? })
    }
}
