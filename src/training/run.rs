//! The loop of every fine-tuning run.

use super::{FineTune, Learner, StreamDraws};
use crate::error::Result;
use crate::model::{Model, Parameters};
use crate::objective::{Evaluator, LossBatch};
use crate::ops::Backend;

/// A step of a fine-tuning run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Its number, from 0.
    pub index: u64,
    /// The number of the stream that it trains on, in [`super::Source::streams`].
    pub stream: usize,
    /// The factor on its gradient: −1 climbs the loss.
    pub scale: f32,
}

/// What a step works on.
pub struct Work<'a, B: Backend> {
    /// The model with the memory to run it.
    pub evaluator: &'a mut Evaluator<B>,
    /// The model's weights.
    pub weights: &'a mut Parameters<B>,
    /// The memory of batches.
    pub batch: &'a mut LossBatch<B>,
}

/// A fine-tuning run and how far it is.
///
/// Its user calls [`FineTuneRun::step`] until the run is over. Between the steps there is time to measure, to save a
/// checkpoint, to take a tamper-resistance gradient, or to stop.
#[derive(Clone, Debug)]
pub struct FineTuneRun<S> {
    fine_tune: FineTune<S>,
    draws: StreamDraws,
    steps_done: u64,
}

impl<S> FineTuneRun<S> {
    /// The run of `fine_tune`, before its first step.
    pub fn new(fine_tune: FineTune<S>, draws: StreamDraws) -> Self {
        Self { fine_tune, draws, steps_done: 0 }
    }

    /// Goes on after `steps_done` steps. Draws in sequence cannot go on.
    pub fn resume(&mut self, steps_done: u64) {
        self.steps_done = steps_done;
    }

    /// What it does.
    pub fn fine_tune(&self) -> &FineTune<S> {
        &self.fine_tune
    }

    /// Steps done.
    pub fn steps_done(&self) -> u64 {
        self.steps_done
    }

    /// Whether no step is left.
    pub fn is_over(&self) -> bool {
        self.steps_done >= self.fine_tune.steps
    }

    /// Takes the next step: `refill` puts the next batch of the step's stream into the memory of batches, and `learner` learns
    /// from it.
    pub fn step<B: Backend, L: Learner<B>>(
        &mut self,
        learner: &mut L,
        work: Work<B>,
        refill: impl FnOnce(&Step, &Model<B>, &mut LossBatch<B>) -> Result<()>,
    ) -> Result<L::Report> {
        let index = self.steps_done;
        let stream = self.fine_tune.source.stream_at(index, &mut self.draws)?;
        let step = Step { index, stream, scale: self.fine_tune.scale_at(index) };
        if self.fine_tune.restarts_at(index) {
            learner.restart_optimizer(&work.evaluator.model().backend, self.fine_tune.optimizer_at(index))?;
        }
        refill(&step, work.evaluator.model(), work.batch)?;
        let report = learner.learn(&step, work)?;
        self.steps_done += 1;
        Ok(report)
    }
}
