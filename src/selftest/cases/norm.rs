//! RMS norm.

use super::{Case, shapes};
use crate::error::Result;
use crate::ops::{self, Backend, DType};
use crate::selftest::compare::{rounded_once, rounded_twice, summed};
use crate::selftest::reference::{self, Numbers};
use crate::selftest::trial::{Operand, Trial};

/// ε of Llama 3.
const EPSILON: f32 = 1e-5;

/// (tokens, columns).
const SMALL: [(usize, usize); 4] = [(1, 8), (5, 37), (33, 264), (9, 1032)];
const REAL: [(usize, usize); 1] = [(4095, 4096)];

pub(super) fn cases(full: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for (tokens, cols) in shapes(full, &SMALL, &REAL) {
        let shape = format!("{tokens} x {cols}");
        for with_delta in [false, true] {
            let name = if with_delta { "rms_norm_forward + residual" } else { "rms_norm_forward" };
            cases.push(Case::new(name, shape.clone(), move |trial| forward(trial, tokens, cols, with_delta)));
        }
        for with_weight in [false, true] {
            let name = if with_weight { "rms_norm_backward + weight" } else { "rms_norm_backward" };
            cases.push(Case::new(name, shape.clone(), move |trial| backward(trial, tokens, cols, with_weight)));
        }
    }
    cases
}

/// Weights around 1.
fn weight(trial: &mut Trial, cols: usize) -> Result<Operand> {
    trial.changed(trial.compute(), (1, cols), |_, x| 1.0 + 0.2 * x)
}

fn forward(trial: &mut Trial, tokens: usize, cols: usize, with_delta: bool) -> Result<()> {
    let cuda = trial.cuda();
    let dtype = trial.compute();
    let residual = trial.normal(tokens, cols, 1.5)?;
    let delta = if with_delta { Some(trial.normal(tokens, cols, 0.7)?) } else { None };
    let weight = weight(trial, cols)?;
    let sum = trial.poisoned(dtype, tokens, cols);
    let normed = trial.poisoned(dtype, tokens, cols);
    // What nobody writes without a delta must not be poisoned.
    let sum = if with_delta { sum } else { trial.starting(dtype, 1, 1, 1.0) };
    let inverse = trial.poisoned(DType::F32, tokens, 1);
    let [sum, normed, inverse] = trial.launch([&sum, &normed, &inverse], |[sum, normed, inverse]| {
        cuda.run(ops::RmsNormForward {
            residual: residual.tensor.view(),
            delta: delta.as_ref().map(|d| d.tensor.view()),
            weight: weight.tensor.view(),
            epsilon: EPSILON,
            sum: with_delta.then(|| sum.view_mut()),
            normed: normed.view_mut(),
            inverse_rms: inverse.view_mut(),
        })
    })?;
    let delta = delta.as_ref().map(|delta| delta as &dyn Numbers);
    let row = |row| reference::residual_sum(&residual, delta, row);
    let pick = |values: Vec<f64>, cols: &[usize]| cols.iter().map(|&col| values[col]).collect();
    if with_delta {
        trial.check("sum", &sum, rounded_once(dtype), |t, cols| pick(row(t), cols));
    }
    // The statistics are taken over the rounded sum.
    let bound = if with_delta { rounded_twice(dtype, cols) } else { summed(dtype, cols) };
    let epsilon = f64::from(EPSILON);
    trial.check("normed", &normed, bound, |t, cols| pick(reference::normed(&row(t), &weight, epsilon), cols));
    let bound = if with_delta { rounded_once(dtype) } else { rounded_once(DType::F32) };
    trial.check("inverse_rms", &inverse, bound, |t, _| vec![reference::inverse_rms(&row(t), epsilon)]);
    Ok(())
}

fn backward(trial: &mut Trial, tokens: usize, cols: usize, with_weight: bool) -> Result<()> {
    let cuda = trial.cuda();
    let dtype = trial.compute();
    let d_normed = trial.normal(tokens, cols, 1.0)?;
    let x = trial.normal(tokens, cols, 1.5)?;
    let weight = weight(trial, cols)?;
    let inverses: Vec<f32> =
        (0..tokens).map(|t| reference::inverse_rms(&x.row(t), f64::from(EPSILON)) as f32).collect();
    let inverse = trial.changed(DType::F32, (tokens, 1), move |t, _| inverses[t])?;
    let d_residual = trial.starting(dtype, tokens, cols, 0.5);
    let d_weight = trial.starting(DType::F32, 1, cols, 1.0);
    let [found, found_weight] = trial.launch([&d_residual, &d_weight], |[d_residual, d_weight]| {
        let d_weight = with_weight.then(|| d_weight.view_mut());
        cuda.run(ops::RmsNormBackward {
            d_normed: d_normed.tensor.view(),
            x: x.tensor.view(),
            weight: weight.tensor.view(),
            inverse_rms: inverse.tensor.view(),
            d_residual: d_residual.view_mut(),
            d_weight,
        })
    })?;
    let formula = reference::rms_norm_backward(&d_normed, &x, &weight, &inverse, d_residual.start());
    trial.check("d_residual", &found, summed(dtype, cols), formula);
    if with_weight {
        let formula = reference::rms_norm_weight(&d_normed, &x, &inverse, d_weight.start());
        trial.check("d_weight", &found_weight, summed(DType::F32, tokens), formula);
    }
    Ok(())
}
