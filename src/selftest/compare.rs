//! How far a device's numbers are from the expected ones, and how far they may be.
//!
//! A relative norm alone would forgive one wrong element among many, so every element is also compared on its own.

use crate::ops::DType;

/// What one element may deviate, in units of the bound on the norm: the tails of rounding errors stay far below it, an element
/// that is wrong by a fraction of its size does not.
const ELEMENT: f64 = 10.0;

/// From so many compared elements on, rounding errors average out.
const MANY: usize = 100;

/// What the relative norm of the differences may be: the largest possible rounding error for a few elements, and little more than the
/// typical one for many.
///
/// A bf16 number is at most 2⁻⁸ = 3.9e-3 from what was rounded to it, relative to itself, and 1.7e-3 in the root mean square, where
/// truncation would give 3.4e-3.
#[derive(Clone, Copy)]
pub(super) struct Bound {
    pub few: f64,
    pub many: f64,
}

impl Bound {
    /// The same for any number of elements.
    pub const fn fixed(bound: f64) -> Self {
        Self { few: bound, many: bound }
    }

    /// For this number of elements.
    pub fn of(self, elements: usize) -> f64 {
        if elements < MANY { self.few } else { self.many }
    }
}

/// Nothing is computed, numbers are moved.
pub(super) const EXACT: Bound = Bound::fixed(0.0);

/// A few f32 operations, then one rounding to what is stored. f32: a dozen roundings of at most 6e-8 each, and a GPU's
/// exponentials, roots and quotients are good to about 2e-7.
pub(super) const fn rounded_once(stored: DType) -> Bound {
    match stored {
        DType::Bf16 => Bound { few: 4e-3, many: 2.5e-3 },
        _ => Bound::fixed(3e-6),
    }
}

/// A sum over `summands` products in f32, rounded once where it is stored. f32: the error of a sum in order grows like
/// 4e-8 √summands, relative to its result.
pub(super) fn summed(stored: DType, summands: usize) -> Bound {
    match stored {
        DType::Bf16 => rounded_once(stored),
        _ => Bound::fixed((1e-7 * (summands as f64).sqrt()).max(1e-5)),
    }
}

/// As [`summed`], of an operand that is itself rounded to the compute dtype on the way. In bf16 the errors of both
/// roundings add up to 2.4e-3 in the root mean square.
pub(super) fn rounded_twice(compute: DType, summands: usize) -> Bound {
    match compute {
        DType::Bf16 => Bound { few: 8e-3, many: 4e-3 },
        _ => summed(compute, summands),
    }
}

/// Gradients of a softmax in blocks: probabilities, scores' gradients and results are rounded, and the output that forward rounded enters
/// a difference.
pub(super) fn several_roundings(compute: DType) -> Bound {
    match compute {
        DType::Bf16 => Bound { few: 1e-2, many: 5e-3 },
        _ => Bound::fixed(1e-5),
    }
}

/// Products of a softmax's rounded gradient, whose positive and negative parts cancel each other, but not their roundings: in bf16 what
/// the project promises of every kernel.
pub(super) fn cancelling(compute: DType, summands: usize) -> Bound {
    match compute {
        DType::Bf16 => Bound::fixed(1e-2),
        _ => summed(compute, summands),
    }
}

/// A comparison of many numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// ‖found − expected‖ / ‖expected‖; infinite where a number is not finite but should be.
    pub error: f64,
    /// Largest |found − expected| / max(|expected|, root mean square of expected).
    pub worst: f64,
    /// Place of that element among the compared ones, with what was found and expected there.
    pub place: Option<(usize, f64, f64)>,
    /// Elements that are not numbers, anywhere in the output.
    pub not_written: usize,
}

/// Compares element by element. An expected infinity must be found exactly.
pub fn compare(found: &[f64], expected: &[f64]) -> Comparison {
    assert_eq!(found.len(), expected.len(), "a comparison of two lengths");
    let finite = || found.iter().zip(expected).filter(|(_, e)| e.is_finite());
    let square = |x: f64| x * x;
    let norm: f64 = finite().map(|(_, &e)| square(e)).sum();
    let root_mean_square = (norm / finite().count().max(1) as f64).sqrt();
    let difference: f64 = finite().map(|(&f, &e)| square(f - e)).sum();
    let deviation = |(&f, &e): (&f64, &f64)| match f == e {
        true => 0.0,
        false if !f.is_finite() || !e.is_finite() => f64::INFINITY,
        false => (f - e).abs() / e.abs().max(root_mean_square),
    };
    let deviations = found.iter().zip(expected).map(deviation).enumerate();
    let worst = deviations.max_by(|(_, a), (_, b)| a.total_cmp(b)).filter(|(_, deviation)| *deviation > 0.0);
    let deviation = worst.map_or(0.0, |(_, deviation)| deviation);
    let error = match difference == 0.0 {
        _ if deviation == f64::INFINITY => f64::INFINITY,
        true => 0.0,
        false => (difference / norm).sqrt(),
    };
    let place = worst.map(|(at, _)| (at, found[at], expected[at]));
    let not_written = found.iter().filter(|f| f.is_nan()).count();
    Comparison { error, worst: deviation, place, not_written }
}

impl Comparison {
    /// What is wrong, if anything is.
    pub fn problem(&self, bound: f64) -> Option<String> {
        if self.not_written > 0 {
            return Some(format!(
                "{} elements are NaN: not written, or computed from what must not be read",
                self.not_written
            ));
        }
        // Written so that NaN fails.
        if self.error <= bound && self.worst <= ELEMENT * bound {
            return None;
        }
        let at = self.place.map_or(String::new(), |(at, found, expected)| {
            format!("; worst at sample {at}: {found:e} instead of {expected:e}")
        });
        Some(format!("relative error {:.2e}, worst element {:.2e}{at}", self.error, self.worst))
    }
}
