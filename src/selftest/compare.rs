//! How far a device's numbers are from the expected ones, and how far they may be.
//!
//! A relative norm alone would forgive one wrong element among many, so every element is also compared on its own.

use crate::ops::DType;

/// What one element may deviate, in units of the bound on the norm: the tails of rounding errors stay far below it, an element
/// that is wrong by a fraction of its size does not.
const ELEMENT: f64 = 10.0;

/// Nothing is computed, numbers are moved.
pub(super) const EXACT: f64 = 0.0;

/// One result of a few f32 operations, then rounded to what is stored: a bf16 number is at most 2⁻⁹ = 1.95e-3 from what
/// was rounded, relative to itself, and so is a norm of them. f32: some dozen roundings of 6e-8 each.
pub(super) const fn rounded_once(stored: DType) -> f64 {
    match stored {
        DType::Bf16 => 2e-3,
        _ => 1e-6,
    }
}

/// A sum over many products in f32, rounded once where it is stored. f32: over k = 14,336 summands the error grows like 6e-8 √(k/2).
pub(super) const fn summed(stored: DType) -> f64 {
    match stored {
        DType::Bf16 => 2e-3,
        _ => 1e-5,
    }
}

/// As [`summed`], of one operand that is itself rounded to the compute dtype on the way: another 2⁻⁹ in bf16.
pub(super) const fn rounded_twice(compute: DType) -> f64 {
    match compute {
        DType::Bf16 => 4e-3,
        _ => 1e-5,
    }
}

/// Several roundings on the way, and differences of rounded numbers (gradients of softmax): in bf16 what the project promises of every
/// kernel.
pub(super) const fn several_roundings(compute: DType) -> f64 {
    match compute {
        DType::Bf16 => 1e-2,
        _ => 1e-5,
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
            return Some(format!("{} elements are NaN: not written, or computed from what must not be read", self.not_written));
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
