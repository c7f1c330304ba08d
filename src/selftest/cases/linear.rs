//! Matrix products, by our own kernels and by the device's library.

use super::Case;
use crate::error::Result;
use crate::ops::{self, Backend, DType};
use crate::selftest::compare::summed;
use crate::selftest::reference;
use crate::selftest::trial::Trial;

/// (tokens, outputs, inputs).
type Shape = (usize, usize, usize);
type Product = (&'static str, fn(&mut Trial, Shape) -> Result<()>);

/// Around the edges of tiles of 128, and columns that are no multiple of a vector.
const SMALL: [Shape; 3] = [(3, 5, 7), (130, 65, 100), (65, 136, 264)];
/// Llama-3-8B: q, k and v; output; gate and up; down.
const REAL: [Shape; 4] = [(2048, 6144, 4096), (2047, 4096, 4096), (2048, 28672, 4096), (2048, 4096, 14336)];

/// The products of a layer; the last two with results in another dtype than a layer asks for, which the kernels offer.
const PRODUCTS: [Product; 6] = [
    ("linear_forward", forward),
    ("linear_backward_input", |trial, shape| backward_input(trial, shape, trial.compute())),
    ("linear_backward_input +=", backward_input_onto),
    ("linear_backward_weight", |trial, shape| backward_weight(trial, shape, DType::F32)),
    ("linear_backward_input to f32", |trial, shape| backward_input(trial, shape, DType::F32)),
    ("linear_backward_weight as stored", |trial, shape| backward_weight(trial, shape, trial.compute())),
];

pub(super) fn cases(full: bool) -> Vec<Case> {
    let small = SMALL.iter().flat_map(|&shape| PRODUCTS.map(|product| (shape, product)));
    let real = REAL.iter().flat_map(|&shape| PRODUCTS.into_iter().take(4).map(move |product| (shape, product)));
    let case = |(shape, (name, product)): (Shape, Product)| {
        let text = format!("{} x {} x {}", shape.0, shape.1, shape.2);
        Case::new(name, text, move |trial| product(trial, shape)).of_products()
    };
    small.chain(real.filter(|_| full)).map(case).collect()
}

/// The standard deviation of weights that keeps products as large as their inputs.
fn weight_scale(summands: usize) -> f64 {
    1.0 / (summands as f64).sqrt()
}

fn forward(trial: &mut Trial, (tokens, outputs, inputs): Shape) -> Result<()> {
    let cuda = trial.cuda();
    let x = trial.normal(tokens, inputs, 1.0)?;
    let w = trial.normal(outputs, inputs, weight_scale(inputs))?;
    let y = trial.poisoned(trial.compute(), tokens, outputs);
    let [y] = trial
        .launch([&y], |[y]| cuda.run(ops::LinearForward { x: x.tensor.view(), w: w.tensor.view(), y: y.view_mut() }))?;
    trial.check("", &y, summed(trial.compute(), inputs), reference::linear_forward(&x, &w));
    Ok(())
}

fn backward_input(trial: &mut Trial, (tokens, outputs, inputs): Shape, stored: DType) -> Result<()> {
    let cuda = trial.cuda();
    let dy = trial.normal(tokens, outputs, 1.0)?;
    let w = trial.normal(outputs, inputs, weight_scale(outputs))?;
    let dx = trial.poisoned(stored, tokens, inputs);
    let [dx] = trial.launch([&dx], |[dx]| {
        cuda.run(ops::LinearBackwardInput {
            dy: dy.tensor.view(),
            w: w.tensor.view(),
            dx: dx.view_mut(),
            accumulate: false,
        })
    })?;
    trial.check("", &dx, summed(stored, outputs), reference::linear_backward_input(&dy, &w, None));
    Ok(())
}

fn backward_input_onto(trial: &mut Trial, (tokens, outputs, inputs): Shape) -> Result<()> {
    let cuda = trial.cuda();
    let dy = trial.normal(tokens, outputs, 1.0)?;
    let w = trial.normal(outputs, inputs, weight_scale(outputs))?;
    let dx = trial.starting(trial.compute(), tokens, inputs, 1.0);
    let [found] = trial.launch([&dx], |[dx]| {
        cuda.run(ops::LinearBackwardInput {
            dy: dy.tensor.view(),
            w: w.tensor.view(),
            dx: dx.view_mut(),
            accumulate: true,
        })
    })?;
    let formula = reference::linear_backward_input(&dy, &w, Some(dx.start()));
    trial.check("", &found, summed(trial.compute(), outputs), formula);
    Ok(())
}

/// Exact products of stored numbers: into f32 as close as f32 in both modes.
fn backward_weight(trial: &mut Trial, (tokens, outputs, inputs): Shape, stored: DType) -> Result<()> {
    let cuda = trial.cuda();
    let dy = trial.normal(tokens, outputs, 1.0)?;
    let x = trial.normal(tokens, inputs, 1.0)?;
    let dw = trial.starting(stored, outputs, inputs, (tokens as f64).sqrt());
    let [found] = trial.launch([&dw], |[dw]| {
        cuda.run(ops::LinearBackwardWeight { dy: dy.tensor.view(), x: x.tensor.view(), dw: dw.view_mut() })
    })?;
    trial.check("", &found, summed(stored, tokens), reference::linear_backward_weight(&dy, &x, dw.start()));
    Ok(())
}
