//! After the steps of a simulated attack: K steps of fine-tuning from θ, and gradients at the points that it passes (TAR,
//! arXiv 2408.00761, algorithm 1).

use super::{Displace, InnerStep, Visit, Visited};
use crate::error::Result;
use crate::model::{Adapter, Model};
use crate::objective::LossBatch;
use crate::ops::Backend;
use crate::tar::composition::Attack;
use crate::tar::trainers::Trainers;
use crate::tar::trajectory::Trajectory;
use crate::tar::{AttackLength, Settings, TrajectoryReport};

/// The way of simulated attacks.
pub(super) struct AttackWay<B: Backend> {
    attack: Attack,
    trainers: Trainers<B>,
    /// The batch of the present inner step; memory for it from the first attack on.
    batch: Option<LossBatch<B>>,
}

impl<B: Backend> AttackWay<B> {
    pub fn new(model: &Model<B>, attack: Attack, settings: &Settings) -> Result<Self> {
        let trainers = Trainers::new(model, &attack.simulation.adversaries, settings.memory)?;
        Ok(Self { attack, trainers, batch: None })
    }
}

impl<B: Backend> Displace<B> for AttackWay<B> {
    fn visits(&self) -> u64 {
        self.attack.tasks
    }

    fn holds_out(&self) -> bool {
        true
    }

    fn adapters(&self) -> Vec<&Adapter<B>> {
        self.trainers.adapters()
    }

    fn visit(&mut self, visit: Visit<B>) -> Result<Visited> {
        let Visit { seed, outer, task, pool, terms, mut ground, tick, .. } = visit;
        let Attack { simulation, tasks, .. } = &self.attack;
        let index = outer * tasks + task;
        let draw = match simulation.script.get(index as usize) {
            Some(scripted) => scripted.clone(),
            None => pool.draw(simulation, seed, outer, task)?,
        };
        let adversary = &simulation.adversaries[draw.adversary];
        let length = simulation.length(adversary, outer);
        let AttackLength { inner_steps, tr_every } = length;
        let model = ground.models.evaluator.model().clone();
        terms.begin(&mut ground, length.points() as usize, adversary.tr_data.as_deref())?;
        let batch = match &mut self.batch {
            Some(batch) => batch,
            none => none.insert(LossBatch::with_room(&model, ground.models.evaluator.capacity())?),
        };
        let trainer = self.trainers.of(adversary, &draw)?;
        let attack = adversary.attack(&draw, inner_steps)?;
        let mut trajectory = Trajectory::begin(&model.backend, attack, trainer, batch, (seed, index))?;
        while !trajectory.is_over() {
            tick(InnerStep { task, step: trajectory.steps_done(), of: inner_steps })?;
            trajectory.step(ground.models.evaluator, ground.models.weights, ground.streams)?;
            let done = trajectory.steps_done();
            if done.is_multiple_of(tr_every) {
                terms.take(&mut ground, trajectory.adapter(), self.attack.share(done - 1, inner_steps))?;
            }
        }
        let found = terms.end(ground.models.evaluator)?;
        let report = TrajectoryReport {
            adversary: adversary.name.clone(),
            draw,
            attack_losses: trajectory.losses(&model.backend)?,
            tr_losses: found.first().map(|term| term.losses.clone()).unwrap_or_default(),
            weighted_tr_loss: found.iter().map(|term| term.weighted).sum(),
        };
        Ok(Visited { trajectory: Some(report), terms: found })
    }
}
