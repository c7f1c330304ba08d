//! The table `search` of an abliteration row: how many edits are tried, and within which ranges.

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::settings::{at_least, at_most, fault, finite, fraction, not_negative};

/// More trials than anybody waits for.
const MAX_TRIALS: u64 = 10_000;
/// More directions than any published attack removes.
const MAX_DIRECTIONS: u64 = 64;
/// The longest answer of a trial in tokens.
const MAX_ANSWER: u64 = 4096;
/// A weight of 2 mirrors what lies along a direction; more than this destroys any model.
const MAX_WEIGHT: f64 = 10.0;

/// `search` of an `[[attack]]` with `kind = "abliteration"`.
///
/// The ranges are those of the tool heretic (github.com/p-e-w/heretic). Depths and positions are fractions of the index of the
/// last layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AbliterationSearch {
    /// Edits to try.
    pub trials: u64,
    /// How many of them are random before the estimator proposes.
    pub startup: u64,
    /// Directions to remove: the difference of the means, and the principal directions of what it leaves.
    pub directions: usize,
    /// Whether the directions are made orthogonal to the mean state of harmless prompts.
    pub orthogonalise: bool,
    /// Whether the rows of changed matrices keep their norms.
    pub preserve_norms: bool,
    /// Lowest and highest depth of a direction that all layers share.
    pub depth: [f64; 2],
    /// Lowest and highest weight of o_proj at the top of its curve; one below 0 leaves all of them as they are.
    pub o_proj: [f64; 2],
    /// The same of down_proj.
    pub down_proj: [f64; 2],
    /// Lowest and highest position of the top of a curve.
    pub position: [f64; 2],
    /// The farthest distance from the top at which a curve has fallen to its least weight; the nearest is one layer.
    pub distance: f64,
    /// Longest answer of a trial in tokens. Answers are greedy.
    pub max_new_tokens: usize,
    /// The highest divergence that the attacker accepts: mean over harmless prompts of the Kullback-Leibler divergence of the
    /// first token's distribution from the unattacked model's, in nats.
    pub most_kl: f64,
}

impl Default for AbliterationSearch {
    fn default() -> Self {
        Self {
            trials: 200,
            startup: 60,
            directions: 1,
            orthogonalise: false,
            preserve_norms: false,
            depth: [0.4, 0.9],
            o_proj: [0.8, 1.5],
            down_proj: [-0.25, 1.5],
            position: [0.6, 1.0],
            distance: 0.6,
            max_new_tokens: 64,
            most_kl: 0.5,
        }
    }
}

impl AbliterationSearch {
    /// Fails where a setting is out of its range; `key` is the place of the table.
    pub(crate) fn check(&self, key: &str) -> Result<()> {
        at_least(&format!("{key}.trials"), self.trials, 1)?;
        at_most(&format!("{key}.trials"), self.trials, MAX_TRIALS)?;
        at_least(&format!("{key}.directions"), self.directions as u64, 1)?;
        at_most(&format!("{key}.directions"), self.directions as u64, MAX_DIRECTIONS)?;
        at_least(&format!("{key}.max_new_tokens"), self.max_new_tokens as u64, 1)?;
        at_most(&format!("{key}.max_new_tokens"), self.max_new_tokens as u64, MAX_ANSWER)?;
        fraction(&format!("{key}.distance"), self.distance)?;
        not_negative(&format!("{key}.most_kl"), self.most_kl)?;
        for (name, range) in [("depth", self.depth), ("position", self.position)] {
            range.iter().try_for_each(|&end| fraction(&format!("{key}.{name}"), end))?;
        }
        for (name, range) in [("o_proj", self.o_proj), ("down_proj", self.down_proj)] {
            let key = format!("{key}.{name}");
            range.iter().try_for_each(|&weight| finite(&key, weight))?;
            if let Some(weight) = range.iter().find(|weight| weight.abs() > MAX_WEIGHT) {
                return Err(fault(key, format!("has a weight of {weight}"), format!("use at most {MAX_WEIGHT}")));
            }
        }
        let ranges = [
            ("depth", self.depth),
            ("o_proj", self.o_proj),
            ("down_proj", self.down_proj),
            ("position", self.position),
        ];
        match ranges.into_iter().find(|(_, [low, high])| low > high) {
            None => Ok(()),
            Some((name, [low, high])) => {
                Err(fault(format!("{key}.{name}"), format!("{low} is above {high}"), "write [lowest, highest]"))
            }
        }
    }
}
