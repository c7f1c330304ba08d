//! Shrinking and disturbing the weights of a model before it learns from what it was (UNDO, arXiv 2506.06278): what a teacher
//! does not show does not come back.

use crate::error::Result;
use crate::model::ParameterLayout;
use crate::random::{Random, Stream};
use crate::settings::fraction;

/// θ ← (1 − shrink) · θ + shrink · noise · ξ. ξ is uniform as for a new matrix of [m, n] (Glorot and Bengio): within
/// ±√(6/(m + n)); vectors (norms, biases) are shrunk and get no noise.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disturbance {
    /// The paper's α, from 0 to 1.
    pub shrink: f64,
    /// The paper's β, from 0 to 1.
    #[serde(default)]
    pub noise: f64,
}

impl Disturbance {
    /// Fails for settings without a meaning; `key` is the name of their table.
    pub fn check(&self, key: &str) -> Result<()> {
        fraction(&format!("{key}.shrink"), self.shrink)?;
        fraction(&format!("{key}.noise"), self.noise)
    }
}

/// Disturbs weights in the order of `layout`. The noise is a function of `seed`.
pub fn disturb(layout: &ParameterLayout, weights: &mut [f32], disturbance: Disturbance, seed: u64) {
    let Disturbance { shrink, noise } = disturbance;
    for (index, entry) in layout.entries().iter().enumerate() {
        let mut random = Random::new(seed, Stream::Disturbance, index as u64, 0);
        let limit = match entry.shape.as_slice() {
            [rows, cols] => (6.0 / (rows + cols) as f64).sqrt(),
            _ => 0.0,
        };
        for weight in &mut weights[entry.block.range()] {
            let fresh = if limit * noise == 0.0 { 0.0 } else { limit * (2.0 * random.uniform() - 1.0) };
            *weight = ((1.0 - shrink) * f64::from(*weight) + shrink * noise * fresh) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;
    use crate::demo::Experiment;
    use crate::model::ModelLayout;

    fn start() -> (ModelLayout, Vec<f32>) {
        let layout = ModelLayout::new(&Experiment::<Cpu>::model_config()).unwrap();
        let mut random = Random::new(5, Stream::Weights, 0, 0);
        let weights = (0..layout.len()).map(|_| random.normal() as f32).collect();
        (layout, weights)
    }

    #[test]
    fn weights_shrink_by_the_asked_part() {
        let (layout, weights) = start();
        let mut shrunk = weights.clone();
        disturb(&layout, &mut shrunk, Disturbance { shrink: 0.25, noise: 0.0 }, 1);
        assert!(weights.iter().zip(&shrunk).all(|(before, after)| *after == 0.75 * before));
    }

    /// The variance of a uniform number within ±a is a²/3; vectors get none.
    #[test]
    fn noise_has_the_size_of_new_weights_and_follows_its_seed() {
        let (layout, weights) = start();
        let disturbed = |seed| {
            let mut weights = weights.clone();
            disturb(&layout, &mut weights, Disturbance { shrink: 0.5, noise: 0.2 }, seed);
            weights
        };
        let first = disturbed(1);
        for entry in layout.entries() {
            let place = entry.block.range();
            let pairs = first[place.clone()].iter().zip(&weights[place]);
            let noise: Vec<f64> = pairs.map(|(after, before)| f64::from(*after) - 0.5 * f64::from(*before)).collect();
            let square = noise.iter().map(|x| x * x).sum::<f64>() / noise.len() as f64;
            let [rows, cols] = entry.shape[..] else {
                assert!(square < 1e-14, "{}", entry.name);
                continue;
            };
            let limit = 0.1 * (6.0 / (rows + cols) as f64).sqrt();
            assert!(noise.iter().all(|x| x.abs() <= limit + 1e-6), "{}", entry.name);
            // The deviation of the mean of n squares of uniform numbers is 0.9/√n of it.
            let error = (square / (limit * limit / 3.0) - 1.0).abs();
            assert!(error < 5.0 / (noise.len() as f64).sqrt(), "{}: {error}", entry.name);
        }
        assert_eq!(first, disturbed(1));
        assert_ne!(first, disturbed(2));
    }
}
