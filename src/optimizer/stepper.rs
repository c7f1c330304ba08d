//! An optimizer's states, in device memory or parked in main memory, and its step.

use std::ops::Range;

use super::OptimizerConfig;
use super::coefficients::{Coefficients, coefficients};
use crate::error::{Error, Result};
use crate::model::{GradientView, Gradients, Parameters, PartStep};
use crate::ops::{
    self, Backend, COEFFICIENTS, DType, Matrix, MatrixMut, RecordingKey, StateRounding, Tensor, UpdateRule,
};

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
    name: String,
    config: OptimizerConfig,
    progress: OptimizerProgress,
    len: usize,
    states: States<B>,
    coefficients: Tensor<B>,
    /// The rounding of moments that are stored in bf16; `None` where they are f32.
    rounding: Option<Rounding<B>>,
}

/// The key of the random bits that round bf16 moments; see [`StateRounding`].
struct Rounding<B: Backend> {
    seed: u64,
    draw: u32,
    key: Tensor<B>,
}

/// A step between [`Optimizer::begin`] and [`Optimizer::finish`].
#[must_use]
pub struct StepUnderWay {
    after: OptimizerProgress,
}

/// The state tensors, each of the parameters' length.
enum States<B: Backend> {
    /// On the device, for optimizers that step often.
    Resident(Vec<Tensor<B>>),
    /// In main memory, and a window of some elements of each on the device, through which a step moves.
    Parked { states: Vec<B::Parked>, window: Vec<Tensor<B>> },
}

impl<B: Backend> Optimizer<B> {
    /// A fresh optimizer for parameters of `len` elements. `name` names its buffers in the memory plan.
    pub fn new(backend: &B, name: &str, config: OptimizerConfig, len: usize) -> Result<Self> {
        let states = device_states(backend, name, &config, len, DType::F32)?;
        Self::with_states(backend, name, config, len, States::Resident(states))
    }

    /// A fresh optimizer with moments in bf16, rounded at random with [`Optimizer::key_rounding`]'s bits. The arithmetic
    /// stays f32.
    ///
    /// # Errors
    /// When the backend keeps its weights in f32.
    pub fn with_bf16_moments(backend: &B, name: &str, config: OptimizerConfig, len: usize) -> Result<Self> {
        if backend.compute_dtype() != DType::Bf16 {
            let problem = format!("bf16 goes with bf16 weights, and this device ({}) has f32", backend.description());
            return Err(Error::config("memory.states", problem, "use \"f32\", or a GPU with `precision` bf16"));
        }
        let states = device_states(backend, name, &config, len, DType::Bf16)?;
        let key = Tensor::from_u32(backend, &format!("{name} rounding"), &[0; 4])?;
        let optimizer = Self::with_states(backend, name, config, len, States::Resident(states))?;
        Ok(Self { rounding: Some(Rounding { seed: 0, draw: 0, key }), ..optimizer })
    }

    /// From now on rounds bf16 moments with the bits of (`seed`, `draw`); f32 states are not rounded.
    pub fn key_rounding(&mut self, seed: u64, draw: u32) {
        if let Some(rounding) = &mut self.rounding {
            (rounding.seed, rounding.draw) = (seed, draw);
        }
    }

    /// A fresh optimizer whose states wait in main memory. A step moves them through `window` elements of each on the
    /// device and gives the same bits as a step of [`Optimizer::new`].
    pub fn parked(backend: &B, name: &str, config: OptimizerConfig, len: usize, window: usize) -> Result<Self> {
        let states = (0..config.kind.rule().states())
            .map(|index| backend.parked(&format!("{name} state {index}"), len, DType::F32))
            .collect::<Result<_>>()?;
        let window =
            device_states(backend, &format!("{name} window"), &config, window.clamp(1, len.max(1)), DType::F32)?;
        Self::with_states(backend, name, config, len, States::Parked { states, window })
    }

    fn with_states(backend: &B, name: &str, config: OptimizerConfig, len: usize, states: States<B>) -> Result<Self> {
        config.validate()?;
        let coefficients = Tensor::zeros(backend, &format!("{name} coefficients"), 1, COEFFICIENTS, DType::F32)?;
        let name = name.to_string();
        let progress = OptimizerProgress::default();
        Ok(Self { name, config, progress, len, states, coefficients, rounding: None })
    }

