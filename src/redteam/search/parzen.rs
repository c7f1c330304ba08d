//! The tree-structured Parzen estimator of one hyperparameter (Bergstra et al. 2011, "Algorithms for hyper-parameter
//! optimization", section 4), with the settings of Optuna's default sampler: the best γ = min(⌈0.1 n⌉, 25) of n trials
//! against the rest, 24 candidates, kernels as wide as the way to their farther neighbour, a prior as one more kernel.
//! All trials weigh the same, whatever their age.

use crate::random::{Random, weighted};

/// What a hyperparameter may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::redteam) enum Dimension {
    /// A number from the first to the second.
    Linear(f64, f64),
    /// A number from the first to the second, both above 0, on a logarithmic scale.
    Log(f64, f64),
    /// The same, a whole number.
    Whole(u64, u64),
    /// One of so many choices, as its index.
    Choice(usize),
}

/// Candidates of which the one most like the good trials is proposed.
const CANDIDATES: usize = 24;
/// Trials that count as good, at most.
const MOST_GOOD: usize = 25;

/// How many of `trials` count as good.
pub(super) fn good_trials(trials: usize) -> usize {
    trials.div_ceil(10).min(MOST_GOOD)
}

impl Dimension {
    /// A value drawn from the prior.
    pub(super) fn random(self, random: &mut Random) -> f64 {
        match self {
            Self::Choice(count) => random.below(count.max(1)) as f64,
            _ => {
                let (low, high) = self.range();
                self.value(low + random.uniform() * (high - low))
            }
        }
    }

    /// A value that the estimator proposes from (value, score) of finished trials; higher scores are better.
    pub(super) fn propose(self, trials: &[(f64, f64)], random: &mut Random) -> f64 {
        if trials.is_empty() {
            return self.random(random);
        }
        let mut order: Vec<usize> = (0..trials.len()).collect();
        // A stable sort: of equal scores the earlier trial is the better one.
        order.sort_by(|&a, &b| trials[b].1.total_cmp(&trials[a].1));
        let good = good_trials(trials.len());
        let values = |part: &[usize]| part.iter().map(|&index| trials[index].0).collect::<Vec<f64>>();
        let (good, bad) = (values(&order[..good]), values(&order[good..]));
        match self {
            Self::Choice(count) => propose_choice(count, &good, &bad, random),
            _ => {
                let (low, high) = self.range();
                let inside =
                    |values: Vec<f64>| Mixture::new(values.iter().map(|v| self.place(*v)).collect(), low, high);
                let good = inside(good);
                let bad = inside(bad);
                let candidates = (0..CANDIDATES).map(|_| good.draw(random));
                let scored = candidates.map(|x| (good.log_density(x) - bad.log_density(x), x));
                let best = scored.reduce(|best, next| if next.0 > best.0 { next } else { best });
                self.value(best.map_or(low, |(_, x)| x))
            }
        }
    }

    /// The range of the places of a number; a whole number has half a unit around it.
    pub(super) fn range(self) -> (f64, f64) {
        match self {
            Self::Linear(low, high) => (low, high),
            Self::Log(low, high) => (low.ln(), high.ln()),
            Self::Whole(low, high) => ((low as f64 - 0.5).ln(), (high as f64 + 0.5).ln()),
            Self::Choice(count) => (0.0, count as f64),
        }
    }

    /// Where a value lies on the scale of the dimension.
    pub(super) fn place(self, value: f64) -> f64 {
        match self {
            Self::Log(..) | Self::Whole(..) => value.ln(),
            Self::Linear(..) | Self::Choice(_) => value,
        }
    }

    /// The value at a place.
    pub(super) fn value(self, place: f64) -> f64 {
        match self {
            Self::Linear(low, high) => place.clamp(low, high),
            Self::Log(low, high) => place.exp().clamp(low, high),
            Self::Whole(low, high) => place.exp().round().clamp(low as f64, high as f64),
            Self::Choice(_) => place,
        }
    }
}

