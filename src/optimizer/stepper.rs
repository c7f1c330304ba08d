//! An optimizer's states in device memory, and its step.

use super::OptimizerConfig;
use crate::error::Result;
use crate::model::{Gradients, Parameters};
use crate::ops::{Backend, Tensor};

/// The few numbers of an optimizer that are not tensors; with the state tensors they are all a checkpoint needs.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct OptimizerProgress {
    /// Steps taken.
    pub step: u64,
    /// NAdam: Π μ. Schedule-free: Σ of the averaging weights. Otherwise 0.
    pub accumulated: f64,
    /// Schedule-free: the largest learning rate so far. Otherwise 0.
    pub lr_max: f64,
}

/// An optimizer with its states.
pub struct Optimizer<B: Backend> {
    config: OptimizerConfig,
    progress: OptimizerProgress,
    states: Vec<Tensor<B>>,
    coefficients: Tensor<B>,
}

impl<B: Backend> Optimizer<B> {
    /// A fresh optimizer for parameters of `len` elements. `name` names its buffers in the memory plan.
    pub fn new(backend: &B, name: &str, config: OptimizerConfig, len: usize) -> Result<Self> {
        let _ = (backend, name, config, len);
        todo!()
    }

    /// Forgets everything, as a new optimizer with `config` (of the same kind) would start; keeps the memory.
    pub fn reset(&mut self, backend: &B, config: OptimizerConfig) -> Result<()> {
        let _ = (backend, config);
        todo!()
    }

    /// One step on all parameters.
    pub fn step(&mut self, backend: &B, parameters: &mut Parameters<B>, gradients: &Gradients<B>) -> Result<()> {
        let _ = (backend, parameters, gradients);
        todo!()
    }

    /// The learning rate that the next step will use, warm-up and schedule applied.
    pub fn next_lr(&self) -> f64 {
        todo!()
    }

    /// Schedule-free: the averaged point x = y + (1 − 1/β1)(z − y) of `parameters` (the training point y), which is
    /// the one to save and evaluate; for every other kind a copy of the parameters. On the host, f32.
    pub fn average_point(&self, backend: &B, parameters: &Parameters<B>) -> Result<Vec<f32>> {
        let _ = (backend, parameters);
        todo!()
    }

    /// The hyperparameters.
    pub fn config(&self) -> &OptimizerConfig {
        &self.config
    }

    /// Steps taken and the other scalars.
    pub fn progress(&self) -> OptimizerProgress {
        self.progress
    }

    /// The state tensors, for a checkpoint.
    pub fn states(&self) -> &[Tensor<B>] {
        &self.states
    }

    /// Puts a checkpoint's scalars and state tensors back.
    pub fn restore(&mut self, backend: &B, progress: OptimizerProgress, states: &[Vec<f32>]) -> Result<()> {
        let _ = (backend, progress, states, &self.coefficients);
        todo!()
    }
}
