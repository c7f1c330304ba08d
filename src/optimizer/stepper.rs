//! An optimizer's states in device memory, and its step.

use super::OptimizerConfig;
use super::coefficients::{Coefficients, coefficients};
use crate::error::{Error, Result};
use crate::model::{Gradients, Parameters};
use crate::ops::{self, Backend, COEFFICIENTS, DType, Tensor, UpdateRule};

/// The few numbers of an optimizer that are not tensors; with the state tensors they are all a checkpoint needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
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
        config.validate()?;
        let states = (0..config.kind.rule().states())
            .map(|index| Tensor::zeros(backend, &format!("{name} state {index}"), 1, len, DType::F32))
            .collect::<Result<_>>()?;
        let coefficients = Tensor::zeros(backend, &format!("{name} coefficients"), 1, COEFFICIENTS, DType::F32)?;
        Ok(Self { config, progress: OptimizerProgress::default(), states, coefficients })
    }

    /// Forgets everything, as a new optimizer with `config` (of the same kind) would start; keeps the memory.
    pub fn reset(&mut self, backend: &B, config: OptimizerConfig) -> Result<()> {
        config.validate()?;
        if config.kind != self.config.kind {
            let problem = format!("{} cannot take the place of {}", config.kind, self.config.kind);
            return Err(Error::config("optimizer", problem, "make a new optimizer for another kind"));
        }
        for state in &mut self.states {
            let len = state.cols();
            backend.clear(state.buffer_mut(), 0, len)?;
        }
        self.config = config;
        self.progress = OptimizerProgress::default();
        Ok(())
    }

    /// One step on all parameters. An error leaves the optimizer as it was.
    pub fn step(&mut self, backend: &B, parameters: &mut Parameters<B>, gradients: &Gradients<B>) -> Result<()> {
        let Coefficients { values, progress } = coefficients(&self.config, self.progress)?;
        backend.upload_f32(self.coefficients.buffer_mut(), 0, &values)?;
        let (weights, remainder) = parameters.flat_mut();
        let mut states: Vec<_> = self.states.iter_mut().map(Tensor::view_mut).collect();
        let rule = self.config.kind.rule();
        let coefficients = self.coefficients.view();
        ops::optimizer_update(backend, rule, coefficients, weights, remainder, gradients.flat(), &mut states)?;
        self.progress = progress;
        Ok(())
    }

    /// The learning rate that the next step will use, warm-up and schedule applied.
    pub fn next_lr(&self) -> f64 {
        self.config.lr_at(self.progress.step)
    }

    /// Schedule-free: the averaged point x = y + (1 − 1/β1)(z − y) of `parameters` (the training point y), which is
    /// the one to save and evaluate; for every other kind a copy of the parameters. On the host, f32.
    pub fn average_point(&self, backend: &B, parameters: &Parameters<B>) -> Result<Vec<f32>> {
        let mut point = parameters.download(backend)?;
        let [z, _] = self.states.as_slice() else { return Ok(point) };
        if self.config.kind.rule() != UpdateRule::ScheduleFreeAdamW || self.progress.step == 0 {
            return Ok(point);
        }
        let z = z.to_vec(backend)?;
        ops::expect("Optimizer::average_point", "number of parameters", point.len(), z.len())?;
        let way = (1.0 - 1.0 / self.config.betas[0]) as f32;
        point.iter_mut().zip(z).for_each(|(y, z)| *y += way * (z - *y));
        Ok(point)
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
        const NAME: &str = "Optimizer::restore";
        ops::expect(NAME, "number of states", states.len(), self.states.len())?;
        for (state, values) in self.states.iter().zip(states) {
            ops::expect(NAME, "elements of a state", values.len(), state.cols())?;
        }
        for (state, values) in self.states.iter_mut().zip(states) {
            backend.upload_f32(state.buffer_mut(), 0, values)?;
        }
        self.progress = progress;
        Ok(())
    }
}
