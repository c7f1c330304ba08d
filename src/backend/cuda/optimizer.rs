//! Launcher of the optimizers (`kernels/optimizer.cu`).

use super::element::{FLAT_THREADS, flag, flat_blocks};
use super::{Argument, Cuda, Place, optional};
use crate::error::Result;
use crate::ops::{Checked, DType, Execute, OptimizerUpdate, StateRounding, UpdateRule};

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

impl Execute<OptimizerUpdate<'_, Cuda>> for Cuda {
    fn execute(&self, checked: Checked<OptimizerUpdate<Cuda>>) -> Result<()> {
        let OptimizerUpdate { rule, coefficients, weights, remainder, gradients, states, rounding } =
            checked.operands();
        let suffix = match (weights.dtype(), &rounding) {
            (DType::F32, _) => "f32",
            (_, None) => "bf16",
            (_, Some(_)) => "bf16_moments",
        };
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
            arguments.extend([key.pointer(), Argument::U64(*first as u64)]);
        }
        let grid = [flat_blocks(self, if vectorised { n.div_ceil(WIDTH) } else { n }, RESIDENT), 1, 1];
        self.launch(&format!("optimizer_{}_{suffix}", rule_name(rule)), grid, FLAT_THREADS, 0, &arguments)
    }
}
