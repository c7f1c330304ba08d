//! A data file as an endless, resumable sequence of batches.

use std::path::Path;
use std::sync::Arc;

use super::columns::DataFile;
use super::encode;
use super::samples::{Sample, Samples, Sequence};
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::model::Batch;
use crate::ops::IGNORE_INDEX;
use crate::random::{Random, Stream};

/// The place of a stream: a checkpoint needs nothing else of it.
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

/// Rows of a batch are counted in 32 bits on every backend.
pub(crate) const MAX_TOKENS: u64 = u32::MAX as u64;

/// Fails where a batch would have more tokens than a backend counts; `key` is the setting of the batch.
pub(crate) fn check_batch(key: &str, batch: usize, max_length: usize) -> Result<()> {
    match (batch as u64).checked_mul(max_length as u64) {
        Some(tokens) if tokens <= MAX_TOKENS => Ok(()),
        _ => Err(Error::config(key, "batch · max_length is 2^32 tokens or more", "lower one of them")),
    }
}

impl StreamOptions {
    fn check(&self, name: &str) -> Result<()> {
        let wrong =
            |key: &str, problem: &str, remedy: &str| Err(Error::config(format!("{name}.{key}"), problem, remedy));
        if self.batch == 0 {
            return wrong("batch", "a batch of 0 samples has nothing to learn", "set it to 1 or more");
        }
        if self.max_length < 2 {
            return wrong("max_length", "a sequence needs two tokens, one to predict the other", "set it to 2 or more");
        }
        check_batch(&format!("{name}.batch"), self.batch, self.max_length)?;
        if !self.pack && self.pad_token_id as usize >= self.vocab_size {
            return wrong(
                "pad_token_id",
                "the padding token is outside the model's vocabulary",
                "choose an id that the model has",
            );
        }
        Ok(())
    }
}

/// An endless sequence of batches from a file: pass after pass, the order of each a function of (seed, name, pass).
#[derive(Clone, Debug)]
pub struct DataStream {
    name: String,
    options: StreamOptions,
    /// Shared by all streams of one file.
    samples: Arc<Samples>,
    cursor: Cursor,
    /// The pass that `order` is for.
    pass: u64,
    /// The sample at each position of the pass; empty until the first shuffled batch.
    order: Vec<usize>,
}

impl DataStream {
    /// Sequences of one batch.
    pub fn batch(&self) -> usize {
        self.options.batch
    }

    /// Opens `data`, whose format its name and first bytes tell. `model` is the directory whose tokenizer and chat
    /// template text is read with; rows that hold `input_ids` need none.
    ///
    /// Everything is tokenized here, once. Sequences are cut on the right to `options.max_length`; samples without a
    /// learned token are left out; both are counted and announced with `tracing::warn`.
    pub fn open(name: &str, data: impl Into<DataFile>, model: &Path, options: StreamOptions) -> Result<Self> {
        options.check(name)?;
        let data = data.into();
        let samples = encode::read_samples(&data, model, options.vocab_size, options.max_length)?;
        Self::new(name, &data.path, samples, options)
    }

    /// A stream of (tokens, labels) samples that are in memory already; the path of errors is `name`.
    pub fn from_samples(name: &str, samples: Vec<(Vec<u32>, Vec<u32>)>, options: StreamOptions) -> Result<Self> {
        options.check(name)?;
        let mut kept = Samples::default();
        for (index, (tokens, labels)) in samples.into_iter().enumerate() {
            let sequence = Sequence { tokens, labels };
            let problem = match sequence.problem(options.vocab_size) {
                Some(problem) => Some(problem),
                None => kept.push(Sample::One(sequence), options.max_length).err().map(str::to_string),
            };
            if let Some(problem) = problem {
                let remedy = "give every token a label, and only ids that the model has";
                return Err(Error::input(name, format!("sample {index}: {problem}"), remedy));
            }
        }
        Self::new(name, Path::new(name), kept, options)
    }

    fn new(name: &str, path: &Path, samples: Samples, options: StreamOptions) -> Result<Self> {
        if samples.len() == 0 {
            let problem = match samples.skipped {
                0 => "no sample in it".to_string(),
                skipped => format!("no usable sample: none of its {skipped} has a token to learn within max_length"),
            };
            return Err(Error::input(path, problem, "see what becomes of a sample with `temper data inspect`"));
        }
        let total = samples.len();
        let cut = samples.cut;
        let skipped = samples.skipped;
        if cut > 0 {
            tracing::warn!("{name}: {cut} samples were longer than {} tokens and lost their end", options.max_length);
        }
        if skipped > 0 {
            tracing::warn!("{name}: {skipped} samples were left out, no token of them is learned; {total} remain");
        }
        let cursor = Cursor::default();
        Ok(Self { name: name.to_string(), options, samples: Arc::new(samples), cursor, pass: 0, order: Vec::new() })
    }