    /// Forgets everything, as a new optimizer with `config` would start. The same kind keeps its memory; another kind gives
    /// it back before it takes its own.
    ///
    /// # Errors
    /// [`Error::Config`] for another kind where states are in main memory.
    pub fn reset(&mut self, backend: &B, config: OptimizerConfig) -> Result<()> {
        config.validate()?;
        match &mut self.states {
            States::Resident(states) if config.kind != self.config.kind => {
                states.clear();
                let moments = if self.rounding.is_some() { DType::Bf16 } else { DType::F32 };
                *states = device_states(backend, &self.name, &config, self.len, moments)?;
            }
            States::Parked { .. } if config.kind != self.config.kind => {
                let problem = format!("{} cannot take the place of {}", config.kind, self.config.kind);
                return Err(Error::config("optimizer", problem, "make a new optimizer for another kind"));
            }
            States::Resident(states) => {
                states.iter_mut().try_for_each(|state| backend.run(ops::Clear { to: state.view_mut() }))?;
            }
            States::Parked { states, window } => {
                for (state, window) in states.iter_mut().zip(window) {
                    let most = window.cols();
                    backend.run(ops::Clear { to: window.view_mut() })?;
                    for (start, len) in parts(self.len, most) {
                        backend.run(ops::Park { from: window.shaped(1, len), to: state, to_offset: start })?;
                    }
                }
            }
        }
        self.config = config;
        self.progress = OptimizerProgress::default();
        Ok(())
    }

    /// One step on the parameters that `gradients` holds: all of them. An error leaves the optimizer's progress as it was.
    pub fn step(&mut self, backend: &B, parameters: &mut Parameters<B>, gradients: &Gradients<B>) -> Result<()> {
        let all = std::iter::once(0..gradients.layout().len());
        self.step_parts(backend, parameters, gradients, all)
    }

    /// As [`Optimizer::step`], on the parameters at `places` alone: the others stay as they are, and so do their states.
    pub fn step_parts(
        &mut self,
        backend: &B,
        parameters: &mut Parameters<B>,
        gradients: &Gradients<B>,
        mut places: impl Iterator<Item = Range<usize>>,
    ) -> Result<()> {
        let step = self.begin(backend)?;
        places.try_for_each(|place| self.step_part(backend, parameters, gradients.part(place)))?;
        self.finish(step);
        Ok(())
    }

    /// Prepares a step that takes the parameters in parts, with [`PartStep::step_part`] for each.
    pub fn begin(&mut self, backend: &B) -> Result<StepUnderWay> {
        let Coefficients { values, progress } = coefficients(&self.config, self.progress)?;
        backend.upload_f32(self.coefficients.buffer_mut(), 0, &values)?;
        if let Some(Rounding { seed, draw, key }) = &mut self.rounding {
            let words = [*seed as u32, (*seed >> 32) as u32, self.progress.step as u32, *draw];
            backend.upload_u32(key.buffer_mut(), 0, &words)?;
        }
        Ok(StepUnderWay { after: progress })
    }

    /// Counts a step whose parts have all been taken.
    pub fn finish(&mut self, step: StepUnderWay) {
        self.progress = step.after;
    }

    /// The learning rate that the next step will use, warm-up and schedule applied.
    pub fn next_lr(&self) -> f64 {
        self.config.lr_at(self.progress.step)
    }

