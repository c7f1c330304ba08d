//! The named data streams of a run.

use std::collections::BTreeMap;

use super::Adversary;
use crate::data::DataStream;
use crate::error::{Error, Result};
use crate::model::{Batch, Model};
use crate::objective::LossBatch;
use crate::ops::Backend;

/// The named data streams of a run.
#[derive(Default)]
pub struct Streams(pub BTreeMap<String, DataStream>);

impl Streams {
    /// The next batch of a stream, on the device.
    pub fn next_batch<B: Backend>(&mut self, model: &Model<B>, name: &str) -> Result<LossBatch<B>> {
        LossBatch::new(model, self.named(name)?.next_batch()?)
    }

    /// As [`Streams::next_batch`], in the place of the batch before.
    pub fn refill<B: Backend>(&mut self, model: &Model<B>, name: &str, batch: &mut LossBatch<B>) -> Result<()> {
        batch.refill(model, self.named(name)?.next_batch()?)
    }

    /// As [`Streams::refill`], with `batch_size` sequences; with the stream's own number where absent.
    pub fn refill_with<B: Backend>(
        &mut self,
        model: &Model<B>,
        name: &str,
        batch_size: Option<usize>,
        batch: &mut LossBatch<B>,
    ) -> Result<()> {
        let stream = self.named(name)?;
        let next = match batch_size {
            Some(size) => stream.next_batch_of(size)?,
            None => stream.next_batch()?,
        };
        batch.refill(model, next)
    }

    /// The next batch of a stream, on the host.
    pub fn next_on_host(&mut self, name: &str) -> Result<Batch> {
        self.named(name)?.next_batch()
    }

    /// Passes over one batch of a stream.
    pub fn skip_batch(&mut self, name: &str) -> Result<()> {
        self.named(name)?.next_batch().map(|_| ())
    }

    /// The largest batch of any stream, in tokens.
    pub fn max_batch_tokens(&self) -> usize {
        self.0.values().map(DataStream::max_batch_tokens).max().unwrap_or(0)
    }

    /// The same with the batches of `adversaries` that have a size of their own.
    pub(super) fn max_tokens_with(&self, adversaries: &[Adversary]) -> usize {
        let own = adversaries.iter().filter_map(|adversary| Some((adversary.batch?, &adversary.source)));
        let own = own.flat_map(|(size, source)| {
            let streams = source.streams().into_iter().filter_map(|name| self.0.get(name));
            streams.map(move |stream| stream.max_batch_tokens_of(size))
        });
        own.chain([self.max_batch_tokens()]).max().unwrap_or(0)
    }

    fn named(&mut self, name: &str) -> Result<&mut DataStream> {
        self.0.get_mut(name).ok_or_else(|| unknown_stream(name))
    }
}

/// The error for a stream that the settings name and the data lack.
pub(super) fn unknown_stream(name: &str) -> Error {
    Error::config(format!("data.{name}"), "there is no such data stream", "add the table or mend the name")
}
