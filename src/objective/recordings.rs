//! The recorded passes of an evaluator. A recording fits a pass with the same loss on the same memory and a batch of the
//! same shape.

use super::LossBatch;
use crate::model::{Subject, Workspace};
use crate::ops::{Backend, HeadLoss};

/// Passes that are kept. A further one takes the place of the one that was not used for the longest time.
const MOST: usize = 32;

/// Everything that a recorded pass depends on and that can differ from one pass to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    loss: HeadLoss,
    /// Tokens, sequences, the longest sequence.
    shape: [usize; 3],
    /// Identities of weights, adapter, batch, hidden states, and of what is [`Recordable::written`].
    buffers: [u64; 6],
}

/// A pass, as far as its recording depends on it.
pub(super) struct Recordable<'a, B: Backend> {
    pub backend: &'a B,
    pub loss: HeadLoss,
    pub subject: Subject<'a, B>,
    pub batch: &'a LossBatch<B>,
    pub workspace: &'a Workspace<B>,
    /// Identities of what the pass writes besides its workspace: the gradients of weights and adapter, or the gradient of a
    /// part and its stepper.
    pub written: [u64; 2],
}

impl Key {
    /// The key of a pass, or `None` for a pass that cannot be recorded. A batch in memory of its own does not come back,
    /// and a dropout mask depends on numbers that are passed to its kernel by value.
    pub(super) fn of<B: Backend>(pass: Recordable<B>) -> Option<Self> {
        let Recordable { backend, loss, subject, batch, workspace, written: [first, second] } = pass;
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
                first,
                second,
            ],
        })
    }
}

/// Recorded passes, in the order of their last use.
pub(super) struct Recordings<B: Backend>(Vec<(Key, B::Recording)>);

impl<B: Backend> Default for Recordings<B> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<B: Backend> Recordings<B> {
    /// Takes the recording of `key` out, or a new one, until [`Recordings::put_back`].
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
