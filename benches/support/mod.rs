//! What the benchmarks of whole steps on the CPU share.

use std::time::Instant;

use temper::backend::cpu::Cpu;
use temper::model::{Model, Parameters};
use temper::random::{Random, Stream};

/// Weights as a fresh model has them, the same on every run: normal numbers of deviation 0.02.
pub fn initial_weights(model: &Model<Cpu>) -> Parameters<Cpu> {
    let mut random = Random::new(0, Stream::Weights, 0, 0);
    let values: Vec<f32> = (0..model.layout().len()).map(|_| (0.02 * random.normal()) as f32).collect();
    Parameters::from_host(&Cpu, "weights", model.layout(), &values).expect("weights")
}

/// Median time of `count` steps in milliseconds, after some that are not counted.
pub fn median_milliseconds(warm_up: usize, count: usize, mut step: impl FnMut(usize)) -> f64 {
    (0..warm_up).for_each(&mut step);
    let mut times: Vec<f64> = (0..count)
        .map(|i| {
            let start = Instant::now();
            step(i);
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[count / 2]
}
