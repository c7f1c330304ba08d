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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;
    use crate::demo::Experiment;

    /// Each tensor gets noise of its own size; the numbers are a function of the seed.
    #[test]
    fn noise_is_relative_to_each_tensor() {
        let model = Model::new(Cpu, Experiment::<Cpu>::model_config(), 8).unwrap();
        let layout = model.layout();
        let mut start = vec![0.0f32; layout.len()];
        for (index, entry) in layout.entries().iter().enumerate() {
            start[entry.block.range()].fill(0.1 * (index + 1) as f32);
        }
        let noisy = |seed| {
            let mut weights = Parameters::from_host(&Cpu, "weights", model.layout(), &start).unwrap();
            add_noise(&model, &mut weights, 0.05, seed).unwrap();
            weights.download(&Cpu).unwrap()
        };
        let first = noisy(1);
        for (index, entry) in layout.entries().iter().enumerate().filter(|(_, entry)| entry.block.len() > 10_000) {
            let place = entry.block.range();
            let change = first[place.clone()].iter().zip(&start[place]).map(|(a, b)| f64::from(a - b));
            let square: f64 = change.map(|d| d * d).sum::<f64>() / entry.block.len() as f64;
            let ratio = square.sqrt() / (0.05 * 0.1 * (index + 1) as f64);
            // The deviation of a deviation of 10,000 numbers is 0.7 %.
            assert!((ratio - 1.0).abs() < 0.03, "{}: {ratio}", entry.name);
        }
        assert_eq!(first, noisy(1));
        assert_ne!(first, noisy(2));
    }
}
