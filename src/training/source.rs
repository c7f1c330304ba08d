//! Which stream of data each step of a fine-tuning run trains on.

use std::fmt;

use crate::error::{Error, Result};
use crate::random::{Random, Stream, weighted};
use crate::settings::{fault, not_negative};

/// The data of a fine-tuning run. `S` names a stream; `W` says when a switch happens: its step, or what decides the step.
#[derive(Clone, Debug, PartialEq)]
pub enum Source<S, W = u64> {
    /// One stream.
    One(S),
    /// The first stream until the switch, then the second.
    Switch {
        /// Before and after.
        streams: [S; 2],
        /// The first step on the second stream.
        at: W,
    },
    /// Each step draws one of the streams with these weights.
    Mixture(Vec<(S, f64)>),
}

impl<S, W> Source<S, W> {
    /// The streams, in the order of their numbers.
    pub fn streams(&self) -> Vec<&S> {
        match self {
            Self::One(stream) => vec![stream],
            Self::Switch { streams, .. } => streams.iter().collect(),
            Self::Mixture(parts) => parts.iter().map(|(stream, _)| stream).collect(),
        }
    }

    /// The same data with streams of other names and another way to say when a switch happens.
    ///
    /// # Errors
    /// The errors that `name` and `switch` return.
    pub fn try_map<T, V>(
        &self,
        mut name: impl FnMut(&S) -> Result<T>,
        switch: impl FnOnce(&W) -> Result<V>,
    ) -> Result<Source<T, V>> {
        Ok(match self {
            Self::One(stream) => Source::One(name(stream)?),
            Self::Switch { streams: [first, second], at } => {
                Source::Switch { streams: [name(first)?, name(second)?], at: switch(at)? }
            }
            Self::Mixture(parts) => {
                let named = parts.iter().map(|(stream, weight)| Ok((name(stream)?, *weight)));
                Source::Mixture(named.collect::<Result<_>>()?)
            }
        })
    }
}

impl<S: fmt::Display, W> Source<S, W> {
    /// Fails where no stream could be drawn; `key` is the setting that errors name.
    pub fn check(&self, key: &str) -> Result<()> {
        let Self::Mixture(parts) = self else { return Ok(()) };
        for (stream, weight) in parts {
            not_negative(&format!("{key}.{stream}"), *weight)?;
        }
        let total: f64 = parts.iter().map(|(_, weight)| weight).sum();
        if total > 0.0 && total.is_finite() {
            return Ok(());
        }
        Err(fault(key, "the weights add up to 0 or to no finite number", "give a stream a weight above 0"))
    }
}

impl<S> Source<S> {
    /// The number of the stream that `step` trains on.
    ///
    /// # Errors
    /// When no part of a mixture has a weight above 0.
    pub fn stream_at(&self, step: u64, draws: &mut StreamDraws) -> Result<usize> {
        match self {
            Self::One(_) => Ok(0),
            Self::Switch { at, .. } => Ok(usize::from(step >= *at)),
            Self::Mixture(parts) => {
                let weights = parts.iter().map(|(_, weight)| *weight);
                let drawn = match draws {
                    StreamDraws::OfStep { seed } => {
                        weighted(&mut Random::new(*seed, Stream::RedTeam, step, 0), weights)
                    }
                    StreamDraws::InSequence(random) => weighted(random, weights),
                };
                drawn.ok_or_else(|| Error::config("data", "no stream has a weight above 0", "give one a weight"))
            }
        }
    }
}

/// Where a mixture's draws come from.
#[derive(Clone, Debug)]
pub enum StreamDraws {
    /// Each draw is a function of the seed and the number of the step, so that a run which was stopped goes on as if it had
    /// not been.
    OfStep {
        /// The seed.
        seed: u64,
    },
    /// The draws follow one another in one sequence: a simulated attack always runs from its first step to its last.
    InSequence(Random),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used<S>(source: &Source<S>, steps: u64, seed: u64) -> Vec<usize> {
        let mut draws = StreamDraws::OfStep { seed };
        (0..steps).map(|step| source.stream_at(step, &mut draws).unwrap()).collect()
    }

    #[test]
    fn a_switch_changes_the_stream_at_its_step() {
        let source = Source::Switch { streams: ["retain", "restricted"], at: 4 };
        assert_eq!(used(&source, 10, 1), [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]);
        assert_eq!(used(&Source::<_>::One("ood"), 3, 1), [0, 0, 0]);
    }

    #[test]
    fn a_mixture_draws_each_stream_as_often_as_its_weight_says() {
        let source = Source::<_>::Mixture(vec![("retain", 1.0), ("ood", 0.0), ("restricted", 3.0)]);
        let drawn = used(&source, 4000, 1);
        let share = |index| drawn.iter().filter(|i| **i == index).count() as f64 / drawn.len() as f64;
        // A share of 4000 draws has a deviation of 0.7 %.
        assert!(share(1) == 0.0 && (share(0) - 0.25).abs() < 0.03, "{} {}", share(0), share(1));
        assert_ne!(drawn, used(&source, 4000, 2));
    }

    #[test]
    fn a_mixture_of_nothing_is_an_error_and_not_a_stream() {
        for parts in [vec![], vec![("a", 0.0)], vec![("a", f64::NAN)], vec![("a", -1.0), ("b", 2.0)]] {
            assert!(Source::<_>::Mixture(parts).check("data").is_err());
        }
        let nothing = Source::<_>::Mixture(vec![("a", 0.0)]);
        for mut draws in
            [StreamDraws::OfStep { seed: 1 }, StreamDraws::InSequence(Random::new(1, Stream::Adversary, 0, 0))]
        {
            assert!(nothing.stream_at(0, &mut draws).is_err());
        }
    }
}
