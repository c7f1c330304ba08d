//! Every rule of the optimizers.

use half::bf16;

use super::{Case, shapes};
use crate::error::Result;
use crate::ops::{self, Backend, COEFFICIENTS, DType, StateRounding, UpdateRule};
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
            let shape = format!("{len}, {}", step.name);
            cases.push(Case::new("optimizer", shape.clone(), move |trial| update(trial, step, len)));
            cases.push(Case::new("optimizer with bf16 moments", shape, move |trial| moments(trial, step, len)));
        }
    }
    cases
}

/// The change of the weights is compared, not the weights, which a wrong update would hide in.
fn update(trial: &mut Trial, step: &'static Step, len: usize) -> Result<()> {
    let cuda = trial.cuda();
    let dtype = trial.compute();
    let coefficients = trial.changed(DType::F32, (1, COEFFICIENTS), |i, _| step.coefficients[i])?;
    let gradients = trial.normal_f32(1, len, 1.0)?;
    let start = trial.starting_with((1, len), |_, x| step.weights * x);
    let remainder_dtype = if dtype == DType::Bf16 { DType::Remainder16 } else { DType::F32 };
    let weights = trial.output(dtype, start.clone());
    let remainder = trial.output(remainder_dtype, start);
    // s0 is a moment, a point near the weights, or a sum of squares; s1 a sum of squares.
    let squares = matches!(step.rule, UpdateRule::Adagrad | UpdateRule::Adadelta);
    let s0 = trial.starting_with((1, len), move |_, x| if squares { 0.1 + x * x } else { x });
    let s1 = trial.starting_with((1, len), |_, x| 0.1 + x * x);
    let s0 = trial.output(DType::F32, s0);
    let s1 = trial.output(DType::F32, s1);
    let [found, found_rest, found_s0, found_s1] =
        trial.launch([&weights, &remainder, &s0, &s1], |[weights, remainder, s0, s1]| {
            let remainder = (dtype == DType::Bf16).then(|| remainder.view_mut());
            let mut states = vec![s0.view_mut(), s1.view_mut()];
            states.truncate(step.rule.states());
            cuda.run(ops::OptimizerUpdate {
                rule: step.rule,
                coefficients: coefficients.tensor.view(),
                weights: weights.view_mut(),
                remainder,
                gradients: gradients.tensor.view(),
                states,
                rounding: None,
            })
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

/// Place of the first element in a flat buffer that is longer than what 32 bits of groups of four can count.
const PLACE: usize = 1 << 35;
/// Seed (low word, high word), step and draw of the rounding.
const KEY: [u32; 4] = [17, 3, 5, 2];
/// Moments differ in the rounding alone, and in none but those whose f32 is within its own error of where the random bits
/// decide: one in ten thousand, by a spacing of bf16. Other bits for the rounding would be off by 3e-3.
const MOMENTS: Bound = Bound { few: 2e-3, many: 8e-4 };

/// A step with moments in bf16, and the states it leaves, with the bits of the rounding known.
fn moments(trial: &mut Trial, step: &'static Step, len: usize) -> Result<()> {
    if trial.compute() != DType::Bf16 {
        return Ok(());
    }
    let cuda = trial.cuda();
    let coefficients = trial.changed(DType::F32, (1, COEFFICIENTS), |i, _| step.coefficients[i])?;
    let gradients = trial.normal_f32(1, len, 1.0)?;
    let key = trial.integers(KEY.to_vec())?;
    let start = trial.starting_with((1, len), |_, x| step.weights * x);
    let weights = trial.output(DType::Bf16, start.clone());
    let remainder = trial.output(DType::Remainder16, start);
    let squares = matches!(step.rule, UpdateRule::Adagrad | UpdateRule::Adadelta);
    let dtypes = [0, 1].map(|index| step.rule.state_dtype(index, DType::Bf16));
    let held = move |index: usize, x: f32| if dtypes[index] == DType::Bf16 { bf16::from_f32(x).to_f32() } else { x };
    let s0 = trial.starting_with((1, len), move |_, x| held(0, if squares { 0.1 + x * x } else { x }));
    let s1 = trial.starting_with((1, len), move |_, x| held(1, 0.1 + x * x));
    let s0 = trial.output(dtypes[0], s0);
    let s1 = trial.output(dtypes[1], s1);
    let [found, found_rest, found_s0, found_s1] =
        trial.launch([&weights, &remainder, &s0, &s1], |[weights, remainder, s0, s1]| {
            let mut states = vec![s0.view_mut(), s1.view_mut()];
            states.truncate(step.rule.states());
            let c = coefficients.tensor.view();
            let g = gradients.tensor.view();
            let rounding = Some(StateRounding { key: key.tensor.view(), first: PLACE });
            cuda.run(ops::OptimizerUpdate {
                rule: step.rule,
                coefficients: c,
                weights: weights.view_mut(),
                remainder: Some(remainder.view_mut()),
                gradients: g,
                states,
                rounding,
            })
        })?;
    let c = step.coefficients.map(f64::from);
    let states = |place: usize| [weights.start(), s0.start(), s1.start()].map(|table| table.at(0, place));
    let expected = |place: usize| reference::update(step.rule, c, gradients.at(0, place), states(place));
    // Weights move by the states as they were computed, before they are rounded.
    let change: Vec<f64> = found.cols.iter().map(|&place| expected(place)[0] - weights.start().at(0, place)).collect();
    let after = joined(&found, &found_rest);
    let moved: Vec<f64> =
        found.cols.iter().zip(&after).map(|(&place, &w)| f64::from(w) - weights.start().at(0, place)).collect();
    trial.check_values("change of weights", &moved, &change, 0, Bound { few: 5.0 * step.bound, many: step.bound });
    for (index, (found, dtype)) in [found_s0, found_s1].iter().zip(dtypes).take(step.rule.states()).enumerate() {
        let rounded = |place: usize| {
            let value = expected(place)[1 + index];
            let bits = reference::rounding_bits(KEY, (PLACE + place) as u64, index);
            if dtype == DType::Bf16 { reference::rounded_at_random(value, bits) } else { value }
        };
        let bound = if dtype == DType::Bf16 { MOMENTS } else { rounded_once(dtype) };
        trial.check(&format!("s{index}"), found, bound, |_, cols| cols.iter().map(|&place| rounded(place)).collect());
    }
    Ok(())
}

/// bf16 weights and remainders as the f32 numbers that they are together.
fn joined(high: &Found, rest: &Found) -> Vec<f32> {
    let join = |(high, rest): (&f32, &f32)| f32::from_bits(high.to_bits().wrapping_add_signed(*rest as i32));
    high.values.iter().zip(&rest.values).map(join).collect()
}
