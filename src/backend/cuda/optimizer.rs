//! Launcher of the optimizers (`kernels/optimizer.cu`).

use super::element::{FLAT_THREADS, aligned, flag, flat_blocks, stored_as};
use super::{Argument, Cuda, Place, optional};
use crate::error::{Error, Result};
use crate::ops::{DType, Matrix, MatrixMut, UpdateRule};

/// Elements that a thread updates at once, where alignment allows.
const WIDTH: usize = 4;
/// Blocks that are resident on a multiprocessor, with at most 64 registers a thread.
const RESIDENT: u32 = 4;

/// A rule's part of its kernel's name.
fn rule_name(rule: UpdateRule) -> &'static str {
    match rule {
        UpdateRule::Adam => "adam",
        UpdateRule::Sgd => "sgd",
        UpdateRule::Adagrad => "adagrad",
        UpdateRule::Adadelta => "adadelta",
        UpdateRule::NAdam => "nadam",
        UpdateRule::RAdam => "radam",
        UpdateRule::ScheduleFreeAdamW => "schedule_free_adamw",
    }
}

pub(super) fn update(
    cuda: &Cuda,
    rule: UpdateRule,
    coefficients: Matrix<Cuda>,
    weights: MatrixMut<Cuda>,
    remainder: Option<MatrixMut<Cuda>>,
    gradients: Matrix<Cuda>,
    states: &mut [MatrixMut<Cuda>],
) -> Result<()> {
    const NAME: &str = "optimizer_update";
    let suffix = match (weights.dtype(), remainder.as_ref().map(Place::dtype)) {
        (DType::F32, None) => "f32",
        (DType::Bf16, Some(DType::Remainder16)) => "bf16",
        (weights, remainder) => {
            let problem = format!("{NAME}: weights of {weights:?} with a remainder of {remainder:?}");
            return Err(Error::Device(problem));
        }
    };
    stored_as(NAME, &[("coefficients", coefficients.dtype()), ("gradients", gradients.dtype())], DType::F32)?;
    for state in states.iter() {
        stored_as(NAME, &[("a state", state.dtype())], DType::F32)?;
    }
    let n = weights.len();
    if n == 0 {
        return Ok(());
    }
    let mut floats = vec![gradients.address()];
    floats.extend(states.iter().map(Place::address));
    let mut stored = vec![weights.address()];
    stored.extend(remainder.iter().map(Place::address));
    let vectorised = aligned(&floats, 16) && aligned(&stored, (WIDTH * weights.dtype().bytes()) as u64);
    let arguments = [
        coefficients.pointer(),
        weights.pointer(),
        optional(remainder.as_ref()),
        gradients.pointer(),
        optional(states.first()),
        optional(states.get(1)),
        Argument::U64(n as u64),
        flag(vectorised),
    ];
    let grid = [flat_blocks(cuda, if vectorised { n.div_ceil(WIDTH) } else { n }, RESIDENT), 1, 1];
    cuda.launch(&format!("optimizer_{}_{suffix}", rule_name(rule)), grid, FLAT_THREADS, 0, &arguments)
}
