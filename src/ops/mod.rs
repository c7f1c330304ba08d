//! The operations a transformer and its training need, each a unit worth a kernel.
//!
//! [`Backend`] is what a device implements. The functions of this module are what the model calls: they check shapes
//! once, here, and then call the backend, which may rely on them. Operands are row-major matrices ([`Matrix`]) inside
//! device buffers. An operation that produces a gradient of weights adds to its destination; every other output is
//! overwritten unless its documentation says that it accumulates.
//!
//! Letters in shapes: T tokens of a batch (all sequences, one after another), d hidden size, V vocabulary, H query
//! heads, G key/value heads, D head size, F intermediate size, r LoRA rank.

mod attention;
mod backend;
mod cached;
mod element;
mod linear;
mod loss;
mod norm;
mod tensor;
mod update;

pub use attention::{AttentionShape, RopeTable, Segment, Segments, attention_backward, attention_forward, rope};
pub use backend::{Backend, DType};
pub use cached::{CachedSegment, CachedSegments, attention_cached};
pub use element::{
    axpy, embedding_backward, embedding_forward, gather_rows, squared_norm, swiglu_backward, swiglu_forward,
    weighted_sum,
};
pub use linear::{
    Dropout, LoraGradients, LoraSlice, linear_backward_input, linear_backward_weight, linear_forward, lora_backward,
    lora_forward,
};
pub use loss::{HeadGradients, HeadLoss, IGNORE_INDEX, loss_head, preference, random_mapping, representation_distance};
pub use norm::{rms_norm_backward, rms_norm_forward};
pub use tensor::{Matrix, MatrixMut, Tensor};
pub use update::{COEFFICIENTS, StateRounding, UpdateRule, optimizer_update};

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
