//! Low-rank adapters.

use super::{Case, shapes};
use crate::backend::cuda::Cuda;
use crate::error::Result;
use crate::ops::{self, Backend, DType, Dropout, LoraSlice, Matrix};
use crate::selftest::compare::{rounded_twice, summed};
use crate::selftest::reference::{self, Dropped, Factors, Part};
use crate::selftest::trial::{Operand, Trial};

/// A fused layer with adapted projections.
#[derive(Clone, Copy)]
struct Shape {
    tokens: usize,
    inputs: usize,
    /// Columns of y, more than the projections have.
    outputs: usize,
    rank: usize,
    /// (first column, columns) of each projection.
    projections: &'static [(usize, usize)],
    dropout: bool,
}

/// Without aligned rows, with them and with aligned inputs only, with and without dropout: each has kernels of its own.
const SMALL: [Shape; 5] = [
    Shape { tokens: 5, inputs: 7, outputs: 11, rank: 3, projections: &[(2, 9)], dropout: false },
    Shape { tokens: 33, inputs: 48, outputs: 96, rank: 8, projections: &[(0, 64), (64, 16), (80, 16)], dropout: true },
    Shape { tokens: 40, inputs: 40, outputs: 64, rank: 8, projections: &[(0, 48), (48, 16)], dropout: false },
    Shape { tokens: 21, inputs: 24, outputs: 27, rank: 5, projections: &[(3, 9), (12, 15)], dropout: true },
    Shape { tokens: 70, inputs: 65, outputs: 40, rank: 16, projections: &[(0, 16), (24, 16)], dropout: true },
];
/// Llama-3-8B: q, k and v; gate and up.
const REAL: [Shape; 2] = [
    Shape {
        tokens: 2048,
        inputs: 4096,
        outputs: 6144,
        rank: 16,
        projections: &[(0, 4096), (4096, 1024), (5120, 1024)],
        dropout: true,
    },
    Shape {
        tokens: 1000,
        inputs: 4096,
        outputs: 28672,
        rank: 64,
        projections: &[(0, 14336), (14336, 14336)],
        dropout: false,
    },
];

pub(super) fn cases(full: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for shape in shapes(full, &SMALL, &REAL) {
        let dropout = if shape.dropout { ", dropout" } else { "" };
        let Shape { tokens, inputs, outputs, rank, projections, .. } = shape;
        let text = format!("{tokens} x {outputs} x {inputs}, rank {rank} of {}{dropout}", projections.len());
        cases.push(Case::new("lora_forward", text.clone(), move |trial| forward(trial, shape)).of_products());
        cases.push(Case::new("lora_backward", text, move |trial| backward(trial, shape)).of_products());
    }
    cases
}

/// The factors in one flat buffer, with a gap in front, as an adapter of many layers has them.
struct Adapted {
    flat: Operand,
    /// Where a and b of each projection begin.
    places: Vec<(usize, usize)>,
    shape: Shape,
}

/// Each projection has a factor of its own, so that none can be mistaken for another's.
fn scale(projection: usize) -> f32 {
    2.0 + 0.5 * projection as f32
}

impl Adapted {
    fn new(trial: &mut Trial, shape: Shape) -> Result<Self> {
        let mut places = Vec::new();
        let mut end = 16;
        for (_, outputs) in shape.projections {
            places.push((end, end + shape.rank * shape.inputs));
            end += shape.rank * (shape.inputs + outputs);
        }
        let flat = trial.normal(1, end, 1.0 / (shape.inputs as f64).sqrt())?;
        Ok(Self { flat, places, shape })
    }

