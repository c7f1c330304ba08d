//! The points beside the weights θ where gradients are taken: one file for each way to get to one.

mod ablation;
mod attack;
mod frozen;
mod noise;
mod persistent;
mod rounding;
mod step;

use std::ops::Range;

use super::composition::Displacement;
use super::pool::Pool;
use super::terms::{Ground, PlacedTerms, TermLosses};
use super::{Settings, TrajectoryReport};
use crate::error::Result;
use crate::model::{Adapter, Model};
use crate::ops::Backend;

/// An inner step that is about to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InnerStep {
    /// The number of its attack within the outer step, from 0.
    pub task: u64,
    /// Its number within the attack, from 0.
    pub step: u64,
    /// The number of steps of the attack.
    pub of: u64,
}

/// A visit of a point in an outer step.
pub(super) struct Visit<'a, B: Backend> {
    /// Seed of every draw.
    pub seed: u64,
    /// The outer step, from 0.
    pub outer: u64,
    /// The number of the visit in the outer step, from 0.
    pub task: u64,
    /// What is trained; see [`super::Trained`].
    pub trained: &'a [Range<usize>],
    /// The attacks that are kept to be met again.
    pub pool: &'a Pool,
    /// The terms at the point.
    pub terms: &'a mut PlacedTerms<B>,
    pub ground: Ground<'a, B>,
    /// Called before each inner step; an error of it ends the outer step.
    pub tick: &'a mut dyn FnMut(InnerStep) -> Result<()>,
}

/// What a visit has found.
pub(super) struct Visited {
    /// The simulated attack, where there was one.
    pub trajectory: Option<TrajectoryReport>,
    pub terms: Vec<TermLosses>,
}

/// A way from θ to a point, with what it keeps between outer steps.
pub(super) trait Displace<B: Backend>: Send {
    /// Visits in one outer step.
    fn visits(&self) -> u64 {
        1
    }

    /// Whether the terms of each visit have batches of their own. Those of all other places share one batch of each stream
    /// in an outer step.
    fn holds_out(&self) -> bool {
        false
    }

    /// The adapters that passes at the point have on top of the weights.
    fn adapters(&self) -> Vec<&Adapter<B>> {
        Vec::new()
    }

    /// What it keeps between outer steps beside its settings, for a checkpoint. Waits for the device.
    fn kept(&self, _backend: &B, _model: &Model<B>) -> Result<Option<Vec<f32>>> {
        Ok(None)
    }

    /// Puts back what a checkpoint has kept.
    fn restore(&mut self, _backend: &B, _model: &Model<B>, _kept: &[f32]) -> Result<()> {
        Ok(())
    }

    /// Goes from θ to the point and takes the gradients of its terms there. The weights stay where they are then; the caller
    /// puts θ back.
    fn visit(&mut self, visit: Visit<B>) -> Result<Visited>;
}

/// The ways to the points of `settings`, in their order.
pub(super) fn ways<B: Backend>(model: &Model<B>, settings: &Settings) -> Result<Vec<Box<dyn Displace<B>>>> {
    let way = |displacement: &Displacement| -> Result<Box<dyn Displace<B>>> {
        Ok(match displacement {
            Displacement::Attack(attack) => Box::new(attack::AttackWay::new(model, attack.clone(), settings)?),
            Displacement::FrozenAttack(frozen) => Box::new(frozen::FrozenWay::new(model, frozen.clone(), settings)?),
            Displacement::Step(step) => Box::new(step::StepWay::new(model, step.clone())?),
            Displacement::Noise(noise) => Box::new(noise::NoiseWay::new(noise.clone())),
            Displacement::Ablation(ablation) => Box::new(ablation::AblationWay::new(ablation.clone())),
            Displacement::Rounding(rounding) => Box::new(rounding::RoundingWay::new(*rounding)),
            Displacement::Persistent(adversary) => Box::new(persistent::PersistentWay::new(model, adversary.clone())?),
        })
    };
    settings.points.iter().map(|point| way(&point.displacement)).collect()
}
