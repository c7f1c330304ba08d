//! A data file as an endless, resumable sequence of batches.

use std::path::Path;

use super::samples::{Sample, Samples, Sequence};
use super::source;
use crate::error::{Error, Result};
use crate::model::Batch;
use crate::ops::IGNORE_INDEX;
use crate::random::{Random, Stream};

/// Where a stream stands; all that a checkpoint needs of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Cursor {
    /// Samples handed out so far.
    pub samples: u64,
}

/// How a file becomes batches.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamOptions {
    /// Samples of one batch (for preference data: pairs).
    pub batch: usize,
    /// Longest sequence in tokens.
    pub max_length: usize,
    /// Whether each pass has its own order, drawn from (seed, name of the stream, pass).
    pub shuffle: bool,
    /// Whether sequences lie one after another, or are padded on the right to the longest of the batch.
    pub pack: bool,
    /// Padding token.
    pub pad_token_id: u32,
    /// Vocabulary of the model; a sample with another id is an error that names its line.
    pub vocab_size: usize,
    /// Seed of the order.
    pub seed: u64,
}

/// An endless sequence of batches from a file: pass after pass, the order of each a function of (seed, name, pass).
#[derive(Debug)]
pub struct DataStream {
    options: StreamOptions,
    samples: Samples,
    /// Tells streams of one seed apart.
    key: u64,
    cursor: Cursor,
    /// The pass whose order is in `order`.
    pass: Option<u64>,
    order: Vec<u32>,
}

impl DataStream {
    /// Opens `path` (JSONL or Parquet, or a directory of them). `model` is the directory whose tokenizer and chat
    /// template text is read with; rows that hold `input_ids` need none.
    pub fn open(name: &str, path: &Path, model: &Path, options: StreamOptions) -> Result<Self> {
        let samples = source::read(path, model, &options)?;
        Self::new(name, samples, options)
    }

    /// A stream of (tokens, labels) samples that are in memory already; the file of errors is `name`.
    pub fn from_samples(name: &str, samples: Vec<(Vec<u32>, Vec<u32>)>, options: StreamOptions) -> Result<Self> {
        let to_sample = |(tokens, labels)| Sample::One(Sequence { tokens, labels });
        let samples = samples.into_iter().map(to_sample).enumerate().map(|(i, sample)| (i + 1, sample)).collect();
        let samples = source::collect(Path::new(name), samples, &options)?;
        Self::new(name, samples, options)
    }

    fn new(name: &str, samples: Samples, options: StreamOptions) -> Result<Self> {
        if options.batch == 0 {
            return Err(Error::config(format!("data.{name}.batch"), "a batch of 0 samples", "use at least 1"));
        }
        let key = name.bytes().fold(0x811c_9dc5u32, |hash, b| (hash ^ u32::from(b)).wrapping_mul(0x0100_0193));
        let key = u64::from(key & 0x00ff_ffff);
        Ok(Self { options, samples, key, cursor: Cursor::default(), pass: None, order: Vec::new() })
    }

    /// The next batch. Preference data gives two segments a pair: chosen, then rejected.
    pub fn next_batch(&mut self) -> Result<Batch> {
        let mut chosen = Vec::with_capacity(self.options.batch);
        for _ in 0..self.options.batch {
            let (pass, place) = (self.cursor.samples / self.len() as u64, self.cursor.samples % self.len() as u64);
            self.set_pass(pass);
            chosen.push(self.order[place as usize] as usize);
            self.cursor.samples += 1;
        }
        Ok(self.batch(&chosen))
    }

    /// One pass in file order, in batches of `options.batch` (the last may be smaller), for evaluation.
    pub fn all_batches(&self) -> Result<Vec<Batch>> {
        let all: Vec<usize> = (0..self.len()).collect();
        Ok(all.chunks(self.options.batch).map(|chunk| self.batch(chunk)).collect())
    }

    fn set_pass(&mut self, pass: u64) {
        if self.pass == Some(pass) {
            return;
        }
        self.order = (0..self.len() as u32).collect();
        if self.options.shuffle {
            Random::new(self.options.seed, Stream::Data, pass, self.key).shuffle(&mut self.order);
        }
        self.pass = Some(pass);
    }