    fn slices(&self) -> Vec<LoraSlice<'_, Cuda>> {
        let matrix = |offset, rows, cols| Matrix { buffer: self.flat.tensor.buffer(), offset, rows, cols };
        let Shape { rank, inputs, projections, .. } = self.shape;
        let slice = |index: usize| {
            let (a, b) = self.places[index];
            let (start, outputs) = projections[index];
            LoraSlice { a: matrix(a, rank, inputs), b: matrix(b, outputs, rank), start, scale: scale(index) }
        };
        (0..projections.len()).map(slice).collect()
    }

    /// a and b of each projection, as numbers.
    fn parts(&self) -> Vec<(Part<'_>, Part<'_>)> {
        let Shape { rank, inputs, projections, .. } = self.shape;
        let part = |offset, rows, cols| Part { whole: &self.flat, offset, rows, cols };
        let both = |(&(a, b), &(_, outputs)): (&(usize, usize), &(usize, usize))| {
            (part(a, rank, inputs), part(b, outputs, rank))
        };
        self.places.iter().zip(projections).map(both).collect()
    }

    fn factors<'a>(&self, parts: &'a [(Part<'a>, Part<'a>)]) -> Vec<Factors<'a>> {
        let factors = |index: usize| {
            let (a, b) = &parts[index];
            Factors { a, b, start: self.shape.projections[index].0, scale: f64::from(scale(index)) }
        };
        (0..parts.len()).map(factors).collect()
    }

    fn ranks(&self) -> usize {
        self.shape.rank * self.shape.projections.len()
    }

    fn dropout(&self) -> Option<Dropout> {
        let dropout = Dropout { probability: 0.25, seed: 0x1234_5678_9abc_def0, site: 5, step: 3 };
        self.shape.dropout.then_some(dropout)
    }
}

/// s is rounded before it is multiplied on: two roundings.
fn forward(trial: &mut Trial, shape: Shape) -> Result<()> {
    let cuda = trial.cuda();
    let dtype = trial.compute();
    let adapted = Adapted::new(trial, shape)?;
    let x = trial.normal(shape.tokens, shape.inputs, 1.0)?;
    let s = trial.poisoned(dtype, shape.tokens, adapted.ranks());
    let y = trial.starting(dtype, shape.tokens, shape.outputs, 0.5);
    let slices = adapted.slices();
    let [found_s, found_y] = trial.launch([&s, &y], |[s, y]| {
        cuda.run(ops::LoraForward {
            x: x.tensor.view(),
            slices: &slices,
            dropout: adapted.dropout(),
            s: s.view_mut(),
            y: y.view_mut(),
        })
    })?;
    let parts = adapted.parts();
    let factors = adapted.factors(&parts);
    let dropped = Dropped { x: &x, dropout: adapted.dropout() };
    trial.check("s", &found_s, summed(dtype, shape.inputs), reference::lora_low(&dropped, &factors));
    trial.check("y", &found_y, rounded_twice(dtype, shape.inputs), reference::lora_out(&dropped, &factors, y.start()));
    Ok(())
}

/// ds is rounded before it is multiplied on.
fn backward(trial: &mut Trial, shape: Shape) -> Result<()> {
    let cuda = trial.cuda();
    let dtype = trial.compute();
    let adapted = Adapted::new(trial, shape)?;
    let dy = trial.normal(shape.tokens, shape.outputs, 1.0)?;
    let x = trial.normal(shape.tokens, shape.inputs, 1.0)?;
    let s = trial.normal(shape.tokens, adapted.ranks(), 1.0)?;
    let ds = trial.poisoned(dtype, shape.tokens, adapted.ranks());
    let dx = trial.starting(dtype, shape.tokens, shape.inputs, 1.0);
    let gradient = trial.starting(DType::F32, 1, adapted.flat.len(), 1.0);
    let slices = adapted.slices();
    let [_, found_dx, found_gradient] = trial.launch([&ds, &dx, &gradient], |[ds, dx, gradient]| {
        let gradients = Some(gradient.buffer_mut());
        cuda.run(ops::LoraBackward {
            dy: dy.tensor.view(),
            x: x.tensor.view(),
            s: s.tensor.view(),
            slices: &slices,
            dropout: adapted.dropout(),
            gradients,
            ds: ds.view_mut(),
            dx: dx.view_mut(),
        })
    })?;
    let parts = adapted.parts();
    let factors = adapted.factors(&parts);
    let dropped = Dropped { x: &x, dropout: adapted.dropout() };
    let formula = reference::lora_backward_input(&dy, &dropped, &factors, dx.start());
    trial.check("dx", &found_dx, rounded_twice(dtype, shape.outputs), formula);
    let formula = reference::lora_backward_factors(&dy, &dropped, &s, &factors, &adapted.places, gradient.start());
    trial.check("da, db", &found_gradient, rounded_twice(dtype, shape.outputs), formula);
    Ok(())
}
