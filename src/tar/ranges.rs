//! What adversaries draw from: learning rates, and shares of a mixture.

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::random::Random;
use crate::settings::{fault, fraction, positive};
use crate::training::Source;

/// Learning rates, of which each attack draws one.
#[derive(Clone, Debug, PartialEq)]
pub enum LearningRates {
    /// One of a list, each as likely as the others.
    List(Vec<f64>),
    /// Any between two; the logarithm is uniform.
    Range(RateRange),
}

/// `{ from = 1e-4, to = 3e-3 }`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateRange {
    /// The lowest.
    pub from: f64,
    /// The highest.
    pub to: f64,
}

impl LearningRates {
    /// The lowest and the highest of a range, or all of a list.
    pub fn ends(&self) -> Vec<f64> {
        match self {
            Self::List(rates) => rates.clone(),
            Self::Range(RateRange { from, to }) => vec![*from, *to],
        }
    }

    /// One of them; none where the list is empty.
    pub(super) fn draw(&self, random: &mut Random) -> Option<f64> {
        match self {
            Self::List(rates) => rates.get(random.below(rates.len().max(1))).copied(),
            Self::Range(RateRange { from, to }) => Some(from * (to / from).powf(random.uniform())),
        }
    }

    /// Fails where there is none, or a range is none; `key` is the setting.
    pub(crate) fn check(&self, key: &str) -> Result<()> {
        match self {
            Self::List(rates) if rates.is_empty() => Err(fault(key, "has no entry", "give at least one learning rate")),
            Self::List(rates) => rates.iter().try_for_each(|&rate| positive(key, rate)),
            Self::Range(RateRange { from, to }) => {
                positive(&format!("{key}.from"), *from)?;
                positive(&format!("{key}.to"), *to)?;
                in_order(key, *from, *to)
            }
        }
    }
}

/// `{ of = "forget", from = 0.2, to = 0.8 }`: the share of one stream of a mixture is drawn uniformly for each attack. The
/// other streams divide the rest as their weights say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareRange {
    /// The stream.
    pub of: String,
    /// Its least share of the steps, from 0 to 1.
    pub from: f64,
    /// Its largest share.
    pub to: f64,
}

impl ShareRange {
    /// The share that is expected.
    pub fn mean(&self) -> f64 {
        0.5 * (self.from + self.to)
    }

    pub(super) fn draw(&self, random: &mut Random) -> f64 {
        self.from + (self.to - self.from) * random.uniform()
    }

    /// The weights of a mixture in which the stream has this share of all.
    pub fn weights<S: AsRef<str> + Clone>(&self, parts: &[(S, f64)], share: f64) -> Vec<(S, f64)> {
        let is_it = |name: &S| name.as_ref() == self.of;
        let rest: f64 = parts.iter().filter(|(name, _)| !is_it(name)).map(|(_, weight)| weight).sum();
        let weight = |name: &S, weight: f64| if is_it(name) { share } else { (1.0 - share) * weight / rest };
        parts.iter().map(|(name, old)| (name.clone(), weight(name, *old))).collect()
    }

    /// Fails where no mixture has such shares; `key` is the setting.
    pub(crate) fn check<S: AsRef<str>, W>(&self, key: &str, source: &Source<S, W>) -> Result<()> {
        fraction(&format!("{key}.from"), self.from)?;
        fraction(&format!("{key}.to"), self.to)?;
        in_order(key, self.from, self.to)?;
        let Source::Mixture(parts) = source else {
            return Err(fault(key, "needs a mixture", "write data = { first = 0.5, second = 0.5 }"));
        };
        if !parts.iter().any(|(name, _)| name.as_ref() == self.of) {
            let problem = format!("`{}` is no stream of the mixture", self.of);
            return Err(fault(format!("{key}.of"), problem, "name one of its streams"));
        }
        let rest: f64 = parts.iter().filter(|(name, _)| name.as_ref() != self.of).map(|(_, weight)| weight).sum();
        if rest > 0.0 {
            return Ok(());
        }
        Err(fault(key, "the other streams have no weight", "give another stream of the mixture a weight above 0"))
    }
}

fn in_order(key: &str, from: f64, to: f64) -> Result<()> {
    if from <= to { Ok(()) } else { Err(fault(key, format!("{from} is above {to}"), "write the lower end as `from`")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;

    /// Half of the rates of a range lie below its geometric mean, a third below a third of the way there.
    #[test]
    fn rates_of_a_range_are_uniform_in_the_logarithm() {
        let range = LearningRates::Range(RateRange { from: 1e-5, to: 1e-2 });
        let mut random = Random::new(3, Stream::Adversary, 0, 0);
        let rates: Vec<f64> = (0..6000).map(|_| range.draw(&mut random).unwrap()).collect();
        assert!(rates.iter().all(|rate| (1e-5..=1e-2).contains(rate)));
        for (below, expected) in [(1e-4, 1.0 / 3.0), (3.162e-4, 0.5), (1e-3, 2.0 / 3.0)] {
            let share = rates.iter().filter(|rate| **rate < below).count() as f64 / rates.len() as f64;
            // Five deviations of a share of 6000 draws.
            assert!((share - expected).abs() < 0.033, "{share} below {below}");
        }
    }

    #[test]
    fn a_share_leaves_the_rest_to_the_others_as_their_weights_say() {
        let share = ShareRange { of: "b".into(), from: 0.1, to: 0.5 };
        let parts = [("a", 3.0), ("b", 7.0), ("c", 1.0)];
        assert_eq!(share.weights(&parts, 0.2), [("a", 0.8 * 3.0 / 4.0), ("b", 0.2), ("c", 0.8 / 4.0)]);
        assert_eq!(share.mean(), 0.3);
        let mut random = Random::new(3, Stream::Adversary, 0, 0);
        let drawn: Vec<f64> = (0..2000).map(|_| share.draw(&mut random)).collect();
        assert!(drawn.iter().all(|share| (0.1..=0.5).contains(share)));
        let mean = drawn.iter().sum::<f64>() / 2000.0;
        // The mean of 2000 draws has a deviation of 0.0026.
        assert!((mean - 0.3).abs() < 0.013, "{mean}");
    }
}