    fn batch(&self, samples: &[usize]) -> Batch {
        let mut batch = Batch::default();
        let sequences = || samples.iter().flat_map(|&sample| self.samples.sequences(sample));
        let longest = sequences().map(|(tokens, _)| tokens.len()).max().unwrap_or(0);
        for (tokens, labels) in sequences() {
            if self.options.pack {
                batch.push(tokens, labels, tokens.len());
                continue;
            }
            let (mut padded, mut masked) = (tokens.to_vec(), labels.to_vec());
            padded.resize(longest, self.options.pad_token_id);
            masked.resize(longest, IGNORE_INDEX);
            batch.push(&padded, &masked, tokens.len());
        }
        batch
    }

    /// Number of usable samples (for preference data: pairs).
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether it has no sample; [`DataStream::open`] refuses such a file.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens of the longest sequence that it gives.
    pub fn longest(&self) -> usize {
        self.samples.longest()
    }

    /// An upper bound of the tokens of a batch.
    pub fn max_batch_tokens(&self) -> usize {
        let sequences = self.options.batch * if self.is_preference() { 2 } else { 1 };
        sequences * self.longest()
    }

    /// Whether samples are preference pairs.
    pub fn is_preference(&self) -> bool {
        self.samples.pairs()
    }

    /// Where it stands.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Goes to where it stood.
    pub fn seek(&mut self, cursor: Cursor) {
        self.cursor = cursor;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(batch: usize, shuffle: bool, pack: bool) -> StreamOptions {
        StreamOptions { batch, max_length: 8, shuffle, pack, pad_token_id: 0, vocab_size: 100, seed: 5 }
    }

    /// Sample i has i + 2 tokens of value i + 1.
    fn stream(options: StreamOptions) -> DataStream {
        let samples = (0..5usize).map(|i| (vec![i as u32 + 1; i + 2], vec![i as u32 + 1; i + 2])).collect();
        DataStream::from_samples("made up", samples, options).unwrap()
    }

    fn firsts(batch: &Batch) -> Vec<u32> {
        batch.segments.iter().map(|s| batch.tokens[s.start]).collect()
    }

    #[test]
    fn seeking_is_the_same_as_having_read() {
        let mut read = stream(options(2, true, true));
        for _ in 0..7 {
            let cursor = read.cursor();
            let expected = read.next_batch().unwrap();
            let mut sought = stream(options(2, true, true));
            sought.seek(cursor);
            assert_eq!(sought.next_batch().unwrap(), expected);
        }
    }

    #[test]
    fn each_pass_is_another_permutation_and_without_shuffling_file_order() {
        let mut shuffled = stream(options(5, true, true));
        let passes: Vec<Vec<u32>> = (0..4).map(|_| firsts(&shuffled.next_batch().unwrap())).collect();
        for pass in &passes {
            let mut sorted = pass.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [1, 2, 3, 4, 5]);
        }
        assert!(passes.windows(2).any(|pair| pair[0] != pair[1]));
        let mut plain = stream(options(3, false, true));
        assert_eq!(firsts(&plain.next_batch().unwrap()), [1, 2, 3]);
        assert_eq!(firsts(&plain.next_batch().unwrap()), [4, 5, 1], "a batch goes over the end of a pass");
    }

    #[test]
    fn padding_and_packing_hold_the_same_real_tokens() {
        let mut packed = stream(options(3, true, true));
        let mut padded = stream(options(3, true, false));
        for _ in 0..4 {
            let (a, b) = (packed.next_batch().unwrap(), padded.next_batch().unwrap());
            let real = |batch: &Batch| -> Vec<Vec<u32>> {
                batch.segments.iter().map(|s| batch.tokens[s.start..s.start + s.valid].to_vec()).collect()
            };
            assert_eq!(real(&a), real(&b));
            let longest = b.segments.iter().map(|s| s.valid).max().unwrap();
            assert!(b.segments.iter().all(|s| s.length == longest));
            let padding = (0..b.len()).filter(|&i| !b.is_real()[i]);
            assert!(padding.into_iter().all(|i| b.tokens[i] == 0 && b.labels[i] == IGNORE_INDEX));
        }
    }
}
