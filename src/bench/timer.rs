//! Device times of an operation, by events.

use crate::backend::cuda::{Cuda, Event};
use crate::error::Result;

/// How often a row is repeated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Effort {
    /// Device time before the first sample: clocks, caches of algorithms and modules settle.
    pub warm_up_milliseconds: f64,
    /// Least device time of all samples together.
    pub minimum_milliseconds: f64,
    /// Fewest and most samples.
    pub samples: (usize, usize),
}

impl Effort {
    /// For a GPU.
    pub fn measured() -> Self {
        Self { warm_up_milliseconds: 100.0, minimum_milliseconds: 400.0, samples: (10, 300) }
    }

    /// For the simulator, where only the code is tried.
    pub fn simulated() -> Self {
        Self { warm_up_milliseconds: 0.0, minimum_milliseconds: 0.0, samples: (2, 2) }
    }
}

/// Device times of one repetition, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Timing {
    pub median: f64,
    pub fastest: f64,
    pub slowest: f64,
    pub samples: usize,
}

/// Samples that are queued before any of them is waited for.
const BATCH: usize = 16;

/// Times `run`, which queues the operation; its argument numbers the repetitions.
pub(super) fn time(cuda: &Cuda, effort: Effort, run: &mut dyn FnMut(usize) -> Result<()>) -> Result<Timing> {
    let mut repetition = 0;
    let mut next = || {
        repetition += 1;
        run(repetition - 1)
    };
    // The first call loads modules, chooses algorithms and allocates scratch.
    next()?;
    let estimate = batch(cuda, 1, &mut next)?[0].max(1e-3);
    let warm_up = ((effort.warm_up_milliseconds / estimate) as usize).min(effort.samples.1);
    for _ in 0..warm_up {
        next()?;
    }
    let wanted = ((effort.minimum_milliseconds / estimate).ceil() as usize).clamp(effort.samples.0, effort.samples.1);
    let mut samples = Vec::with_capacity(wanted);
    while samples.len() < wanted {
        samples.extend(batch(cuda, BATCH.min(wanted - samples.len()), &mut next)?);
    }
    Ok(summary(samples))
}

/// `count` samples. One repetition that is not timed goes ahead of them: while the device is busy with it, the host
/// queues the others, so that their times hold the device's work and not the host's.
fn batch(cuda: &Cuda, count: usize, next: &mut dyn FnMut() -> Result<()>) -> Result<Vec<f64>> {
    let driver = cuda.driver();
    next()?;
    let mut marks: Vec<(Event, Event)> = Vec::with_capacity(count);
    for _ in 0..count {
        let start = driver.record_event()?;
        next()?;
        marks.push((start, driver.record_event()?));
    }
    marks.into_iter().map(|(start, end)| Ok(f64::from(driver.elapsed_milliseconds(start, end)?))).collect()
}

fn summary(mut samples: Vec<f64>) -> Timing {
    samples.sort_by(f64::total_cmp);
    let count = samples.len();
    let median = (samples[(count - 1) / 2] + samples[count / 2]) / 2.0;
    Timing { median, fastest: samples[0], slowest: samples[count - 1], samples: count }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(summary(vec![5.0, 1.0, 2.0]), Timing { median: 2.0, fastest: 1.0, slowest: 5.0, samples: 3 });
        assert_eq!(summary(vec![4.0, 1.0, 2.0, 9.0]).median, 3.0);
    }

    /// Every repetition has a number of its own, in order, so that operands rotate; and there are as many samples as
    /// the effort asks for.
    #[cfg(feature = "simulator")]
    #[test]
    fn repetitions_are_numbered_and_counted() {
        let cuda = Cuda::simulated(crate::ops::DType::F32).expect("a simulated device");
        let mut seen = Vec::new();
        let effort = Effort { warm_up_milliseconds: 0.0, minimum_milliseconds: 0.0, samples: (20, 20) };
        let timing = time(&cuda, effort, &mut |i| {
            seen.push(i);
            Ok(())
        });
        assert_eq!(timing.expect("times").samples, 20);
        // One first call, an estimate with its forerunner, two batches with theirs.
        assert_eq!(seen, (0..1 + 2 + 22).collect::<Vec<_>>());
    }
}
