//! Matrix products, by our own kernels and by the device's library.

use super::{Case, shapes};
use crate::backend::cuda::Cuda;
use crate::error::Result;
use crate::ops::{self, DType};
use crate::selftest::compare::summed;
use crate::selftest::reference;
use crate::selftest::trial::Trial;

/// (tokens, outputs, inputs).
type Shape = (usize, usize, usize);

/// Around the edges of tiles of 128, and columns that are no multiple of a vector.
const SMALL: [Shape; 3] = [(3, 5, 7), (130, 65, 100), (65, 136, 264)];
/// Llama-3-8B: q, k and v; output; gate and up; down.
const REAL: [Shape; 4] = [(2048, 6144, 4096), (2047, 4096, 4096), (2048, 28672, 4096), (2048, 4096, 14336)];

/// The four products of a layer.
const PRODUCTS: [(&str, fn(&mut Trial, &Cuda, Shape) -> Result<()>); 4] = [
    ("linear_forward", forward),
    ("linear_backward_input", backward_input),
    ("linear_backward_input +=", backward_input_onto),
    ("linear_backward_weight", backward_weight),
];

pub(super) fn cases(full: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for shape in shapes(full, &SMALL, &REAL) {
        for (name, product) in PRODUCTS {
            let text = format!("{} x {} x {}", shape.0, shape.1, shape.2);
            cases.push(Case::new(name, format!("{text}, library"), move |trial| product(trial, trial.cuda(), shape)));
            cases.push(Case::new(name, format!("{text}, own"), move |trial| {
                product(trial, &trial.cuda().clone().with_own_products(), shape)
            }));
        }
    }
    cases
}

/// The standard deviation of weights that keeps products as large as their inputs.
fn weight_scale(summands: usize) -> f64 {
    1.0 / (summands as f64).sqrt()
}

fn forward(trial: &mut Trial, cuda: &Cuda, (tokens, outputs, inputs): Shape) -> Result<()> {
    let (x, w) = (trial.normal(tokens, inputs, 1.0)?, trial.normal(outputs, inputs, weight_scale(inputs))?);
    let y = trial.poisoned(trial.compute(), tokens, outputs);
    let [y] = trial.launch([&y], |[y]| ops::linear_forward(cuda, x.tensor.view(), w.tensor.view(), y.view_mut()))?;
    trial.check("", &y, summed(trial.compute(), inputs), reference::linear_forward(&x, &w));
    Ok(())
}

fn backward_input(trial: &mut Trial, cuda: &Cuda, (tokens, outputs, inputs): Shape) -> Result<()> {
    let (dy, w) = (trial.normal(tokens, outputs, 1.0)?, trial.normal(outputs, inputs, weight_scale(outputs))?);
    let dx = trial.poisoned(trial.compute(), tokens, inputs);
    let [dx] = trial.launch([&dx], |[dx]| {
        ops::linear_backward_input(cuda, dy.tensor.view(), w.tensor.view(), dx.view_mut(), false)
    })?;
    trial.check("", &dx, summed(trial.compute(), outputs), reference::linear_backward_input(&dy, &w, None));
    Ok(())
}

fn backward_input_onto(trial: &mut Trial, cuda: &Cuda, (tokens, outputs, inputs): Shape) -> Result<()> {
    let (dy, w) = (trial.normal(tokens, outputs, 1.0)?, trial.normal(outputs, inputs, weight_scale(outputs))?);
    let dx = trial.starting(trial.compute(), tokens, inputs, 1.0);
    let [found] = trial.launch([&dx], |[dx]| {
        ops::linear_backward_input(cuda, dy.tensor.view(), w.tensor.view(), dx.view_mut(), true)
    })?;
    let formula = reference::linear_backward_input(&dy, &w, Some(dx.start()));
    trial.check("", &found, summed(trial.compute(), outputs), formula);
    Ok(())
}

/// Exact products of stored numbers into f32: as close as f32 in both modes.
fn backward_weight(trial: &mut Trial, cuda: &Cuda, (tokens, outputs, inputs): Shape) -> Result<()> {
    let (dy, x) = (trial.normal(tokens, outputs, 1.0)?, trial.normal(tokens, inputs, 1.0)?);
    let dw = trial.starting(DType::F32, outputs, inputs, (tokens as f64).sqrt());
    let [found] = trial
        .launch([&dw], |[dw]| ops::linear_backward_weight(cuda, dy.tensor.view(), x.tensor.view(), dw.view_mut()))?;
    trial.check("", &found, summed(DType::F32, tokens), reference::linear_backward_weight(&dy, &x, dw.start()));
    Ok(())
}
