//! Host memory of one dtype.

use crate::ops::DType;

/// A buffer of 4-byte elements: f32, or u32 in the same storage.
#[derive(Debug)]
pub struct CpuBuffer {
    words: Vec<f32>,
    dtype: DType,
}

impl CpuBuffer {
    pub(super) fn zeros(len: usize, dtype: DType) -> Self {
        Self { words: vec![0.0; len], dtype }
    }

    /// How the elements are stored.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The elements of a float buffer.
    pub fn floats(&self) -> &[f32] {
        debug_assert_eq!(self.dtype, DType::F32);
        &self.words
    }

    /// The elements of a float buffer, to write.
    pub fn floats_mut(&mut self) -> &mut [f32] {
        debug_assert_eq!(self.dtype, DType::F32);
        &mut self.words
    }

    /// The elements of an integer buffer.
    pub fn integers(&self) -> &[u32] {
        debug_assert_eq!(self.dtype, DType::U32);
        bytemuck::cast_slice(&self.words)
    }

    /// The elements of an integer buffer, to write.
    pub fn integers_mut(&mut self) -> &mut [u32] {
        debug_assert_eq!(self.dtype, DType::U32);
        bytemuck::cast_slice_mut(&mut self.words)
    }
}
