//! The trainers of a run's adversaries, made once.

use super::{Adversary, Draw};
use crate::error::{Error, Result};
use crate::model::{Adapter, Model};
use crate::ops::Backend;
use crate::training::{AnyTrainer, MemorySettings};

/// One trainer for all full-parameter adversaries, which follow one another, and one for each rank of each LoRA adversary.
pub(super) struct Trainers<B: Backend> {
    trainers: Vec<AnyTrainer<B>>,
    /// For each adversary the trainers of its ranks, in their order; one where it trains all weights.
    of: Vec<Vec<usize>>,
}

impl<B: Backend> Trainers<B> {
    /// The trainers of `adversaries`.
    pub fn new(model: &Model<B>, adversaries: &[Adversary], memory: MemorySettings) -> Result<Self> {
        let mut made = Self { trainers: Vec::new(), of: Vec::new() };
        for adversary in adversaries {
            let optimizer = &adversary.optimizer;
            let full = made.trainers.iter().position(|trainer| trainer.adapter().is_none());
            let mut own = Vec::new();
            match (&adversary.adapter, full) {
                (None, Some(index)) => own.push(index),
                (None, None) => own.push(made.add(AnyTrainer::new(model, None, optimizer.clone(), memory)?)),
                (Some(_), _) => {
                    for adapter in adversary.adapters() {
                        own.push(made.add(AnyTrainer::new(model, Some(&adapter), optimizer.clone(), memory)?));
                    }
                }
            }
            made.of.push(own);
        }
        Ok(made)
    }

    fn add(&mut self, trainer: AnyTrainer<B>) -> usize {
        self.trainers.push(trainer);
        self.trainers.len() - 1
    }

    /// The adapters that are trained.
    pub fn adapters(&self) -> Vec<&Adapter<B>> {
        self.trainers.iter().filter_map(AnyTrainer::adapter).collect()
    }

    /// The trainer of the attack that `adversary` has drawn.
    ///
    /// # Errors
    /// When the adversary has no such rank.
    pub fn of(&mut self, adversary: &Adversary, draw: &Draw) -> Result<&mut AnyTrainer<B>> {
        let place = adversary.rank_place(draw)?;
        let index = self.of.get(draw.adversary).and_then(|own| own.get(place)).copied();
        let trainer = index.and_then(|index| self.trainers.get_mut(index));
        trainer.ok_or_else(|| Error::Defect(format!("adversary {} has no trainer {place}", draw.adversary)))
    }
}
