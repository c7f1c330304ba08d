//! Noise on weights: an attack's other starting point, away from where a defender looked (an attack of the reviewers of
//! TAR, answered in their rebuttal).

use std::ops::Range;

use crate::error::Result;
use crate::model::{Model, Parameters};
use crate::ops::Backend;
use crate::random::{Random, Stream};

/// What noise is added.
#[derive(Clone, Copy)]
pub struct NoiseDraw<'a> {
    /// The standard deviation in a tensor, relative to the tensor's root mean square.
    pub relative: f64,
    /// The places in the weights whose tensors get it; the others stay.
    pub places: &'a [Range<usize>],
    /// The random numbers of a tensor, by its number in the layout.
    pub of_tensor: &'a dyn Fn(usize) -> Random,
}

impl NoiseDraw<'_> {
    fn has(&self, tensor: &Range<usize>) -> bool {
        self.places.iter().any(|place| place.start <= tensor.start && tensor.end <= place.end)
    }
}

/// Adds Gaussian noise to every tensor, as an attack of `seed` does it.
pub fn add_attack_noise<B: Backend>(
    model: &Model<B>,
    weights: &mut Parameters<B>,
    relative: f64,
    seed: u64,
) -> Result<()> {
    let of_tensor = |index: usize| Random::new(seed, Stream::RedTeam, index as u64, 1);
    let all = 0..model.layout().len();
    add_noise(model, weights, NoiseDraw { relative, places: std::slice::from_ref(&all), of_tensor: &of_tensor })
}

/// Adds Gaussian noise to tensors. The numbers are drawn and added on the host.
pub fn add_noise<B: Backend>(model: &Model<B>, weights: &mut Parameters<B>, draw: NoiseDraw) -> Result<()> {
    let mut values = weights.download(&model.backend)?;
    let entries = model.layout().entries().iter().enumerate();
    for (index, entry) in entries.filter(|(_, entry)| draw.has(&entry.block.range())) {
        let tensor = &mut values[entry.block.range()];
        let square: f64 = tensor.iter().map(|w| f64::from(*w) * f64::from(*w)).sum();
        let deviation = draw.relative * (square / tensor.len().max(1) as f64).sqrt();
        let mut random = (draw.of_tensor)(index);
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
            add_attack_noise(&model, &mut weights, 0.05, seed).unwrap();
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
