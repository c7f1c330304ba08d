//! Noise on weights: an attack's other starting point, away from where a defender looked (an attack of the reviewers of
//! TAR, answered in their rebuttal).

use crate::error::Result;
use crate::model::{Model, Parameters};
use crate::ops::Backend;
use crate::random::{Random, Stream};

/// Adds to every tensor Gaussian noise whose standard deviation is `relative` times the root mean square of that tensor.
/// The noise is a function of `seed`.
pub fn add_noise<B: Backend>(model: &Model<B>, weights: &mut Parameters<B>, relative: f64, seed: u64) -> Result<()> {
    let mut values = weights.download(&model.backend)?;
    for (index, entry) in model.layout().entries().iter().enumerate() {
        let tensor = &mut values[entry.block.range()];
        let square: f64 = tensor.iter().map(|w| f64::from(*w) * f64::from(*w)).sum();
        let deviation = relative * (square / tensor.len().max(1) as f64).sqrt();
        let mut random = Random::new(seed, Stream::RedTeam, index as u64, 1);
        tensor.iter_mut().for_each(|w| *w = (f64::from(*w) + deviation * random.normal()) as f32);
    }
    weights.upload(&model.backend, &values)
}
