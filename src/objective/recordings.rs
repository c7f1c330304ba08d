//! The recorded passes of an evaluator. A recording fits a pass with the same loss on the same memory and a batch of the
//! same shape.

use super::LossBatch;
use crate::model::{Subject, Workspace};
use crate::ops::{Backend, HeadLoss, RecordingKey};

/// Passes that are kept. A further one takes the place of the one that was not used for the longest time.
const MOST: usize = 32;

/// A pass, as far as its recording depends on it.
pub(super) struct Recordable<'a, B: Backend> {
    pub loss: HeadLoss,
    pub subject: Subject<'a, B>,
    pub batch: &'a LossBatch<B>,
    pub workspace: &'a Workspace<B>,
}

impl<B: Backend> Recordable<'_, B> {
    /// The key of the pass, to which the caller adds the memory that it writes besides its workspace; or `None` for a pass
    /// that cannot be recorded. A batch in memory of its own does not come back, and a dropout mask depends on numbers that
    /// are passed to its kernel by value.
    pub(super) fn key(self) -> Option<RecordingKey> {
        let Self { loss, subject, batch, workspace } = self;
        if !batch.refillable || subject.dropout.is_some() {
            return None;
        }
        let longest = batch.host.segments.iter().map(|segment| segment.length).max()?;
        let mut key = RecordingKey::default();
        key.number(loss as u64);
        for size in [batch.host.len(), batch.host.segments.len(), longest] {
            key.number(size as u64);
        }
        key.buffer(subject.weights.buffer());
        key.optional_buffer(subject.adapter.map(|adapter| adapter.parameters.buffer()));
        key.buffer(batch.device.tokens.buffer());
        key.buffer(workspace.hidden_state(0, 0).buffer);
        Some(key)
    }
}

/// Recorded passes, in the order of their last use.
pub(super) struct Recordings<B: Backend>(Vec<(RecordingKey, B::Recording)>);

impl<B: Backend> Default for Recordings<B> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<B: Backend> Recordings<B> {
    /// Takes the recording of `key` out, or a new one, until [`Recordings::put_back`].
    pub(super) fn take(&mut self, key: &RecordingKey) -> B::Recording {
        match self.0.iter().position(|(other, _)| other == key) {
            Some(place) => self.0.remove(place).1,
            None => B::Recording::default(),
        }
    }

    pub(super) fn put_back(&mut self, key: RecordingKey, recording: B::Recording) {
        if self.0.len() == MOST {
            self.0.remove(0);
        }
        self.0.push((key, recording));
    }
}
