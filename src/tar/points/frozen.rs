//! At a frozen attack vector: θ + δ, where δ is what an attack changed some outer steps ago (Patcher, arXiv 2606.07970).
//!
//! One attack of many steps serves many outer steps, in which θ moves on and δ stays.

use super::{Displace, InnerStep, Visit, Visited};
use crate::error::Result;
use crate::model::{Model, Parameters};
use crate::objective::LossBatch;
use crate::ops::Backend;
use crate::optimizer::Shift;
use crate::tar::composition::{FrozenAttack, Share};
use crate::tar::trainers::Trainers;
use crate::tar::trajectory::Trajectory;
use crate::tar::{Settings, TrajectoryReport};

/// The way along a frozen attack vector.
pub(super) struct FrozenWay<B: Backend> {
    frozen: FrozenAttack,
    trainers: Trainers<B>,
    batch: Option<LossBatch<B>>,
    shift: Shift<B>,
    /// δ, on the host; none before the first attack: then the point is θ itself.
    vector: Option<Vec<f32>>,
}

impl<B: Backend> FrozenWay<B> {
    pub fn new(model: &Model<B>, frozen: FrozenAttack, settings: &Settings) -> Result<Self> {
        let trainers = Trainers::new(model, &frozen.simulation.adversaries, settings.memory)?;
        let shift = Shift::new(&model.backend, model.layout().len())?;
        Ok(Self { frozen, trainers, batch: None, shift, vector: None })
    }

    /// Whether outer step `outer` begins with an attack.
    fn is_due(&self, outer: u64) -> bool {
        outer.checked_sub(self.frozen.first).is_some_and(|since| since.is_multiple_of(self.frozen.refresh))
    }

    /// Attacks θ, keeps what that changed, and puts θ back.
    fn attack(&mut self, visit: &mut Visit<B>) -> Result<TrajectoryReport> {
        let FrozenAttack { simulation, refresh, first } = &self.frozen;
        let Visit { seed, outer, pool, ground, tick, .. } = visit;
        let index = (*outer - first) / refresh;
        let draw = match simulation.script.get(index as usize) {
            Some(scripted) => scripted.clone(),
            None => pool.draw(simulation, *seed, *outer, 0)?,
        };
        let adversary = &simulation.adversaries[draw.adversary];
        let inner_steps = simulation.length(adversary, *outer).inner_steps;
        let model = ground.models.evaluator.model().clone();
        let backend = &model.backend;
        let batch = match &mut self.batch {
            Some(batch) => batch,
            none => none.insert(LossBatch::with_room(&model, ground.models.evaluator.capacity())?),
        };
        let attack = adversary.attack(&draw, inner_steps)?;
        let trainer = self.trainers.of(adversary, &draw)?;
        let mut trajectory = Trajectory::begin(backend, attack, trainer, batch, (*seed, *outer))?;
        while !trajectory.is_over() {
            tick(InnerStep { task: 0, step: trajectory.steps_done(), of: inner_steps })?;
            trajectory.step(ground.models.evaluator, ground.models.weights, ground.streams)?;
        }
        let attacked = ground.models.weights.download(backend)?;
        ground.models.unattacked.fetch(backend, ground.models.weights)?;
        let mut vector = ground.models.weights.download(backend)?;
        vector.iter_mut().zip(attacked).for_each(|(start, end)| *start = end - *start);
        self.vector = Some(vector);
        Ok(TrajectoryReport {
            adversary: adversary.name.clone(),
            draw,
            attack_losses: trajectory.losses(backend)?,
            tr_losses: Vec::new(),
            weighted_tr_loss: 0.0,
        })
    }

    fn go(&mut self, backend: &B, weights: &mut Parameters<B>) -> Result<()> {
        match &self.vector {
            Some(vector) => self.shift.add_from_host(backend, weights, vector, 1.0),
            None => Ok(()),
        }
    }
}

impl<B: Backend> Displace<B> for FrozenWay<B> {
    fn visit(&mut self, mut visit: Visit<B>) -> Result<Visited> {
        let trajectory = if self.is_due(visit.outer) { Some(self.attack(&mut visit)?) } else { None };
        let Visit { terms, mut ground, .. } = visit;
        let backend = ground.models.evaluator.model().backend.clone();
        terms.begin(&mut ground, 1, None)?;
        self.go(&backend, ground.models.weights)?;
        terms.take(&mut ground, None, Share::WHOLE)?;
        Ok(Visited { trajectory, terms: terms.end(ground.models.evaluator)? })
    }

    fn kept(&self, _backend: &B, _model: &Model<B>) -> Result<Option<Vec<f32>>> {
        Ok(self.vector.clone())
    }

    fn restore(&mut self, _backend: &B, _model: &Model<B>, kept: &[f32]) -> Result<()> {
        self.vector = Some(kept.to_vec());
        Ok(())
    }
}
