//! The weights that a pass computes with.

use super::{Adapter, Parameters};
use crate::ops::{Backend, Dropout};

/// The weights that a pass computes with.
pub struct Subject<'a, B: Backend> {
    /// The model's weights.
    pub weights: &'a Parameters<B>,
    /// Low-rank factors on top of them.
    pub adapter: Option<&'a Adapter<B>>,
    /// Dropout of the adapter's input.
    pub dropout: Option<Dropout>,
}

impl<B: Backend> Clone for Subject<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Subject<'_, B> {}

impl<'a, B: Backend> Subject<'a, B> {
    /// Weights without an adapter.
    pub fn plain(weights: &'a Parameters<B>) -> Self {
        Self { weights, adapter: None, dropout: None }
    }
}
