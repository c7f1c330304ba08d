//! [`Backend`]: what a device must be able to do, and [`Operation`]: how it is asked to.

use super::*;
use crate::fingerprint::Fingerprint;

/// A call of an operation: its operands by name, and their check.
///
/// A struct's documentation says what it computes; the documentation of its fields, in which shape and dtype. Two operands
/// of one type and shape cannot be swapped unnoticed, as they could in a list of arguments.
pub trait Operation: Sized {
    /// The operation's name, in messages.
    const NAME: &'static str;
    /// What the caller gets, besides what is written to operands.
    type Output;

    /// Fails unless shapes, dtypes and ranges of the operands fit together. Numbers on the device (ids, indices, positions)
    /// cannot be checked here: whoever brings them there has done it.
    fn check(&self, check: &Check) -> Result<()>;
}

/// Operands that passed their check. Only [`Backend::run`] makes them, so a backend can rely on shapes, dtypes and ranges,
/// and nobody can call a backend without the check.
pub struct Checked<O>(O);

impl<O> Checked<O> {
    /// The operands.
    pub fn operands(self) -> O {
        self.0
    }
}

/// How a device does one operation.
pub trait Execute<O: Operation> {
    /// Does it, or queues it. Called by [`Backend::run`] alone.
    fn execute(&self, checked: Checked<O>) -> Result<O::Output>;
}

/// A device: its memory and the operations of a transformer on it.
///
/// A value is a cheap handle (cloning it does not clone the device). Operations are queued in the order of the calls;
/// only [`DownloadF32`] and [`SquaredNorm`] wait for the device. This list is the only one of the operations: each backend
/// implements [`Execute`] for each of them, beside the code that does it.
pub trait Backend:
    Memory
    + for<'a> Execute<UploadF32<'a, Self>>
    + for<'a> Execute<UploadU32<'a, Self>>
    + for<'a> Execute<DownloadF32<'a, Self>>
    + for<'a> Execute<CopyValues<'a, Self>>
    + for<'a> Execute<Park<'a, Self>>
    + for<'a> Execute<Fetch<'a, Self>>
    + for<'a> Execute<Clear<'a, Self>>
    + for<'a> Execute<LinearForward<'a, Self>>
    + for<'a> Execute<LinearBackwardInput<'a, Self>>
    + for<'a> Execute<LinearBackwardWeight<'a, Self>>
    + for<'a> Execute<AddBias<'a, Self>>
    + for<'a> Execute<BiasBackward<'a, Self>>
    + for<'a> Execute<LoraForward<'a, Self>>
    + for<'a> Execute<LoraBackward<'a, Self>>
    + for<'a> Execute<GatherRows<'a, Self>>
    + for<'a> Execute<EmbeddingBackward<'a, Self>>
    + for<'a> Execute<RmsNormForward<'a, Self>>
    + for<'a> Execute<RmsNormBackward<'a, Self>>
    + for<'a> Execute<HeadNormForward<'a, Self>>
    + for<'a> Execute<HeadNormBackward<'a, Self>>
    + for<'a> Execute<Rope<'a, Self>>
    + for<'a> Execute<AttentionForward<'a, Self>>
    + for<'a> Execute<AttentionBackward<'a, Self>>
    + for<'a> Execute<AttentionCached<'a, Self>>
    + for<'a> Execute<SwigluForward<'a, Self>>
    + for<'a> Execute<SwigluBackward<'a, Self>>
    + for<'a> Execute<LossHead<'a, Self>>
    + for<'a> Execute<RepresentationDistance<'a, Self>>
    + for<'a> Execute<CosineMargin<'a, Self>>
    + for<'a> Execute<RandomMapping<'a, Self>>
    + for<'a> Execute<Preference<'a, Self>>
    + for<'a> Execute<NegativePreference<'a, Self>>
    + for<'a> Execute<WeightedSum<'a, Self>>
    + for<'a> Execute<SquaredNorm<'a, Self>>
    + for<'a> Execute<SignMask<'a, Self>>
    + for<'a> Execute<OptimizerUpdate<'a, Self>>
{
    /// What [`Backend::record`] keeps of some work.
    type Recording: Default + Send;

    /// What it is, for people: "cpu, 2 threads, f32".
    fn description(&self) -> String;
    /// What tells apart the measured choices that its operations follow; `None` where they follow none. Results of two
    /// backends that differ in it need not have the same bits.
    fn tuning(&self) -> Option<Fingerprint> {
        None
    }
    /// Those choices, with the device that they are for, as a document for a run to keep beside its checkpoints; `None` where
    /// there is nothing to choose from.
    ///
    /// # Errors
    /// [`Error::Defect`](crate::Error::Defect) alone.
    fn kept_choices(&self) -> Result<Option<serde_json::Value>> {
        Ok(None)
    }
    /// Bytes of the device's own memory; `None` where it works in main memory.
    fn device_memory(&self) -> Option<u64>;
    /// How weights and activations are stored; losses, gradients and optimizer states are [`DType::F32`].
    fn compute_dtype(&self) -> DType;

    /// Queues `work`, which must consist of the same operations on the same buffers, with the same numbers by value, each
    /// time that it is called with this `recording`: a device may execute what it recorded before, without calling `work`.
    /// So `work` must neither allocate, copy from or to the host, nor change anything of the caller's that matters. The
    /// buffers must live as long as the recording.
    fn record(&self, recording: &mut Self::Recording, work: impl FnOnce() -> Result<()>) -> Result<()>;

    /// Checks the operands of an operation and does it.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for operands that do not fit, the same on every backend.
    fn run<O: Operation>(&self, operation: O) -> Result<O::Output>
    where
        Self: Execute<O>,
    {
        operation.check(&Check { operation: O::NAME, compute: self.compute_dtype() })?;
        self.execute(Checked(operation))
    }

    /// Copies numbers to `to[offset..]`; see [`UploadF32`].
    fn upload_f32(&self, to: &mut Self::Buffer, offset: usize, values: &[f32]) -> Result<()> {
        self.run(UploadF32 { values, to, offset })
    }
    /// Copies numbers to `to[offset..]`; see [`UploadU32`].
    fn upload_u32(&self, to: &mut Self::Buffer, offset: usize, values: &[u32]) -> Result<()> {
        self.run(UploadU32 { values, to, offset })
    }
    /// Copies `from[offset..offset + len]` to the host; see [`DownloadF32`].
    fn download_f32(&self, from: &Self::Buffer, offset: usize, len: usize) -> Result<Vec<f32>> {
        self.run(DownloadF32 { from, offset, len })
    }
}
