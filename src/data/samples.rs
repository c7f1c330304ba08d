//! Token sequences with labels, kept in one arena; decides which of them are usable. Knows no file and no order.

use crate::fingerprint::Fingerprint;
use crate::ops::IGNORE_INDEX;

/// A token sequence and its labels, unshifted: [`IGNORE_INDEX`] where a token is not learned.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Sequence {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Label of each token.
    pub labels: Vec<u32>,
}

impl Sequence {
    /// A sequence that learns every token.
    pub fn all_learned(tokens: Vec<u32>) -> Self {
        Self { labels: tokens.clone(), tokens }
    }

    /// Cuts the end off beyond `max_length` tokens; says whether there was anything to cut.
    pub fn truncate(&mut self, max_length: usize) -> bool {
        let longer = self.tokens.len() > max_length;
        self.tokens.truncate(max_length);
        self.labels.truncate(max_length);
        longer
    }

    /// Whether a token is learned. The first one cannot be: nothing predicts it.
    pub fn is_trained(&self) -> bool {
        self.labels.iter().skip(1).any(|&label| label != IGNORE_INDEX)
    }

    /// Says what is wrong with its ids for a vocabulary of `vocab_size`, if anything is.
    pub fn problem(&self, vocab_size: usize) -> Option<String> {
        if self.labels.len() != self.tokens.len() {
            return Some(format!("{} labels for {} tokens", self.labels.len(), self.tokens.len()));
        }
        let outside = |&&id: &&u32| id as usize >= vocab_size;
        let label = self.labels.iter().filter(|&&id| id != IGNORE_INDEX).find(outside);
        let (what, id) = match (self.tokens.iter().find(outside), label) {
            (Some(id), _) => ("token", id),
            (None, Some(id)) => ("label", id),
            (None, None) => return None,
        };
        Some(format!("{what} id {id} is outside the model's vocabulary of {vocab_size}"))
    }
}

/// One sample: a sequence, or the two of a preference pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sample {
    /// A sequence.
    One(Sequence),
    /// A preference pair: (chosen, rejected).
    Pair(Sequence, Sequence),
}

impl Sample {
    /// Its sequences, chosen before rejected.
    pub fn sequences(&self) -> impl Iterator<Item = &Sequence> {
        let (first, second) = match self {
            Self::One(one) => (one, None),
            Self::Pair(chosen, rejected) => (chosen, Some(rejected)),
        };
        std::iter::once(first).chain(second)
    }

    fn sequences_mut(&mut self) -> impl Iterator<Item = &mut Sequence> {
        let (first, second) = match self {
            Self::One(one) => (one, None),
            Self::Pair(chosen, rejected) => (chosen, Some(rejected)),
        };
        std::iter::once(first).chain(second)
    }

    /// Cuts the end off every sequence beyond `max_length` tokens; says whether there was anything to cut.
    pub fn truncate(&mut self, max_length: usize) -> bool {
        self.sequences_mut().map(|sequence| sequence.truncate(max_length)).filter(|cut| *cut).count() > 0
    }

    /// Whether every sequence learns a token.
    pub fn is_trained(&self) -> bool {
        self.sequences().all(Sequence::is_trained)
    }
}

/// All usable samples of a stream, in file order.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    tokens: Vec<u32>,
    labels: Vec<u32>,
    /// Where each sequence ends in the arena; a pair has two sequences.
    ends: Vec<usize>,
    preference: bool,
    /// Samples of which an end was cut off.
    pub cut: usize,
    /// Samples left out because no token of them would be learned.
    pub skipped: usize,
}

impl Samples {
    /// Takes in a sample whose ids were checked, cut to `max_length`; leaves it out if nothing of it is learned.
    /// Fails with a reason if it is a pair among single sequences, or the other way round.
    pub fn push(&mut self, mut sample: Sample, max_length: usize) -> Result<(), &'static str> {
        let preference = matches!(sample, Sample::Pair(..));
        let first = self.ends.is_empty() && self.skipped == 0;
        if !first && preference != self.preference {
            return Err("preference pairs and single sequences are mixed");
        }
        self.preference = preference;
        self.cut += usize::from(sample.truncate(max_length));
        if !sample.is_trained() {
            self.skipped += 1;
            return Ok(());
        }
        for sequence in sample.sequences() {
            self.tokens.extend_from_slice(&sequence.tokens);
            self.labels.extend_from_slice(&sequence.labels);
            self.ends.push(self.tokens.len());
        }
        Ok(())
    }

    /// The samples of these numbers. Of each sequence at most `opening` tokens are learned, where that is given, and what
    /// follows the last of them is cut off.
    pub fn part(&self, members: &[usize], opening: Option<usize>) -> Self {
        let mut part = Self { preference: self.preference, ..Self::default() };
        for &member in members {
            for (tokens, labels) in self.sequences(member) {
                let end = opening.map_or(tokens.len(), |most| end_of_learned(labels, most));
                part.tokens.extend_from_slice(&tokens[..end]);
                part.labels.extend_from_slice(&labels[..end]);
                part.ends.push(part.tokens.len());
            }
        }
        part
    }

    /// Number of samples (pairs count once).
    pub fn len(&self) -> usize {
        self.ends.len() / self.sequences_per_sample()
    }

    /// Whether samples are preference pairs.
    pub fn is_preference(&self) -> bool {
        self.preference
    }

    /// 2 for preference pairs, else 1.
    pub fn sequences_per_sample(&self) -> usize {
        1 + usize::from(self.preference)
    }

    /// (tokens, labels) of each sequence of sample `index`.
    pub fn sequences(&self, index: usize) -> impl Iterator<Item = (&[u32], &[u32])> {
        let count = self.sequences_per_sample();
        (index * count..(index + 1) * count).map(|i| {
            let range = self.range(i);
            (&self.tokens[range.clone()], &self.labels[range])
        })
    }

    /// Tokens of each sample, both sequences of a pair together.
    pub fn lengths(&self) -> Vec<usize> {
        let count = self.sequences_per_sample();
        (0..self.len()).map(|s| (s * count..(s + 1) * count).map(|i| self.range(i).len()).sum()).collect()
    }

    /// Tokens of the longest sequence.
    pub fn longest(&self) -> usize {
        (0..self.ends.len()).map(|i| self.range(i).len()).max().unwrap_or(0)
    }

    /// Tells tokens, labels and lengths from others.
    pub fn fingerprint(&self) -> Fingerprint {
        let lengths: Vec<u32> = (0..self.ends.len()).map(|sequence| self.range(sequence).len() as u32).collect();
        Fingerprint::of_lists(&[&self.tokens, &self.labels, &lengths])
    }

    fn range(&self, sequence: usize) -> std::ops::Range<usize> {
        let start = if sequence == 0 { 0 } else { self.ends[sequence - 1] };
        start..self.ends[sequence]
    }
}

/// The place after the first `most` learned tokens; the end of the sequence where it has no more than these. The first
/// token is never learned: nothing predicts it.
fn end_of_learned(labels: &[u32], most: usize) -> usize {
    let learned = labels.iter().enumerate().skip(1).filter(|(_, label)| **label != IGNORE_INDEX);
    let last = most.checked_sub(1).and_then(|last| learned.map(|(place, _)| place).nth(last));
    last.map_or(labels.len(), |last| last + 1)
}
