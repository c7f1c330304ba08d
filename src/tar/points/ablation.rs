//! With a direction ablated: θ without the direction of the residual stream that tells restricted prompts from harmless ones
//! (Arditi et al. 2024, arXiv 2406.11717). Training there is training against abliteration (arXiv 2605.26526).

use super::{Displace, Visit, Visited};
use crate::edits::{DirectionOptions, Directions, Side, States, project_out};
use crate::error::{Error, Result};
use crate::model::{Batch, Model};
use crate::ops::Backend;
use crate::tar::Streams;
use crate::tar::composition::{Ablation, Share};

const RESTRICTED: Side = Side { key: "defence.point.ablation.restricted", name: "restricted" };
const HARMLESS: Side = Side { key: "defence.point.ablation.harmless", name: "harmless" };

/// The way of a removed direction.
pub(super) struct AblationWay {
    ablation: Ablation,
    /// The direction that was found last.
    direction: Option<Vec<f32>>,
}

impl AblationWay {
    pub fn new(ablation: Ablation) -> Self {
        Self { ablation, direction: None }
    }

    /// The direction between the means of the next prompts of both streams, at θ.
    fn find<B: Backend>(&self, visit: &mut Visit<B>) -> Result<Vec<f32>> {
        let Ablation { restricted, harmless, depth, batches, .. } = &self.ablation;
        let ground = &mut visit.ground;
        let restricted = next_batches(ground.streams, restricted, *batches)?;
        let harmless = next_batches(ground.streams, harmless, *batches)?;
        let models = &mut ground.models;
        let restricted = States::read(models.evaluator, models.weights, &restricted, RESTRICTED, false)?;
        let harmless = States::read(models.evaluator, models.weights, &harmless, HARMLESS, false)?;
        let options = DirectionOptions { count: 1, orthogonalise: false };
        let layers = models.evaluator.model().config.num_hidden_layers;
        let level = ((depth * layers as f64).round() as usize).clamp(1, layers);
        Directions::find(&restricted, &harmless, options).at(level).first().cloned().ok_or_else(|| {
            let problem = "the hidden states of both streams have the same mean";
            Error::config(RESTRICTED.key, problem, "give it prompts that differ from the harmless ones")
        })
    }
}

fn next_batches(streams: &mut Streams, name: &str, count: u64) -> Result<Vec<Batch>> {
    (0..count).map(|_| streams.next_on_host(name)).collect()
}

impl<B: Backend> Displace<B> for AblationWay {
    fn visit(&mut self, mut visit: Visit<B>) -> Result<Visited> {
        if visit.outer.is_multiple_of(self.ablation.refresh) || self.direction.is_none() {
            self.direction = Some(self.find(&mut visit)?);
        }
        let Visit { terms, mut ground, .. } = visit;
        let model = ground.models.evaluator.model().clone();
        terms.begin(&mut ground, 1, None)?;
        if let Some(direction) = &self.direction {
            let mut weights = ground.models.weights.download(&model.backend)?;
            project_out(&model, &mut weights, direction);
            ground.models.weights.upload(&model.backend, &weights)?;
        }
        terms.take(&mut ground, None, Share::WHOLE)?;
        Ok(Visited { trajectory: None, terms: terms.end(ground.models.evaluator)? })
    }

    fn kept(&self, _backend: &B, _model: &Model<B>) -> Result<Option<Vec<f32>>> {
        Ok(self.direction.clone())
    }

    fn restore(&mut self, _backend: &B, _model: &Model<B>, kept: &[f32]) -> Result<()> {
        self.direction = Some(kept.to_vec());
        Ok(())
    }
}
