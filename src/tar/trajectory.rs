//! One simulated attack, step by step.

use super::Streams;
use crate::error::Result;
use crate::model::{Adapter, Parameters};
use crate::objective::{Evaluator, LossBatch, LossTape};
use crate::ops::Backend;
use crate::random::{Random, Stream};
use crate::training::{AnyTrainer, FineTune, FineTuneRun, StreamDraws, UnwatchedTrainer, Work};

/// What a trajectory reports.
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct TrajectoryReport {
    /// Name of the adversary.
    pub adversary: String,
    /// The draw.
    pub draw: super::Draw,
    /// The attack's loss at each inner step, before it.
    pub attack_losses: Vec<f64>,
    /// The loss of the first term at each point where its gradient was taken: with TAR the tamper-resistance loss.
    pub tr_losses: Vec<f64>,
    /// Σ weight · loss of the terms.
    pub weighted_tr_loss: f64,
}

/// A simulated attack under way. Nothing waits for the device before [`Trajectory::losses`].
pub(super) struct Trajectory<'a, B: Backend> {
    run: FineTuneRun<String>,
    attacker: UnwatchedTrainer<'a, B>,
    batch: &'a mut LossBatch<B>,
    /// The streams that it trains on, and the sequences of its batches, where they are not the streams' own.
    names: Vec<String>,
    batch_size: Option<usize>,
}

impl<'a, B: Backend> Trajectory<'a, B> {
    /// `attack` before its first step, with a fresh optimizer, and fresh factors of LoRA, drawn by (`seed`, `index`): it is
    /// trajectory number `index` of the run.
    pub fn begin(
        backend: &B,
        attack: FineTune<String>,
        trainer: &'a mut AnyTrainer<B>,
        batch: &'a mut LossBatch<B>,
        (seed, index): (u64, u64),
    ) -> Result<Self> {
        trainer.restart(backend, attack.optimizer.clone(), seed, index)?;
        let names = attack.source.streams().into_iter().cloned().collect();
        let draws = StreamDraws::InSequence(Random::new(seed, Stream::Adversary, index, 0x80_0000));
        let tape = LossTape::new(backend, attack.steps as usize)?;
        let batch_size = attack.batch;
        let attacker = UnwatchedTrainer { trainer, tape };
        Ok(Self { run: FineTuneRun::new(attack, draws), attacker, batch, names, batch_size })
    }

    /// Whether no step is left.
    pub fn is_over(&self) -> bool {
        self.run.is_over()
    }

    /// Steps done.
    pub fn steps_done(&self) -> u64 {
        self.run.steps_done()
    }

    /// Takes the next step on the weights, or on the factors of LoRA.
    pub fn step(
        &mut self,
        evaluator: &mut Evaluator<B>,
        weights: &mut Parameters<B>,
        streams: &mut Streams,
    ) -> Result<()> {
        let work = Work { evaluator, weights, batch: self.batch };
        let (names, size) = (&self.names, self.batch_size);
        self.run.step(&mut self.attacker, work, |step, model, batch| {
            streams.refill_with(model, &names[step.stream], size, batch)
        })
    }

    /// The factors on top of the weights, where it trains LoRA.
    pub fn adapter(&self) -> Option<&Adapter<B>> {
        self.attacker.trainer.adapter()
    }

    /// The loss of each step, before it. Waits for the device.
    pub fn losses(&self, backend: &B) -> Result<Vec<f64>> {
        self.attacker.tape.read(backend)
    }
}
