//! Weights moved along a flat vector, a window at a time.

use super::stepper::{part_mut, part_of, parts};
use crate::error::Result;
use crate::model::{GradientView, Parameters};
use crate::ops::{self, Backend, COEFFICIENTS, DType, Tensor, UpdateRule};

/// Elements that are moved in one launch.
pub const SHIFT_WINDOW: usize = 1 << 26;

/// Adds multiples of flat f32 vectors to weights: θ + c·v, where bf16 weights come with their remainders as exact f32 sums.
///
/// It is the step of plain SGD with the learning rate −c, whose momentum is thrown away.
pub struct Shift<B: Backend> {
    coefficients: Tensor<B>,
    momentum: Tensor<B>,
    /// The part of a vector from the host that is added.
    window: Option<Tensor<B>>,
}

impl<B: Backend> Shift<B> {
    /// Memory for weights of `len` elements.
    pub fn new(backend: &B, len: usize) -> Result<Self> {
        Ok(Self {
            coefficients: Tensor::zeros(backend, "shift coefficients", 1, COEFFICIENTS, DType::F32)?,
            momentum: Tensor::zeros(backend, "shift momentum", 1, len.clamp(1, SHIFT_WINDOW), DType::F32)?,
            window: None,
        })
    }

    /// Adds `factor` · `vector` to all weights; `vector` is on the host.
    pub fn add_from_host(
        &mut self,
        backend: &B,
        weights: &mut Parameters<B>,
        vector: &[f32],
        factor: f64,
    ) -> Result<()> {
        ops::expect("Shift::add_from_host", "number of weights", vector.len(), weights.layout().len())?;
        let most = self.momentum.cols();
        let mut window = match self.window.take() {
            Some(window) => window,
            None => Tensor::zeros(backend, "shift window", 1, most, DType::F32)?,
        };
        for (start, len) in parts(vector.len(), most) {
            backend.upload_f32(window.buffer_mut(), 0, &vector[start..start + len])?;
            let part = GradientView { range: start..start + len, values: window.shaped(1, len) };
            self.add(backend, weights, part, factor)?;
        }
        self.window = Some(window);
        Ok(())
    }

    /// Adds `factor` · `vector` to the weights at the vector's places.
    pub fn add(
        &mut self,
        backend: &B,
        weights: &mut Parameters<B>,
        vector: GradientView<B>,
        factor: f64,
    ) -> Result<()> {
        let mut values = [0.0; COEFFICIENTS];
        // See [`UpdateRule::Sgd`]: the learning rate, and that this is the first step.
        (values[0], values[4]) = (-factor as f32, 1.0);
        backend.upload_f32(self.coefficients.buffer_mut(), 0, &values)?;
        let most = self.momentum.cols();
        let (mut flat, mut remainder) = weights.flat_mut();
        for (first, len) in parts(vector.range.len(), most) {
            let start = vector.range.start + first;
            backend.run(ops::OptimizerUpdate {
                rule: UpdateRule::Sgd,
                coefficients: self.coefficients.view(),
                weights: part_mut(&mut flat, start, len),
                remainder: remainder.as_mut().map(|remainder| part_mut(remainder, start, len)),
                gradients: part_of(vector.values, first, len),
                states: vec![self.momentum.shaped_mut(1, len)],
                rounding: None,
            })?;
        }
        Ok(())
    }
}