    /// A stream of the same samples from the start, as if [`DataStream::open`] had read the file again with this name, batch
    /// and seed. Nothing is read or copied.
    pub fn reopened(&self, name: &str, batch: usize, seed: u64) -> Result<Self> {
        let options = StreamOptions { batch, seed, ..self.options.clone() };
        options.check(name)?;
        let samples = Arc::clone(&self.samples);
        let cursor = Cursor::default();
        Ok(Self { name: name.to_string(), options, samples, cursor, pass: 0, order: Vec::new() })
    }

    /// A stream of the samples of these numbers (in file order, from 0), from its start. Of each sequence at most `opening`
    /// tokens are learned, where that is given, and what follows the last of them is cut off.
    pub fn part(&self, members: &[usize], opening: Option<usize>) -> Self {
        let samples = Arc::new(self.samples.part(members, opening));
        let cursor = Cursor::default();
        Self { samples, cursor, pass: 0, order: Vec::new(), ..self.clone() }
    }

    /// Tells the samples from others.
    pub fn fingerprint(&self) -> Fingerprint {
        self.samples.fingerprint()
    }

    /// The next batch. Preference data gives two segments a pair: chosen, then rejected.
    pub fn next_batch(&mut self) -> Result<Batch> {
        self.next_batch_of(self.options.batch)
    }

    /// The next `size` samples as one batch.
    pub fn next_batch_of(&mut self, size: usize) -> Result<Batch> {
        let start = self.cursor.samples;
        let Some(end) = start.checked_add(size as u64) else {
            let problem = format!("the stream cannot stand at sample {start}");
            return Err(Error::config(self.name.clone(), problem, "resume from another checkpoint"));
        };
        let members: Vec<usize> = (start..end).map(|position| self.sample_at(position)).collect();
        self.cursor.samples = end;
        Ok(self.batch_of(&members))
    }

    /// One pass in file order, in batches of `options.batch` (the last may be smaller), for evaluation.
    pub fn all_batches(&self) -> Result<Vec<Batch>> {
        let all: Vec<usize> = (0..self.len()).collect();
        Ok(all.chunks(self.options.batch).map(|members| self.batch_of(members)).collect())
    }

    /// Number of usable samples (for preference data: pairs).
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether it has no sample; [`DataStream::open`] refuses such a file.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows that were read: samples that are used, and samples that are left out.
    pub fn rows(&self) -> usize {
        self.len() + self.skipped()
    }

    /// Samples of which the end was cut off at `max_length`.
    pub fn cut(&self) -> usize {
        self.samples.cut
    }

    /// Samples left out because no token of them is learned.
    pub fn skipped(&self) -> usize {
        self.samples.skipped
    }

    /// An upper bound of the tokens of any batch, wherever it starts, padding included.
    pub fn max_batch_tokens(&self) -> usize {
        self.max_batch_tokens_of(self.options.batch)
    }

    /// An upper bound of the tokens of any batch of `batch` samples, which is not 0.
    pub fn max_batch_tokens_of(&self, batch: usize) -> usize {
        if !self.options.pack {
            return batch * self.samples.sequences_per_sample() * self.longest();
        }
        // A batch touches this many passes at most, and each of them holds a sample once.
        let passes = (batch - 1).div_ceil(self.len()) + 1;
        let mut lengths = self.samples.lengths();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        lengths.iter().flat_map(|&length| std::iter::repeat_n(length, passes)).take(batch).sum()
    }

    /// Tokens of its longest sequence.
    pub fn longest(&self) -> usize {
        self.samples.longest()
    }

    /// Whether samples are preference pairs.
    pub fn is_preference(&self) -> bool {
        self.samples.is_preference()
    }

    /// Where it stands.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Moves to a place where it stood before.
    pub fn seek(&mut self, cursor: Cursor) {
        self.cursor = cursor;
    }

    /// The sample at `position` of the endless sequence.
    fn sample_at(&mut self, position: u64) -> usize {
        let count = self.len() as u64;
        let pass = position / count;
        let within = (position % count) as usize;
        if !self.options.shuffle {
            return within;
        }
        if self.order.is_empty() || self.pass != pass {
            self.order = (0..self.len()).collect();
            self.pass = pass;
            let stream = u64::from(crc32c::crc32c(self.name.as_bytes()) & 0x00ff_ffff);
            Random::new(self.options.seed, Stream::Data, pass, stream).shuffle(&mut self.order);
        }
        self.order[within]
    }

    fn batch_of(&self, members: &[usize]) -> Batch {
        let sequences: Vec<_> = members.iter().flat_map(|&index| self.samples.sequences(index)).collect();
        let longest = sequences.iter().map(|(tokens, _)| tokens.len()).max().unwrap_or(0);
        let mut batch = Batch::default();
        for (tokens, labels) in sequences {
            if self.options.pack || tokens.len() == longest {
                batch.push(tokens, labels, tokens.len());
                continue;
            }
            let padded = |values: &[u32], padding: u32| {
                let mut values = values.to_vec();
                values.resize(longest, padding);
                values
            };
            batch.push(&padded(tokens, self.options.pad_token_id), &padded(labels, IGNORE_INDEX), tokens.len());
        }
        batch
    }
}
