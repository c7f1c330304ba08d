//! The open data of a fine-tuning run.

use super::{FineTune, Step};
use crate::data::{Cursor, DataStream};
use crate::error::Result;
use crate::model::Model;
use crate::objective::LossBatch;
use crate::ops::Backend;

/// The name that keys the order of every stream of an attack, together with the seed: the order does not depend on what the
/// attacker calls his data.
const ORDER: &str = "data";

/// The streams of a run, each from its start, in the order of [`super::Source::streams`].
pub struct OpenStreams(Vec<DataStream>);

impl OpenStreams {
    /// Opens what `fine_tune` trains on of its streams, which `find` finds by their names, in the order of `seed`.
    pub fn new<'a, S>(
        fine_tune: &FineTune<S>,
        seed: u64,
        mut find: impl FnMut(&S) -> Result<&'a DataStream>,
    ) -> Result<Self> {
        let mut streams = Vec::new();
        for name in fine_tune.source.streams() {
            let stream = find(name)?;
            let selected = fine_tune.selection.of(stream, seed)?;
            streams.push(selected.reopened(ORDER, fine_tune.batch.unwrap_or(stream.batch()), seed)?);
        }
        Ok(Self(streams))
    }

    /// Puts the next batch of a step's stream into the memory of batches.
    pub fn refill<B: Backend>(&mut self, step: &Step, model: &Model<B>, batch: &mut LossBatch<B>) -> Result<()> {
        batch.refill(model, self.0[step.stream].next_batch()?)
    }

    /// The largest batch of any stream, in tokens.
    pub fn max_batch_tokens(&self) -> usize {
        self.0.iter().map(DataStream::max_batch_tokens).max().unwrap_or(0)
    }

    /// Where the streams stand, for a checkpoint.
    pub fn cursors(&self) -> Vec<Cursor> {
        self.0.iter().map(DataStream::cursor).collect()
    }

    /// Goes on where a checkpoint's streams stood.
    pub fn seek(&mut self, cursors: &[Cursor]) {
        for (stream, cursor) in self.0.iter_mut().zip(cursors) {
            stream.seek(*cursor);
        }
    }
}