/// A choice by its counts among the good and the bad, each with one more as the prior.
fn propose_choice(count: usize, good: &[f64], bad: &[f64], random: &mut Random) -> f64 {
    let shares = |values: &[f64]| -> Vec<f64> {
        let mut counts = vec![1.0; count];
        for value in values {
            if let Some(count) = counts.get_mut(*value as usize) {
                *count += 1.0;
            }
        }
        let total: f64 = counts.iter().sum();
        counts.iter().map(|count| count / total).collect()
    };
    let good = shares(good);
    let bad = shares(bad);
    let candidates = (0..CANDIDATES).filter_map(|_| weighted(random, good.iter().copied()));
    let ratio = |choice: usize| good[choice] / bad[choice];
    let best = candidates.reduce(|best, next| if ratio(next) > ratio(best) { next } else { best });
    best.unwrap_or(0) as f64
}

/// A normal distribution that is truncated to a range.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernel {
    /// Where it is highest; a place in the range.
    mean: f64,
    /// Its standard deviation before it is truncated; 0 where the range is one place.
    deviation: f64,
    /// Its density is exp(−z²/2) over this and √(2π).
    divisor: f64,
}

impl Kernel {
    pub(super) fn new(mean: f64, deviation: f64, (low, high): (f64, f64)) -> Self {
        let z = |at: f64| (at - mean) / deviation;
        let divisor = if deviation == 0.0 { 1.0 } else { deviation * normal_share(z(low), z(high)) };
        Self { mean, deviation, divisor }
    }

    pub(super) fn draw(self, (low, high): (f64, f64), random: &mut Random) -> f64 {
        // The mean lies in the range, so that a third of the draws do at least.
        loop {
            let x = self.mean + self.deviation * random.normal();
            if (low..=high).contains(&x) || self.deviation == 0.0 {
                return x.clamp(low, high);
            }
        }
    }

    /// √(2π) times the density at `x`.
    fn density(self, x: f64) -> f64 {
        let z = self.z(x);
        (-0.5 * z * z).exp() / self.divisor
    }

    /// The logarithm of √(2π) times the density at `x`, also where the density is below every f64.
    pub(super) fn log_density(self, x: f64) -> f64 {
        let z = self.z(x);
        -0.5 * z * z - self.divisor.ln()
    }

    fn z(self, x: f64) -> f64 {
        if self.deviation == 0.0 { 0.0 } else { (x - self.mean) / self.deviation }
    }
}

/// A mixture of kernels of equal weights.
struct Mixture {
    kernels: Vec<Kernel>,
    range: (f64, f64),
}

impl Mixture {
    fn new(mut means: Vec<f64>, low: f64, high: f64) -> Self {
        let width = high - low;
        let prior = (low + high) / 2.0;
        means.push(prior);
        means.sort_by(f64::total_cmp);
        let narrowest = width / (1 + means.len()).min(100) as f64;
        let prior_at = means.iter().position(|mean| *mean == prior);
        let kernel = |(index, &mean): (usize, &f64)| {
            if Some(index) == prior_at || means.len() == 1 {
                return Kernel::new(mean, width, (low, high));
            }
            let left = index.checked_sub(1).and_then(|i| means.get(i)).map_or(0.0, |left| mean - left);
            let right = means.get(index + 1).map_or(0.0, |right| right - mean);
            Kernel::new(mean, left.max(right).clamp(narrowest, width), (low, high))
        };
        let kernels = means.iter().enumerate().map(kernel).collect();
        Self { kernels, range: (low, high) }
    }

    fn draw(&self, random: &mut Random) -> f64 {
        self.kernels[random.below(self.kernels.len())].draw(self.range, random)
    }

    fn log_density(&self, x: f64) -> f64 {
        let total: f64 = self.kernels.iter().map(|kernel| kernel.density(x)).sum();
        (total / self.kernels.len() as f64).max(f64::MIN_POSITIVE).ln()
    }
}

