//! The operations a transformer and its training need, each a unit worth a kernel.
//!
//! An operation is a struct of its operands, with its formula, shapes and dtypes in its documentation and its check beside
//! it. The model fills it in and gives it to [`Backend::run`], which checks it and hands it to the device:
//! `backend.run(LinearForward { x, w, y })?`. Operands are row-major matrices ([`Matrix`]) inside device buffers. Where no
//! dtype is given, it is [`Backend::compute_dtype`]. An operation that produces a gradient of weights adds to its
//! destination; every other output is overwritten unless its documentation says that it accumulates.
//!
//! Letters in shapes: T tokens of a batch (all sequences, one after another), d hidden size, V vocabulary, H query
//! heads, G key/value heads, D head size, F intermediate size, r LoRA rank.

mod attention;
mod backend;
mod bias;
mod cached;
mod check;
mod element;
mod head_norm;
mod linear;
mod loss;
mod memory;
mod norm;
mod recording;
mod tensor;
mod update;

pub use attention::{AttentionBackward, AttentionForward, AttentionShape, Rope, RopeTable, Segment, Segments};
pub use backend::{Backend, Checked, Execute, Operation};
pub use bias::{AddBias, BiasBackward};
pub use cached::{AttentionCached, CachedSegment, CachedSegments};
pub use check::{Check, Extent, Named, Operand};
pub use element::{EmbeddingBackward, GatherRows, SignMask, SquaredNorm, SwigluBackward, SwigluForward, WeightedSum};
pub use head_norm::{HeadNormBackward, HeadNormForward};
pub use linear::{
    Dropout, LinearBackwardInput, LinearBackwardWeight, LinearForward, LoraBackward, LoraForward, LoraSlice,
};
pub use loss::{
    CosineMargin, DistanceKind, HeadGradients, HeadLoss, HeadTeacher, IGNORE_INDEX, LossHead, NegativePreference,
    Preference, RandomMapping, RepresentationDistance,
};
pub use memory::{Buffer, Clear, CopyValues, DType, DownloadF32, Fetch, Memory, Park, UploadF32, UploadU32};
pub use norm::{RmsNormBackward, RmsNormForward};
pub use recording::RecordingKey;
pub use tensor::{Matrix, MatrixMut, Tensor};
pub use update::{COEFFICIENTS, OptimizerUpdate, StateRounding, UpdateRule};

use crate::error::{Error, Result};

/// The error for operands that do not fit together.
pub(crate) fn shape_error(operation: &'static str, problem: String) -> Error {
    Error::Shape { operation, problem }
}

/// Fails unless `found` equals `expected`.
pub(crate) fn expect(operation: &'static str, what: &str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(shape_error(operation, format!("{what} is {found}, expected {expected}")))
}
