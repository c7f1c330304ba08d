//! A batch of token sequences, on the host and on the device.

use crate::error::{Error, Result};
use crate::ops::{Backend, DType, IGNORE_INDEX, Segment, Segments, Tensor};

/// Sequences laid one after another, without gaps.
#[derive(Clone, Debug, PartialEq, Eq, Default, serde::Serialize)]
pub struct Batch {
    /// Token ids, `[T]`.
    pub tokens: Vec<u32>,
    /// The position of each token in its sequence, `[T]`.
    pub positions: Vec<u32>,
    /// The label of each token, `[T]`, not shifted: [`IGNORE_INDEX`] where the token is not to be learned.
    pub labels: Vec<u32>,
    /// The sequences.
    pub segments: Vec<Segment>,
}

impl Batch {
    /// Appends a sequence. `labels` has the length of `tokens`; rows from `valid` on are padding.
    pub fn push(&mut self, tokens: &[u32], labels: &[u32], valid: usize) {
        debug_assert_eq!(tokens.len(), labels.len());
        let start = self.tokens.len();
        self.segments.push(Segment { start, length: tokens.len(), valid: valid.min(tokens.len()) });
        self.positions.extend(0..tokens.len() as u32);
        self.tokens.extend_from_slice(tokens);
        self.labels.extend_from_slice(labels);
    }

    /// Number of rows, padding included.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether it has no row.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The token that each row should predict, `[T]`: the label of the next row of the same sequence.
    pub fn next_token_targets(&self) -> Vec<u32> {
        let mut targets = vec![IGNORE_INDEX; self.len()];
        for s in &self.segments {
            let learned = s.valid.saturating_sub(1);
            targets[s.start..s.start + learned].copy_from_slice(&self.labels[s.start + s.valid - learned..][..learned]);
        }
        targets
    }

    /// Whether each row is a real token, `[T]`.
    pub fn is_real(&self) -> Vec<bool> {
        let mut real = vec![false; self.len()];
        for s in &self.segments {
            real[s.start..s.start + s.valid].fill(true);
        }
        real
    }

    /// Fails unless every id is below `vocab_size` and every position below `positions`.
    pub fn check(&self, vocab_size: usize, positions: usize) -> Result<()> {
        let bad = self.tokens.iter().find(|&&id| id as usize >= vocab_size);
        if let Some(id) = bad {
            return Err(Error::config(
                "data",
                format!("token id {id} is outside the model's vocabulary of {vocab_size}"),
                "use the tokenizer that belongs to the model",
            ));
        }
        let longest = self.segments.iter().map(|s| s.length).max().unwrap_or(0);
        if longest > positions {
            return Err(Error::config(
                "data",
                format!("a sequence of {longest} tokens is longer than the {positions} positions the model was given"),
                "lower max_length",
            ));
        }
        Ok(())
    }
}

/// A [`Batch`] in device memory.
pub struct DeviceBatch<B: Backend> {
    /// [T, 1] u32.
    pub tokens: Tensor<B>,
    /// [T, 1] u32.
    pub positions: Tensor<B>,
    /// The sequences.
    pub segments: Segments<B>,
}

impl<B: Backend> DeviceBatch<B> {
    /// Copies a batch to the device.
    pub fn new(backend: &B, batch: &Batch) -> Result<Self> {
        Ok(Self {
            tokens: Tensor::from_u32(backend, "tokens", &batch.tokens)?,
            positions: Tensor::from_u32(backend, "positions", &batch.positions)?,
            segments: Segments::new(backend, batch.segments.clone())?,
        })
    }

    /// Room for any batch of up to `tokens` tokens: [`DeviceBatch::refill`].
    pub fn with_room(backend: &B, tokens: usize) -> Result<Self> {
        let column = |name: &str, rows| Tensor::zeros(backend, name, rows, 1, DType::U32);
        let segments = Segments { host: Vec::new(), device: column("segments", 3 * tokens)? };
        Ok(Self { tokens: column("tokens", tokens)?, positions: column("positions", tokens)?, segments })
    }

    /// Takes another batch into the same memory.
    pub fn refill(&mut self, backend: &B, batch: &Batch) -> Result<()> {
        self.tokens.refill_u32(backend, &batch.tokens)?;
        self.positions.refill_u32(backend, &batch.positions)?;
        self.segments.refill(backend, batch.segments.clone())
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.tokens.rows()
    }

    /// Whether it has no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
