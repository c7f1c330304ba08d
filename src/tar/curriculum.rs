//! How long simulated attacks are, and how that grows over a run.

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::settings::{at_least, at_most};

/// More outer steps than any run takes.
const MAX_STEPS: u64 = 1 << 32;

/// Attacks begin short and grow: at outer step n they have `from` + (K − `from`) · n / `steps` inner steps, rounded up to a
/// multiple of `tr_every`, and K from outer step `steps` on. K is each adversary's own, and no attack is longer than it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Curriculum {
    /// Inner steps at the first outer step.
    pub from: u64,
    /// Outer steps until attacks have their whole length.
    pub steps: u64,
}

/// How long an attack is, and when tamper-resistance gradients are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttackLength {
    /// K.
    pub inner_steps: u64,
    /// A tamper-resistance gradient follows every n-th inner step.
    pub tr_every: u64,
}

impl AttackLength {
    /// The tamper-resistance gradients of an attack.
    pub fn points(self) -> u64 {
        self.inner_steps / self.tr_every
    }
}

impl Curriculum {
    /// The length at outer step `outer` of an attack whose whole length is `whole`.
    pub fn length(&self, whole: AttackLength, outer: u64) -> AttackLength {
        let AttackLength { inner_steps, tr_every } = whole;
        if outer >= self.steps || inner_steps <= self.from {
            return whole;
        }
        let grown = u128::from(inner_steps - self.from) * u128::from(outer) / u128::from(self.steps);
        let reached = self.from + grown as u64;
        AttackLength { inner_steps: reached.next_multiple_of(tr_every).min(inner_steps), tr_every }
    }

    /// The mean of `of` over the lengths of the first `outer_steps` outer steps.
    pub fn mean(&self, whole: AttackLength, outer_steps: u64, of: impl Fn(AttackLength) -> f64) -> f64 {
        let growing = self.steps.min(outer_steps);
        // Lengths are constant over long runs of outer steps where there are more outer steps than inner ones.
        let samples = growing.min(1 << 16);
        let at = |sample: u64| (u128::from(growing) * u128::from(sample) / u128::from(samples)) as u64;
        let sum: f64 = (0..samples).map(|sample| of(self.length(whole, at(sample)))).sum();
        let share = growing as f64 / outer_steps.max(1) as f64;
        let grown = (1.0 - share) * of(whole);
        if samples == 0 { grown } else { share * sum / samples as f64 + grown }
    }

    /// Fails where a number is out of its range; `key` is the place of the table.
    pub(crate) fn check(&self, key: &str) -> Result<()> {
        at_least(&format!("{key}.from"), self.from, 1)?;
        at_least(&format!("{key}.steps"), self.steps, 1)?;
        at_most(&format!("{key}.steps"), self.steps, MAX_STEPS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attacks_grow_to_their_whole_length_in_multiples_that_end_with_a_gradient() {
        let curriculum = Curriculum { from: 8, steps: 10 };
        let whole = AttackLength { inner_steps: 80, tr_every: 20 };
        let lengths: Vec<u64> = (0..12).map(|outer| curriculum.length(whole, outer).inner_steps).collect();
        assert_eq!(lengths, [20, 20, 40, 40, 40, 60, 60, 60, 80, 80, 80, 80]);
        assert!((0..12).all(|outer| curriculum.length(whole, outer).points() >= 1));
        let short = AttackLength { inner_steps: 6, tr_every: 3 };
        assert_eq!(curriculum.length(short, 0), short);
        let odd = AttackLength { inner_steps: 10, tr_every: 4 };
        assert_eq!(curriculum.length(odd, 9), odd, "no longer than the whole");
    }

    #[test]
    fn a_mean_is_the_average_over_the_outer_steps() {
        let curriculum = Curriculum { from: 1, steps: 7 };
        let whole = AttackLength { inner_steps: 24, tr_every: 4 };
        for outer_steps in [3, 7, 20] {
            let all = (0..outer_steps).map(|outer| curriculum.length(whole, outer).inner_steps as f64);
            let expected = all.sum::<f64>() / outer_steps as f64;
            let mean = curriculum.mean(whole, outer_steps, |length| length.inner_steps as f64);
            assert!((mean - expected).abs() < 1e-12, "{mean} is not {expected}");
        }
        let long = Curriculum { from: 1, steps: 1 << 32 }.mean(whole, 1 << 40, |length| length.inner_steps as f64);
        assert!((long - 24.0).abs() < 0.1, "{long}");
    }
}