/// The share of a standard normal distribution between two points around 0.
fn normal_share(low: f64, high: f64) -> f64 {
    let upper = |z: f64| 0.5 * erfc(z / std::f64::consts::SQRT_2);
    (upper(low) - upper(high)).max(f64::MIN_POSITIVE)
}

/// 1 − erf(x), to 1.2e-7 of its value (the Chebyshev fit of Numerical Recipes, section 6.2).
fn erfc(x: f64) -> f64 {
    const COEFFICIENTS: [f64; 10] = [
        -1.26551223,
        1.00002368,
        0.37409196,
        0.09678418,
        -0.18628806,
        0.27886807,
        -1.13520398,
        1.48851587,
        -0.82215223,
        0.17087277,
    ];
    let t = 1.0 / (1.0 + 0.5 * x.abs());
    let polynomial = COEFFICIENTS.iter().rev().fold(0.0, |sum, coefficient| sum * t + coefficient);
    let tail = t * (polynomial - x * x).exp();
    if x >= 0.0 { tail } else { 2.0 - tail }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;

    #[test]
    fn the_normal_distribution_has_its_known_shares() {
        // Shares within 1, 2 and 3 deviations; one side.
        for (z, share) in [(1.0, 0.682689492), (2.0, 0.954499736), (3.0, 0.997300204)] {
            assert!((normal_share(-z, z) - share).abs() < 5e-7, "{z}");
        }
        assert!((normal_share(0.0, 40.0) - 0.5).abs() < 1e-7);
    }

    /// A mixture's density has the integral 1 over its range, whatever is cut off.
    #[test]
    fn a_truncated_mixture_is_a_distribution() {
        let mixture = Mixture::new(vec![0.1, 0.15, 2.9], 0.0, 3.0);
        let cells = 30_000;
        let sum: f64 = (0..cells).map(|i| mixture.log_density((i as f64 + 0.5) * 3.0 / cells as f64).exp()).sum();
        // The densities leave out the factor 1/√(2π) that both mixtures have.
        let integral = sum * 3.0 / cells as f64 / (2.0 * std::f64::consts::PI).sqrt();
        assert!((integral - 1.0).abs() < 1e-4, "{integral}");
    }

    #[test]
    fn proposals_stay_in_range_and_follow_the_good_trials() {
        let mut random = Random::new(1, Stream::RedTeam, 0, 99);
        let lr = Dimension::Log(1e-6, 1e-2);
        // Scores peak at 1e-4.
        let trials: Vec<(f64, f64)> =
            (0..40).map(|_| lr.random(&mut random)).map(|x| (x, -(x / 1e-4).ln().abs())).collect();
        let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
        let distance = |x: f64| (x / 1e-4).ln().abs();
        let proposed: Vec<f64> = (0..200).map(|_| lr.propose(&trials, &mut random)).collect();
        assert!(proposed.iter().all(|x| (1e-6..=1e-2).contains(x)));
        let near = mean(proposed.into_iter().map(distance).collect());
        let far = mean((0..200).map(|_| distance(lr.random(&mut random))).collect());
        assert!(near < 0.5 * far, "{near} is not near, {far}");
        let steps = Dimension::Whole(3, 5);
        for _ in 0..200 {
            let value = steps.propose(&[(3.0, 1.0), (5.0, 0.0)], &mut random);
            assert!([3.0, 4.0, 5.0].contains(&value), "{value}");
        }
        assert_eq!(Dimension::Log(2e-5, 2e-5).propose(&[(2e-5, 1.0)], &mut random), 2e-5);
        let trials: Vec<(f64, f64)> = (0..30).map(|i| (f64::from(i % 3), f64::from(u8::from(i % 3 == 2)))).collect();
        let choices: Vec<f64> = (0..50).map(|_| Dimension::Choice(3).propose(&trials, &mut random)).collect();
        assert!(choices.iter().filter(|c| **c == 2.0).count() > 40, "{choices:?}");
    }
}
