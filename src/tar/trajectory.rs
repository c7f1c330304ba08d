//! One simulated attack: K inner steps, and the tamper-resistance gradients at the points it passes.

use super::{Adversary, AdversarySource, Draw, Streams};
use crate::error::{Error, Result};
use crate::model::{GradientDestinations, Gradients, Parameters};
use crate::objective::{EntropyOver, Evaluator, LossBatch, LossPass, LossSlot, LossTape, PreferencePairs};
use crate::ops::Backend;
use crate::random::{Random, Stream, weighted};
use crate::training::Trainer;

/// The tamper-resistance loss, with what it needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TrResistance {
    /// Minus the entropy (knowledge).
    MaxEntropy(EntropyOver),
    /// DPO with this β (refusal).
    Preference {
        /// β.
        beta: f32,
    },
}

/// What a trajectory reports.
#[derive(Clone, Debug, serde::Serialize)]
pub struct TrajectoryReport {
    /// Name of the adversary.
    pub adversary: String,
    /// The draw.
    pub draw: Draw,
    /// The attack's loss at each inner step, before it.
    pub attack_losses: Vec<f64>,
    /// The tamper-resistance loss at each point where its gradient was taken.
    pub tr_losses: Vec<f64>,
    /// Σ weight · tamper-resistance loss.
    pub weighted_tr_loss: f64,
}

/// The part of the settings that a trajectory follows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub inner_steps: u64,
    pub tr_every: u64,
    pub tr_scale: f64,
    pub schedule_lambda: Option<f64>,
    pub tasks_per_step: u64,
    pub loss: TrResistance,
    pub seed: u64,
}

impl Plan {
    /// Weight of the TR gradient after inner step `k` (from 0): scale/tasks · exp(λ(k − (K−1))), or scale/tasks/K.
    pub fn weight(&self, k: u64) -> f64 {
        let schedule = match self.schedule_lambda {
            Some(lambda) => (lambda * (k as f64 - (self.inner_steps as f64 - 1.0))).exp(),
            None => 1.0 / self.inner_steps as f64,
        };
        self.tr_scale / self.tasks_per_step as f64 * schedule
    }
}

/// The held-out batch of a trajectory, with the reference model's margins where the loss is DPO.
pub(super) struct HeldOut<B: Backend> {
    pub batch: LossBatch<B>,
    pub reference_margins: Vec<f32>,
}

/// Everything that a trajectory works on.
pub(super) struct Trajectory<'a, B: Backend> {
    pub plan: Plan,
    pub evaluator: &'a mut Evaluator<B>,
    pub weights: &'a mut Parameters<B>,
    pub trainer: &'a mut Trainer<B>,
    pub streams: &'a mut Streams,
    pub meta_gradient: &'a mut Gradients<B>,
    pub attack_batch: &'a mut LossBatch<B>,
    pub held_out: &'a HeldOut<B>,
}

