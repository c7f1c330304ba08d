//! A batch with the targets of its losses, on the host and on the device.

use crate::error::{Error, Result};
use crate::model::{Batch, DeviceBatch, Model};
use crate::ops::{self, Backend, DType, Tensor};

/// A batch with its next-token targets, on the host and on the device.
pub struct LossBatch<B: Backend> {
    pub(super) host: Batch,
    pub(super) device: DeviceBatch<B>,
    pub(super) targets: Vec<u32>,
    pub(super) device_targets: Tensor<B>,
    /// Whether its memory was made for a series of batches.
    pub(super) refillable: bool,
}

impl<B: Backend> LossBatch<B> {
    /// Checks a batch against the model and copies it to the device.
    pub fn new(model: &Model<B>, batch: Batch) -> Result<Self> {
        check(model, &batch)?;
        let targets = batch.next_token_targets();
        let device = DeviceBatch::new(&model.backend, &batch)?;
        let device_targets = Tensor::from_u32(&model.backend, "targets", &targets)?;
        Ok(Self { host: batch, device, targets, device_targets, refillable: false })
    }

    /// Memory for any batch of up to `tokens` tokens, empty at first. Passes on batches that follow one another in this
    /// memory are recorded, and replayed where the next batch has the same shape.
    pub fn with_room(model: &Model<B>, tokens: usize) -> Result<Self> {
        let device = DeviceBatch::with_room(&model.backend, tokens)?;
        let device_targets = Tensor::zeros(&model.backend, "targets", tokens, 1, DType::U32)?;
        Ok(Self { host: Batch::default(), device, targets: Vec::new(), device_targets, refillable: true })
    }

    /// Checks a batch against the model and copies it to the device, over the batch before it.
    pub fn refill(&mut self, model: &Model<B>, batch: Batch) -> Result<()> {
        check(model, &batch)?;
        self.device.refill(&model.backend, &batch)?;
        self.targets = batch.next_token_targets();
        self.device_targets.refill_u32(&model.backend, &self.targets)?;
        self.host = batch;
        Ok(())
    }

    /// The batch on the host.
    pub fn host(&self) -> &Batch {
        &self.host
    }

    /// Number of tokens that cross-entropy averages over.
    pub fn learned_tokens(&self) -> usize {
        self.targets.iter().filter(|&&t| t != ops::IGNORE_INDEX).count()
    }
}

fn check<B: Backend>(model: &Model<B>, batch: &Batch) -> Result<()> {
    batch.check(model.config.vocab_size, model.positions())?;
    if batch.is_empty() {
        return Err(Error::config("data", "a batch without tokens", "look at the data with `temper data inspect`"));
    }
    Ok(())
}
