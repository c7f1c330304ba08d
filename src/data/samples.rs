//! Tokenised samples, kept compactly.

use crate::ops::IGNORE_INDEX;

/// One sequence: tokens and their labels ([`IGNORE_INDEX`] where a token is not to be learned).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sequence {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// As long as `tokens`.
    pub labels: Vec<u32>,
}

impl Sequence {
    /// Every token is to be learned.
    pub fn plain(tokens: Vec<u32>) -> Self {
        Self { labels: tokens.clone(), tokens }
    }

    /// Whether some token is a target: the first one never is.
    pub fn teaches(&self) -> bool {
        self.labels.iter().skip(1).any(|&label| label != IGNORE_INDEX)
    }

    /// Cuts the end off.
    pub fn truncate(&mut self, length: usize) {
        self.tokens.truncate(length);
        self.labels.truncate(length);
    }
}

/// What one row of a file gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sample {
    /// Text to learn.
    One(Sequence),
    /// A preference: chosen and rejected.
    Pair(Sequence, Sequence),
}

/// All sequences of a stream in two flat arrays.
#[derive(Debug, Default)]
pub struct Samples {
    tokens: Vec<u32>,
    labels: Vec<u32>,
    /// Start of each sequence, and the end of the last.
    starts: Vec<usize>,
    pairs: bool,
}

impl Samples {
    /// Collects samples, which are all of one kind.
    pub fn new(pairs: bool) -> Self {
        Self { pairs, starts: vec![0], ..Self::default() }
    }

    /// Appends a sequence; pairs append chosen, then rejected.
    pub fn push(&mut self, sequence: &Sequence) {
        self.tokens.extend_from_slice(&sequence.tokens);
        self.labels.extend_from_slice(&sequence.labels);
        self.starts.push(self.tokens.len());
    }

    /// Sequences of a sample.
    fn width(&self) -> usize {
        if self.pairs { 2 } else { 1 }
    }

    /// Whether samples are pairs.
    pub fn pairs(&self) -> bool {
        self.pairs
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        (self.starts.len() - 1) / self.width()
    }

    /// Tokens of the longest sequence.
    pub fn longest(&self) -> usize {
        self.starts.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0)
    }

    /// The (tokens, labels) of a sample's sequences.
    pub fn sequences(&self, sample: usize) -> impl Iterator<Item = (&[u32], &[u32])> {
        let first = sample * self.width();
        (first..first + self.width()).map(|i| {
            let place = self.starts[i]..self.starts[i + 1];
            (&self.tokens[place.clone()], &self.labels[place])
        })
    }
}