impl<B: Backend> Trajectory<'_, B> {
    /// Runs the attack `draw` of `adversary`, leaving attacked weights behind; `tick` is called before each inner step
    /// and may stop it. The adversary is trajectory number `index` of the run.
    pub fn run(
        mut self,
        adversary: &Adversary,
        draw: &Draw,
        index: u64,
        tick: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<TrajectoryReport> {
        let backend = self.evaluator.model().backend.clone();
        let plan = self.plan;
        let mut optimizer = adversary.optimizer.clone();
        optimizer.lr = draw.lr;
        self.trainer.restart(&backend, optimizer, plan.seed, index)?;
        let mut attack_tape = LossTape::new(&backend, plan.inner_steps as usize)?;
        let points = plan.inner_steps / plan.tr_every;
        let mut tr_tape = LossTape::new(&backend, points.max(1) as usize)?;
        let mut random = Random::new(plan.seed, Stream::Adversary, index, 0x80_0000);
        for k in 0..plan.inner_steps {
            tick(k)?;
            let name = source_at(&adversary.source, draw.switch_at, k, &mut random);
            self.streams.refill(self.evaluator.model(), name, self.attack_batch)?;
            let loss = attack_tape.slot(k as usize);
            self.trainer.cross_entropy_step(self.evaluator, self.weights, self.attack_batch, loss)?;
            if (k + 1) % plan.tr_every == 0 {
                let slot = ((k + 1) / plan.tr_every - 1) as usize;
                self.resist(plan.weight(k) as f32, tr_tape.slot(slot))?;
            }
        }
        let tr_losses: Vec<f64> = tr_tape.read(&backend)?.into_iter().take(points as usize).collect();
        let weight_of = |slot: usize| plan.weight((slot as u64 + 1) * plan.tr_every - 1);
        let weighted_tr_loss = tr_losses.iter().enumerate().map(|(slot, loss)| weight_of(slot) * loss).sum();
        Ok(TrajectoryReport {
            adversary: adversary.name.clone(),
            draw: draw.clone(),
            attack_losses: attack_tape.read(&backend)?,
            tr_losses,
            weighted_tr_loss,
        })
    }

    /// Adds weight · the gradient of the tamper-resistance loss at the attacked point to the meta-gradient.
    fn resist(&mut self, weight: f32, loss: LossSlot<B>) -> Result<()> {
        let pass = LossPass {
            subject: self.trainer.subject(self.weights),
            batch: &self.held_out.batch,
            scale: weight,
            destinations: Some(GradientDestinations::of_weights(self.meta_gradient)),
            loss,
        };
        match self.plan.loss {
            TrResistance::MaxEntropy(over) => self.evaluator.negative_entropy(pass, over),
            TrResistance::Preference { beta } => {
                let reference_margins = &self.held_out.reference_margins;
                self.evaluator.preference(pass, PreferencePairs { reference_margins, beta })
            }
        }
    }
}

/// The stream that inner step `k` trains on.
fn source_at<'a>(source: &'a AdversarySource, switch_at: Option<u64>, k: u64, random: &mut Random) -> &'a str {
    match source {
        AdversarySource::One(name) => name,
        AdversarySource::Switch { streams, .. } => &streams[usize::from(switch_at.is_some_and(|at| k >= at))],
        AdversarySource::Mixture(parts) => {
            let index = weighted(random, parts.iter().map(|(_, weight)| *weight)).unwrap_or(0);
            parts.get(index).map_or("", |(name, _)| name)
        }
    }
}

/// The error for a stream that the settings name and the data lack.
pub(super) fn unknown_stream(name: &str) -> Error {
    Error::config(format!("data.{name}"), "there is no such data stream", "add the table or mend the name")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_sum_to_the_published_total() {
        let plan = Plan {
            inner_steps: 64,
            tr_every: 4,
            tr_scale: 4.0,
            schedule_lambda: Some(0.0625),
            tasks_per_step: 1,
            loss: TrResistance::MaxEntropy(EntropyOver::Valid),
            seed: 0,
        };
        let total: f64 = (0..64).filter(|k| (k + 1) % 4 == 0).map(|k| plan.weight(k)).sum();
        // 4 · 4.4380: the effective weight of the authors' configuration, without a factor 1/K.
        assert!((total - 17.752).abs() < 1e-3, "{total}");
        assert_eq!(Plan { schedule_lambda: None, ..plan }.weight(3), 4.0 / 64.0);
    }

    #[test]
    fn a_switching_adversary_changes_streams_at_its_switch() {
        let source = AdversarySource::Switch { streams: ["retain".into(), "forget".into()], beta: [6.0, 3.0] };
        let mut random = Random::new(1, Stream::Adversary, 0, 0);
        let names: Vec<&str> = (0..4).map(|k| source_at(&source, Some(2), k, &mut random)).collect();
        assert_eq!(names, ["retain", "retain", "forget", "forget"]);
    }
}
