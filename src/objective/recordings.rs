//! Which recorded passes an evaluator has, and which of them fits a pass: the same loss on the same memory, on a batch of
//! the same shape.

use super::{LossBatch, Subject};
use crate::model::Workspace;
use crate::ops::{Backend, HeadLoss};

/// Passes that are kept; shapes beyond that take the place of those that were not used for the longest time.
const MOST: usize = 32;

/// Everything that a recorded pass depends on and that can differ from one pass to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    loss: HeadLoss,
    /// Tokens, sequences, the longest sequence.
    shape: [usize; 3],
    /// Weights, adapter, batch, hidden states, gradients of the weights, and those of the adapter or the optimizer that
    /// steps within the pass.
    buffers: [u64; 6],
}

impl Key {
    /// That of a pass; none where it cannot be recorded: a batch of its own memory is not seen again, and dropout masks
    /// are drawn from numbers that are passed by value.
    pub(super) fn of<B: Backend>(
        backend: &B,
        loss: HeadLoss,
        subject: Subject<B>,
        batch: &LossBatch<B>,
        workspace: &Workspace<B>,
        [gradients, others]: [u64; 2],
    ) -> Option<Self> {
        if !batch.refillable || subject.dropout.is_some() {
            return None;
        }
        let longest = batch.host.segments.iter().map(|segment| segment.length).max()?;
        Some(Self {
            loss,
            shape: [batch.host.len(), batch.host.segments.len(), longest],
            buffers: [
                backend.identity(subject.weights.buffer()),
                subject.adapter.map_or(0, |adapter| backend.identity(adapter.parameters.buffer())),
                backend.identity(batch.device.tokens.buffer()),
                backend.identity(workspace.hidden_state(0, 0).buffer),
                gradients,
                others,
            ],
        })
    }
}

/// Recorded passes, the one that was used last at the end.
pub(super) struct Recordings<B: Backend>(Vec<(Key, B::Recording)>);

impl<B: Backend> Default for Recordings<B> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<B: Backend> Recordings<B> {
    /// Takes the recording of `key` out, or a new one; [`Recordings::put_back`] it.
    pub(super) fn take(&mut self, key: &Key) -> B::Recording {
        match self.0.iter().position(|(other, _)| other == key) {
            Some(place) => self.0.remove(place).1,
            None => B::Recording::default(),
        }
    }

    pub(super) fn put_back(&mut self, key: Key, recording: B::Recording) {
        if self.0.len() == MOST {
            self.0.remove(0);
        }
        self.0.push((key, recording));
    }
}
