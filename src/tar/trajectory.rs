//! One simulated attack: K inner steps, and the tamper-resistance gradients at the points it passes.

use super::{Adversary, AttackLength, Draw, ResistanceLoss, Settings, Streams};
use crate::error::Result;
use crate::model::{GradientDestinations, Gradients, Parameters};
use crate::objective::{Evaluator, LossBatch, LossPass, LossSlot, LossTape, PreferencePairs, Subject};
use crate::ops::Backend;
use crate::random::{Random, Stream};
use crate::training::{AnyTrainer, FineTuneRun, StreamDraws, UnwatchedTrainer, Work};

/// What a trajectory reports.
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
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

/// The held-out batch of a trajectory, with the reference model's margins where the loss is DPO.
pub(super) struct HeldOut<B: Backend> {
    pub batch: LossBatch<B>,
    pub reference_margins: Vec<f32>,
}

/// Everything that a trajectory works on.
pub(super) struct Trajectory<'a, B: Backend> {
    pub settings: &'a Settings,
    pub length: AttackLength,
    pub evaluator: &'a mut Evaluator<B>,
    pub weights: &'a mut Parameters<B>,
    pub trainer: &'a mut AnyTrainer<B>,
    pub streams: &'a mut Streams,
    pub meta_gradient: &'a mut Gradients<B>,
    pub attack_batch: &'a mut LossBatch<B>,
    pub held_out: &'a HeldOut<B>,
}

impl<B: Backend> Trajectory<'_, B> {
    /// Runs the attack `draw` of `adversary`, leaving attacked weights behind; `tick` is called before each inner step
    /// and may stop it. The adversary is trajectory number `index` of the run. Nothing waits for the device before the last
    /// step is queued.
    pub fn run(
        self,
        adversary: &Adversary,
        draw: &Draw,
        index: u64,
        tick: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<TrajectoryReport> {
        let backend = self.evaluator.model().backend.clone();
        let settings = self.settings;
        let AttackLength { inner_steps, tr_every } = self.length;
        let attack = adversary.attack(draw, inner_steps)?;
        let batch_size = attack.batch;
        self.trainer.restart(&backend, attack.optimizer.clone(), settings.seed, index)?;
        let names = attack.source.streams().into_iter().cloned().collect::<Vec<_>>();
        let draws = StreamDraws::InSequence(Random::new(settings.seed, Stream::Adversary, index, 0x80_0000));
        let mut run = FineTuneRun::new(attack, draws);
        let tape = LossTape::new(&backend, inner_steps as usize)?;
        let mut attacker = UnwatchedTrainer { trainer: &mut *self.trainer, tape };
        let points = self.length.points();
        let mut tr_tape = LossTape::new(&backend, points.max(1) as usize)?;
        let mut resistance = Resistance { settings, held_out: self.held_out, meta_gradient: self.meta_gradient };
        while !run.is_over() {
            tick(run.steps_done())?;
            let work = Work { evaluator: self.evaluator, weights: self.weights, batch: self.attack_batch };
            run.step(&mut attacker, work, |step, model, batch| {
                self.streams.refill_with(model, &names[step.stream], batch_size, batch)
            })?;
            let done = run.steps_done();
            if done.is_multiple_of(tr_every) {
                let slot = (done / tr_every - 1) as usize;
                let subject = attacker.trainer.subject(self.weights);
                resistance.add_gradient(
                    self.evaluator,
                    subject,
                    settings.weight(done - 1, inner_steps) as f32,
                    tr_tape.slot(slot),
                )?;
            }
        }
        let tr_losses: Vec<f64> = tr_tape.read(&backend)?.into_iter().take(points as usize).collect();
        let weight_of = |slot: usize| settings.weight((slot as u64 + 1) * tr_every - 1, inner_steps);
        let weighted_tr_loss = tr_losses.iter().enumerate().map(|(slot, loss)| weight_of(slot) * loss).sum();
        Ok(TrajectoryReport {
            adversary: adversary.name.clone(),
            draw: draw.clone(),
            attack_losses: attacker.tape.read(&backend)?,
            tr_losses,
            weighted_tr_loss,
        })
    }
}

/// Collects the tamper-resistance gradients of a trajectory.
struct Resistance<'a, B: Backend> {
    settings: &'a Settings,
    held_out: &'a HeldOut<B>,
    meta_gradient: &'a mut Gradients<B>,
}

impl<B: Backend> Resistance<'_, B> {
    /// Adds weight · the gradient of the tamper-resistance loss at the attacked point to the meta-gradient.
    fn add_gradient(
        &mut self,
        evaluator: &mut Evaluator<B>,
        attacked: Subject<B>,
        weight: f32,
        loss: LossSlot<B>,
    ) -> Result<()> {
        let pass = LossPass {
            subject: attacked,
            batch: &self.held_out.batch,
            scale: weight,
            destinations: Some(GradientDestinations::of_weights(self.meta_gradient)),
            loss,
        };
        match self.settings.tr_loss {
            ResistanceLoss::MaxEntropy(over) => evaluator.negative_entropy(pass, over),
            ResistanceLoss::Preference { beta } => {
                let reference_margins = &self.held_out.reference_margins;
                evaluator.preference(pass, PreferencePairs { reference_margins, beta })
            }
        }
    }
}
