//! Every rule of the optimizers.

use super::{Case, shapes};
use crate::error::Result;
use crate::ops::{self, COEFFICIENTS, DType, UpdateRule};
use crate::selftest::compare::{Bound, rounded_once};
use crate::selftest::reference::{self, Numbers};
use crate::selftest::trial::{Found, Trial};

/// A rule with coefficients as a run has them, but for a learning rate so large that an error of the update shows, and
/// weight decays that all do something.
struct Step {
    name: &'static str,
    rule: UpdateRule,
    coefficients: [f32; COEFFICIENTS],
    /// Standard deviation of the weights.
    weights: f32,
    /// Bound on the relative error of the weights' change.
    bound: f64,
}

const fn step(name: &'static str, rule: UpdateRule, coefficients: [f32; COEFFICIENTS]) -> Step {
    Step { name, rule, coefficients, weights: 1.0, bound: 1e-5 }
}

const STEPS: [Step; 13] = [
    step("adamw", UpdateRule::Adam, [0.1, 0.999, 1e-3, 1e-8, 0.02, 0.0, 0.3, 1.7, 0.0]),
    step("adam", UpdateRule::Adam, [0.1, 0.99, 1e-2, 1e-8, 0.0, 0.03, 0.3, 1.7, 0.0]),
    step("sgd, first step", UpdateRule::Sgd, [0.2, 0.9, 0.01, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]),
    step("sgd", UpdateRule::Sgd, [0.2, 0.9, 0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
    step("sgd, nesterov", UpdateRule::Sgd, [0.2, 0.9, 0.01, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
    step("adagrad", UpdateRule::Adagrad, [0.2, 1e-10, 0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
    step("adadelta", UpdateRule::Adadelta, [0.7, 0.9, 0.1, 1e-6, 0.01, 0.0, 0.0, 0.0, 0.0]),
    step("nadam", UpdateRule::NAdam, [0.1, 0.999, 1e-3, 1e-8, 0.01, 20.0, 0.05, 0.2, 0.0]),
    step("radam, rectified", UpdateRule::RAdam, [0.1, 0.999, 1e-3, 1e-8, 0.01, 0.2, 0.0, 0.0, 0.0]),
    step("radam, plain", UpdateRule::RAdam, [0.1, 0.999, 1e-3, 1e-8, 0.01, 0.0, 0.3, 0.0, 0.0]),
    step(
        "schedule-free, first step",
        UpdateRule::ScheduleFreeAdamW,
        [0.99, 1e-2, 1e-8, 0.01, 1.0, 0.2, -0.2, 50.0, 1.0],
    ),
    step("schedule-free", UpdateRule::ScheduleFreeAdamW, [0.99, 1e-2, 1e-8, 0.01, 0.2, 0.2, -0.05, 5.0, 0.0]),
    // A learning rate that bf16 weights alone would swallow: 2e-6 on weights of 0.02. The weights' own f32 rounding is
    // up to 1e-9, 5e-4 of the change.
    Step {
        weights: 0.02,
        bound: 1e-3,
        ..step("adamw, rate 2e-6", UpdateRule::Adam, [0.1, 0.999, 1e-3, 1e-8, 0.0, 0.0, 2e-6, 1.7, 0.0])
    },
];

pub(super) fn cases(full: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for len in shapes(full, &[23, 5001], &[40_000_001]) {
        for step in &STEPS {
            let case = Case::new("optimizer", format!("{len}, {}", step.name), move |trial| update(trial, step, len));
            cases.push(case);
        }
    }
    cases
}

/// The change of the weights is compared, not the weights, which a wrong update would hide in.
fn update(trial: &mut Trial, step: &'static Step, len: usize) -> Result<()> {
    let (cuda, dtype) = (trial.cuda(), trial.compute());
    let coefficients = trial.changed(DType::F32, (1, COEFFICIENTS), |i, _| step.coefficients[i])?;
    let gradients = trial.normal_f32(1, len, 1.0)?;
    let start = trial.starting_with((1, len), |_, x| step.weights * x);
    let remainder_dtype = if dtype == DType::Bf16 { DType::Remainder16 } else { DType::F32 };
    let (weights, remainder) = (trial.output(dtype, start.clone()), trial.output(remainder_dtype, start));
    // s0 is a moment, a point near the weights, or a sum of squares; s1 a sum of squares.
    let squares = matches!(step.rule, UpdateRule::Adagrad | UpdateRule::Adadelta);
    let s0 = trial.starting_with((1, len), move |_, x| if squares { 0.1 + x * x } else { x });
    let s1 = trial.starting_with((1, len), |_, x| 0.1 + x * x);
    let (s0, s1) = (trial.output(DType::F32, s0), trial.output(DType::F32, s1));
    let [found, found_rest, found_s0, found_s1] =
        trial.launch([&weights, &remainder, &s0, &s1], |[weights, remainder, s0, s1]| {
            let remainder = (dtype == DType::Bf16).then(|| remainder.view_mut());
            let mut states = vec![s0.view_mut(), s1.view_mut()];
            states.truncate(step.rule.states());
            let (c, g) = (coefficients.tensor.view(), gradients.tensor.view());
            ops::optimizer_update(cuda, step.rule, c, weights.view_mut(), remainder, g, &mut states)
        })?;
    let c = step.coefficients.map(f64::from);
    let states = |place: usize| [weights.start(), s0.start(), s1.start()].map(|table| table.at(0, place));
    let expected = |place: usize| reference::update(step.rule, c, gradients.at(0, place), states(place));
    let change: Vec<f64> = found.cols.iter().map(|&place| expected(place)[0] - weights.start().at(0, place)).collect();
    let after = if dtype == DType::Bf16 { joined(&found, &found_rest) } else { found.values.clone() };
    let place_and_weight = found.cols.iter().zip(&after);
    let moved: Vec<f64> = place_and_weight.map(|(&place, &w)| f64::from(w) - weights.start().at(0, place)).collect();
    trial.check_values("change of weights", &moved, &change, 0, Bound { few: 5.0 * step.bound, many: step.bound });
    let bound = rounded_once(DType::F32);
    trial.check("s0", &found_s0, bound, |_, cols| cols.iter().map(|&place| expected(place)[1]).collect());
    if step.rule.states() == 2 {
        trial.check("s1", &found_s1, bound, |_, cols| cols.iter().map(|&place| expected(place)[2]).collect());
    }
    Ok(())
}

/// bf16 weights and remainders as the f32 numbers that they are together.
fn joined(high: &Found, rest: &Found) -> Vec<f32> {
    let join = |(high, rest): (&f32, &f32)| f32::from_bits(high.to_bits().wrapping_add_signed(*rest as i32));
    high.values.iter().zip(&rest.values).map(join).collect()
}
