//! A data file as an endless, resumable sequence of batches.

use std::path::Path;

use crate::error::Result;
use crate::model::Batch;

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
    cursor: Cursor,
}

impl DataStream {
    /// Opens `path` (JSONL or Parquet, or a directory of them). `model` is the directory whose tokenizer and chat
    /// template text is read with; rows that hold `input_ids` need none.
    pub fn open(name: &str, path: &Path, model: &Path, options: StreamOptions) -> Result<Self> {
        let _ = (name, path, model, options);
        todo!()
    }

    /// A stream of (tokens, labels) samples that are in memory already; the path of errors is `name`.
    pub fn from_samples(name: &str, samples: Vec<(Vec<u32>, Vec<u32>)>, options: StreamOptions) -> Result<Self> {
        let _ = (name, samples, options);
        todo!()
    }

    /// The next batch. Preference data gives two segments a pair: chosen, then rejected.
    pub fn next_batch(&mut self) -> Result<Batch> {
        todo!()
    }

    /// One pass in file order, in batches of `options.batch` (the last may be smaller), for evaluation.
    pub fn all_batches(&self) -> Result<Vec<Batch>> {
        todo!()
    }

    /// Number of usable samples (for preference data: pairs).
    pub fn len(&self) -> usize {
        todo!()
    }

    /// Whether it has no sample; [`DataStream::open`] refuses such a file.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens of the largest batch that it can give.
    pub fn max_batch_tokens(&self) -> usize {
        todo!()
    }

    /// Tokens of the longest sequence that it gives.
    pub fn longest(&self) -> usize {
        todo!()
    }

    /// Whether samples are preference pairs.
    pub fn is_preference(&self) -> bool {
        todo!()
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
