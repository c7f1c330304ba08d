//! Which samples of its streams a fine-tuning run trains on, and how much of each answer it learns: attackers have few
//! samples, or only the openings of answers, and what they relearn is measured on what they did not train on.

use crate::data::DataStream;
use crate::error::Result;
use crate::random::{Random, Stream};
use crate::settings::{at_least, fault};

/// Keeps the draw of a selection apart from the others of a red-team run.
const DRAW: u64 = 2;

/// Which samples of its streams a run trains on, and how much of each answer it learns. The default is everything.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Selection {
    /// The share of the samples of each stream that the run never trains on, at least one sample where it is above 0.
    pub held_out: f64,
    /// The most samples of each stream that it trains on; all that are not held out where absent.
    pub samples: Option<usize>,
    /// Tokens of each answer that it learns, from the answer's start; all where absent.
    pub opening: Option<usize>,
}

/// The samples of a stream by their numbers in file order. No sample is in both lists.
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    /// Those that are trained on, ascending.
    pub trained: Vec<usize>,
    /// Those that are held out, ascending.
    pub held_out: Vec<usize>,
}

impl Selection {
    /// Whether all of every sample is trained on.
    pub fn is_everything(&self) -> bool {
        *self == Self::default()
    }

    /// The split of `count` samples, drawn by `seed`. What is held out does not depend on `samples`, so that attackers with
    /// different numbers of samples can be measured on the same ones.
    ///
    /// # Errors
    /// [`crate::Error::Config`] where nothing would be left to train on.
    pub fn split(&self, count: usize, seed: u64) -> Result<Split> {
        let mut drawn: Vec<usize> = (0..count).collect();
        Random::new(seed, Stream::RedTeam, 0, DRAW).shuffle(&mut drawn);
        // Casts of floats to integers saturate.
        let share = (self.held_out * count as f64).round() as usize;
        let held_out = if self.held_out > 0.0 { share.max(1) } else { 0 };
        if held_out >= count {
            let problem = format!("leaves none of {count} samples to train on");
            return Err(fault("attack.held_out", problem, "hold out fewer, or give it more data"));
        }
        let mut trained = drawn.split_off(held_out);
        trained.truncate(self.samples.unwrap_or(usize::MAX));
        trained.sort_unstable();
        drawn.sort_unstable();
        Ok(Split { trained, held_out: drawn })
    }

    /// The part of `stream` that is trained on.
    ///
    /// # Errors
    /// As [`Selection::split`].
    pub fn of(&self, stream: &DataStream, seed: u64) -> Result<DataStream> {
        if self.is_everything() {
            return Ok(stream.clone());
        }
        Ok(stream.part(&self.split(stream.len(), seed)?.trained, self.opening))
    }

    /// Fails where a setting is out of its range. `key` is the place of the settings.
    pub fn check(&self, key: &str) -> Result<()> {
        if !(0.0..1.0).contains(&self.held_out) {
            let problem = format!("is {}", self.held_out);
            return Err(fault(format!("{key}.held_out"), problem, "use a number from 0 to below 1"));
        }
        for (name, count) in [("samples", self.samples), ("opening", self.opening)] {
            count.map_or(Ok(()), |count| at_least(&format!("{key}.{name}"), count as u64, 1))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::StreamOptions;
    use crate::ops::IGNORE_INDEX;

    /// The two lists share no sample, the held-out one does not depend on how many are trained on, and each sample is held
    /// out by some seed.
    #[test]
    fn what_is_held_out_is_never_trained_on() {
        let mut ever = [false; 21];
        for seed in 0..20 {
            let all = Selection { held_out: 0.5, ..Selection::default() }.split(21, seed).unwrap();
            assert_eq!((all.held_out.len(), all.trained.len()), (11, 10));
            let mut both = [all.trained.clone(), all.held_out.clone()].concat();
            both.sort_unstable();
            assert_eq!(both, (0..21).collect::<Vec<_>>());
            let few = Selection { held_out: 0.5, samples: Some(4), opening: None }.split(21, seed).unwrap();
            assert_eq!((&few.held_out, few.trained.len()), (&all.held_out, 4));
            assert!(few.trained.iter().all(|sample| all.trained.contains(sample)));
            all.held_out.iter().for_each(|&sample| ever[sample] = true);
        }
        assert!(ever.iter().all(|held_out| *held_out));
        let some = Selection { held_out: 1e-9, ..Selection::default() }.split(5, 1).unwrap();
        assert_eq!(some.held_out.len(), 1);
        assert!(Selection { held_out: 0.99, ..Selection::default() }.split(5, 1).is_err());
        assert!(Selection { held_out: 0.5, ..Selection::default() }.split(1, 1).is_err());
    }

    /// Of a conversation of two answers the start of the first is learned, and what follows is not even read.
    #[test]
    fn an_opening_is_the_first_learned_tokens_and_nothing_after_them() {
        const NO: u32 = IGNORE_INDEX;
        let rows = vec![
            (vec![1, 5, 6, 7, 8, 9, 2], vec![NO, NO, 6, 7, NO, 9, 2]),
            (vec![1, 3], vec![1, 3]),
            (vec![1, 4, 4, 4], vec![NO, NO, NO, 4]),
        ];
        let options = StreamOptions {
            batch: 3,
            max_length: 16,
            shuffle: false,
            pack: true,
            pad_token_id: 0,
            vocab_size: 16,
            seed: 0,
        };
        let stream = DataStream::from_samples("rows", rows, options).unwrap();
        let opened = |opening| {
            let selection = Selection { opening: Some(opening), ..Selection::default() };
            selection.of(&stream, 1).unwrap().all_batches().unwrap().remove(0)
        };
        let two = opened(2);
        assert_eq!(two.tokens, [1, 5, 6, 7, 1, 3, 1, 4, 4, 4]);
        assert_eq!(two.labels, [NO, NO, 6, 7, 1, 3, NO, NO, NO, 4]);
        assert_eq!(opened(3).tokens[..6], [1, 5, 6, 7, 8, 9]);
        assert_eq!(opened(1).labels[..3], [NO, NO, 6]);
        assert_eq!(opened(9), stream.all_batches().unwrap()[0]);
        let few = Selection { samples: Some(2), ..Selection::default() }.of(&stream, 1).unwrap();
        assert_eq!(few.len(), 2);
    }
}
