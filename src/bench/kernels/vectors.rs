//! Passes over all parameters: optimizers, saving and restoring weights, sums. One set of operands each: they are far
//! larger than a cache.

use super::super::{Bench, Spec, Work, count};
use crate::backend::cuda::Cuda;
use crate::error::{Error, Result};
use crate::ops::{self, Backend, COEFFICIENTS, DType, MatrixMut, StateRounding, Tensor, UpdateRule};

/// Fewer elements than this say nothing about memory.
const FEWEST_ELEMENTS: usize = 1 << 20;

pub(super) fn run(bench: &mut Bench) -> Result<()> {
    for (name, rule, coefficients) in rules() {
        optimizer(bench, name, rule, coefficients, DType::F32)?;
        if bench.cuda_dtype() == DType::Bf16 {
            optimizer(bench, &format!("{name}/bf16_moments"), rule, coefficients, DType::Bf16)?;
        }
    }
    weights_copy(bench)?;
    squared_norm(bench)?;
    sign_mask(bench)
}

/// Every rule, with the coefficients of its first step at a learning rate of 1e-5 (see [`UpdateRule`] for their order).
fn rules() -> [(&'static str, UpdateRule, [f32; COEFFICIENTS]); 7] {
    let m = 0.1;
    let v = 0.001;
    let root = 1.0 / 0.001f32.sqrt();
    [
        ("adam", UpdateRule::Adam, [m, 0.999, v, 1e-8, 1e-7, 0.0, 1e-4, root, 0.0]),
        ("sgd", UpdateRule::Sgd, [1e-5, 0.9, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
        ("adagrad", UpdateRule::Adagrad, [1e-5, 1e-10, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
        ("adadelta", UpdateRule::Adadelta, [1e-5, 0.9, 0.1, 1e-6, 0.0, 0.0, 0.0, 0.0, 0.0]),
        ("nadam", UpdateRule::NAdam, [m, 0.999, v, 1e-8, 0.0, 1000.0, 1e-5, 1e-5, 0.0]),
        ("radam", UpdateRule::RAdam, [m, 0.999, v, 1e-8, 0.0, 1e-5, 0.0, 0.0, 0.0]),
        ("schedule_free_adamw", UpdateRule::ScheduleFreeAdamW, [0.999, v, 1e-8, 0.01, 0.5, 1e-5, -5e-6, 1000.0, 0.0]),
    ]
}

/// Measures a row over as many elements as the shapes ask for, or half, or a quarter: what fits. `make` makes the
/// operands for a number of elements, and what runs on them.
fn row<F>(bench: &mut Bench, name: &str, bytes: f64, make: impl Fn(&Bench, usize) -> Result<F>) -> Result<()>
where
    F: FnMut(usize) -> Result<()>,
{
    if !bench.wants(name) {
        return Ok(());
    }
    let mut len = bench.options.shapes.vector_elements;
    loop {
        match make(bench, len) {
            Err(Error::Memory { .. }) if len / 2 >= FEWEST_ELEMENTS => len /= 2,
            made => {
                let work: Work = count::flat(len, bytes);
                bench.measure(Spec::new(name, format!("{len} elements"), work), |_| made);
                return Ok(());
            }
        }
    }
}

/// Weights as training keeps them: in bf16 with a remainder, or in f32.
struct Weights {
    values: Tensor<Cuda>,
    remainder: Option<Tensor<Cuda>>,
}

impl Weights {
    fn new(bench: &Bench, len: usize) -> Result<Self> {
        let values = bench.data.normal("weights", 1, len, bench.cuda_dtype(), 0.02)?;
        let remainder = match bench.cuda_dtype() {
            DType::Bf16 => Some(bench.data.normal("remainder", 1, len, DType::Remainder16, 0.02)?),
            _ => None,
        };
        Ok(Self { values, remainder })
    }

    /// Of one weight, remainder included: 4 in both modes.
    const BYTES: f64 = 4.0;
}

fn optimizer(
    bench: &mut Bench,
    name: &str,
    rule: UpdateRule,
    coefficients: [f32; COEFFICIENTS],
    moments: DType,
) -> Result<()> {
    // Weights and states in and out, gradients in.
    let states: usize = (0..rule.states()).map(|index| rule.state_dtype(index, moments).bytes()).sum();
    let bytes = 2.0 * Weights::BYTES + 4.0 + 2.0 * states as f64;
    row(bench, &format!("optimizer/{name}"), bytes, |bench, len| {
        let cuda = bench.cuda.clone();
        let Weights { mut values, mut remainder } = Weights::new(bench, len)?;
        let gradients = bench.data.normal("gradients", 1, len, DType::F32, 0.01)?;
        // States start at 0, as in training; the first repetitions, which are not timed, fill them.
        let state = |index| Tensor::zeros(&cuda, "state", 1, len, rule.state_dtype(index, moments));
        let mut states = (0..rule.states()).map(state).collect::<Result<Vec<_>>>()?;
        let coefficients = Tensor::from_f32(&cuda, "coefficients", 1, COEFFICIENTS, &coefficients)?;
        let key = (moments == DType::Bf16).then(|| Tensor::from_u32(&cuda, "rounding", &[0; 4])).transpose()?;
        Ok(move |_: usize| {
            let weights = values.view_mut();
            let remainder = remainder.as_mut().map(Tensor::view_mut);
            let states: Vec<MatrixMut<Cuda>> = states.iter_mut().map(Tensor::view_mut).collect();
            let rounding = key.as_ref().map(|key| StateRounding { key: key.view(), first: 0 });
            cuda.run(ops::OptimizerUpdate {
                rule,
                coefficients: coefficients.view(),
                weights,
                remainder,
                gradients: gradients.view(),
                states,
                rounding,
            })
        })
    })
}

/// Saving or restoring the weights around a trajectory: a copy within the device.
fn weights_copy(bench: &mut Bench) -> Result<()> {
    row(bench, "weights_copy", 2.0 * Weights::BYTES, |bench, len| {
        let cuda = bench.cuda.clone();
        let from = Weights::new(bench, len)?;
        let mut to = Weights::new(bench, len)?;
        Ok(move |_: usize| {
            cuda.run(ops::CopyValues { from: from.values.view(), to: to.values.view_mut() })?;
            match (&from.remainder, &mut to.remainder) {
                (Some(from), Some(to)) => cuda.run(ops::CopyValues { from: from.view(), to: to.view_mut() }),
                _ => Ok(()),
            }
        })
    })
}

/// The host reads the sum back, and so does the time.
fn squared_norm(bench: &mut Bench) -> Result<()> {
    row(bench, "squared_norm", 4.0, |bench, len| {
        let cuda = bench.cuda.clone();
        let x = bench.data.normal("x", 1, len, DType::F32, 1.0)?;
        Ok(move |_: usize| cuda.run(ops::SquaredNorm { x: x.view() }).map(|_| ()))
    })
}

/// One gradient in, the accumulated one and the step's in and out.
fn sign_mask(bench: &mut Bench) -> Result<()> {
    row(bench, "sign_mask", 20.0, |bench, len| {
        let cuda = bench.cuda.clone();
        let masked = bench.data.normal("masked gradient", 1, len, DType::F32, 1.0)?;
        let mut accumulated = bench.data.normal("accumulated gradient", 1, len, DType::F32, 1.0)?;
        let mut gradient = bench.data.normal("gradient", 1, len, DType::F32, 1.0)?;
        Ok(move |_: usize| {
            cuda.run(ops::SignMask {
                masked: masked.view(),
                scale: 0.1,
                decay: 0.95,
                accumulated: accumulated.view_mut(),
                gradient: gradient.view_mut(),
            })
        })
    })
}
