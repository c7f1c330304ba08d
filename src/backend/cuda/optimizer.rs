//! Launcher of the optimizers (`kernels/optimizer.cu`).

use super::element::{FLAT_THREADS, flag, flat_blocks, stored_as};
use super::{Argument, Cuda, Place, optional};
use crate::error::{Error, Result};
use crate::ops::{DType, Matrix, MatrixMut, StateRounding, UpdateRule};

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

#[allow(clippy::too_many_arguments)]
pub(super) fn update(
    cuda: &Cuda,
    rule: UpdateRule,
    coefficients: Matrix<Cuda>,
    weights: MatrixMut<Cuda>,
    remainder: Option<MatrixMut<Cuda>>,
    gradients: Matrix<Cuda>,
    states: &mut [MatrixMut<Cuda>],
    rounding: Option<StateRounding<Cuda>>,
) -> Result<()> {
    const NAME: &str = "optimizer_update";
    let suffix = match (weights.dtype(), remainder.as_ref().map(Place::dtype), &rounding) {
        (DType::F32, None, None) => "f32",
        (DType::Bf16, Some(DType::Remainder16), None) => "bf16",
        (DType::Bf16, Some(DType::Remainder16), Some(_)) => "bf16_moments",
        (weights, remainder, rounding) => {
            let moments = if rounding.is_some() { DType::Bf16 } else { DType::F32 };
            let problem =
                format!("{NAME}: weights of {weights:?} with a remainder of {remainder:?} and moments of {moments:?}");
            return Err(Error::Device(problem));
        }
    };
    stored_as(NAME, &[("coefficients", coefficients.dtype()), ("gradients", gradients.dtype())], DType::F32)?;
    let moments = if rounding.is_some() { DType::Bf16 } else { DType::F32 };
    for (index, state) in states.iter().enumerate() {
        stored_as(NAME, &[("a state", state.dtype())], rule.state_dtype(index, moments))?;
    }
    let n = weights.len();
    if n == 0 {
        return Ok(());
    }
    let vector = |operand: &dyn Place| operand.address().is_multiple_of((WIDTH * operand.dtype().bytes()) as u64);
    let operands = states.iter().map(|state| state as &dyn Place).chain(remainder.iter().map(|r| r as &dyn Place));
    let groups = rounding.as_ref().is_none_or(|rounding| rounding.first.is_multiple_of(WIDTH));
    let vectorised = vector(&weights) && vector(&gradients) && operands.into_iter().all(vector) && groups;
    let mut arguments = vec![
        coefficients.pointer(),
        weights.pointer(),
        optional(remainder.as_ref()),
        gradients.pointer(),
        optional(states.first()),
        optional(states.get(1)),
        Argument::U64(n as u64),
        flag(vectorised),
    ];
    if let Some(StateRounding { key, first }) = &rounding {
        stored_as(NAME, &[("the rounding's key", key.dtype())], DType::U32)?;
        arguments.extend([key.pointer(), Argument::U64(*first as u64)]);
    }
    let grid = [flat_blocks(cuda, if vectorised { n.div_ceil(WIDTH) } else { n }, RESIDENT), 1, 1];
    cuda.launch(&format!("optimizer_{}_{suffix}", rule_name(rule)), grid, FLAT_THREADS, 0, &arguments)
}