    /// Schedule-free: the averaged point x = y + (1 − 1/β1)(z − y) of `parameters` (the training point y), which is
    /// the one to save and evaluate; for every other kind a copy of the parameters. On the host, f32.
    pub fn average_point(&self, backend: &B, parameters: &Parameters<B>) -> Result<Vec<f32>> {
        let mut point = parameters.download(backend)?;
        if self.config.kind.rule() != UpdateRule::ScheduleFreeAdamW || self.progress.step == 0 {
            return Ok(point);
        }
        let z = self.read_state(backend, 0)?;
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

    /// Number of state tensors.
    pub fn state_count(&self) -> usize {
        match &self.states {
            States::Resident(states) => states.len(),
            States::Parked { states, .. } => states.len(),
        }
    }

    /// A state tensor on the host, for a checkpoint. Waits for the device.
    pub fn read_state(&self, backend: &B, index: usize) -> Result<Vec<f32>> {
        match &self.states {
            States::Resident(states) => states[index].to_vec(backend),
            States::Parked { states, window } => {
                let most = window[index].cols();
                let mut passage = Tensor::zeros(backend, "window of a checkpoint", 1, most, DType::F32)?;
                let mut values = Vec::with_capacity(self.len);
                for (start, len) in parts(self.len, most) {
                    let to = passage.shaped_mut(1, len);
                    backend.run(ops::Fetch { from: &states[index], from_offset: start, to })?;
                    values.extend(backend.download_f32(passage.buffer(), 0, len)?);
                }
                Ok(values)
            }
        }
    }

    fn write_state(&mut self, backend: &B, index: usize, values: &[f32]) -> Result<()> {
        match &mut self.states {
            States::Resident(states) => backend.upload_f32(states[index].buffer_mut(), 0, values),
            States::Parked { states, window } => {
                let most = window[index].cols();
                for (start, values) in (0..).step_by(most).zip(values.chunks(most)) {
                    backend.upload_f32(window[index].buffer_mut(), 0, values)?;
                    let from = window[index].shaped(1, values.len());
                    backend.run(ops::Park { from, to: &mut states[index], to_offset: start })?;
                }
                Ok(())
            }
        }
    }

    /// Puts a checkpoint's scalars and state tensors back.
    pub fn restore(&mut self, backend: &B, progress: OptimizerProgress, states: &[Vec<f32>]) -> Result<()> {
        const NAME: &str = "Optimizer::restore";
        ops::expect(NAME, "number of states", states.len(), self.state_count())?;
        for values in states {
            ops::expect(NAME, "elements of a state", values.len(), self.len)?;
        }
        for (index, values) in states.iter().enumerate() {
            self.write_state(backend, index, values)?;
        }
        self.progress = progress;
        Ok(())
    }
}

impl<B: Backend> PartStep<B> for Optimizer<B> {
    /// The step that [`Optimizer::begin`] prepared, on the parameters that `gradients` holds.
    fn step_part(&mut self, backend: &B, parameters: &mut Parameters<B>, part: GradientView<B>) -> Result<()> {
        ops::expect("Optimizer::step_part", "number of parameters", parameters.layout().len(), self.len)?;
        let rule = self.config.kind.rule();
        let coefficients = self.coefficients.view();
        let range = part.range;
        let (mut weights, mut remainder) = parameters.flat_mut();
        match &mut self.states {
            States::Resident(states) => {
                let start = range.start;
                let len = range.len();
                let states: Vec<_> = states
                    .iter_mut()
                    .map(|state| MatrixMut { buffer: state.buffer_mut(), offset: start, rows: 1, cols: len })
                    .collect();
                let remainder = remainder.as_mut().map(|r| part_mut(r, start, len));
                let weights = part_mut(&mut weights, start, len);
                let rounding = self.rounding.as_ref().map(|r| StateRounding { key: r.key.view(), first: start });
                let gradients = part.values;
                backend.run(ops::OptimizerUpdate {
                    rule,
                    coefficients,
                    weights,
                    remainder,
                    gradients,
                    states,
                    rounding,
                })
            }
            States::Parked { states, window } => {
                let most = window.first().map_or(self.len, Tensor::cols);
                for (first, len) in parts(range.len(), most) {
                    let start = range.start + first;
                    for (state, window) in states.iter().zip(window.iter_mut()) {
                        backend.run(ops::Fetch { from: state, from_offset: start, to: window.shaped_mut(1, len) })?;
                    }
                    let views: Vec<_> = window.iter_mut().map(|window| window.shaped_mut(1, len)).collect();
                    let remainder = remainder.as_mut().map(|r| part_mut(r, start, len));
                    let weights = part_mut(&mut weights, start, len);
                    let gradients = part_of(part.values, first, len);
                    backend.run(ops::OptimizerUpdate {
                        rule,
                        coefficients,
                        weights,
                        remainder,
                        gradients,
                        states: views,
                        rounding: None,
                    })?;
                    for (state, window) in states.iter_mut().zip(window.iter()) {
                        backend.run(ops::Park { from: window.shaped(1, len), to: state, to_offset: start })?;
                    }
                }
                Ok(())
            }
        }
    }

    fn add_to_key(&self, key: &mut RecordingKey) {
        let states = match &self.states {
            States::Resident(states) => states,
            States::Parked { window, .. } => window,
        };
        key.number(self.config.kind.rule() as u64);
        std::iter::once(&self.coefficients).chain(states).for_each(|tensor| key.buffer(tensor.buffer()));
    }
}

fn device_states<B: Backend>(
    backend: &B,
    name: &str,
    config: &OptimizerConfig,
    len: usize,
    moments: DType,
) -> Result<Vec<Tensor<B>>> {
    let rule = config.kind.rule();
    let dtype = |index| rule.state_dtype(index, moments);
    let state = |index| Tensor::zeros(backend, &format!("{name} state {index}"), 1, len, dtype(index));
    (0..rule.states()).map(state).collect()
}

/// 0..len in parts of at most `most`: where each starts, and its length.
pub(super) fn parts(len: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..len).step_by(most.max(1)).map(move |start| (start, most.min(len - start)))
}

/// `len` elements of a flat matrix from `start` on.
pub(super) fn part_of<B: Backend>(flat: Matrix<'_, B>, start: usize, len: usize) -> Matrix<'_, B> {
    Matrix { buffer: flat.buffer, offset: flat.offset + start, rows: 1, cols: len }
}

/// As [`part_of`], to write.
pub(super) fn part_mut<'a, B: Backend>(flat: &'a mut MatrixMut<'_, B>, start: usize, len: usize) -> MatrixMut<'a, B> {
    MatrixMut { buffer: flat.buffer, offset: flat.offset + start, rows: 1, cols: len }
}
