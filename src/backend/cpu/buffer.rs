//! Host memory of one dtype.

use crate::ops::{Buffer, DType};

/// A buffer of 4-byte elements: f32, or u32 in the same storage.
#[derive(Debug)]
pub struct CpuBuffer {
    words: Vec<f32>,
    dtype: DType,
}

impl CpuBuffer {
    /// `None` where the system has no memory for `len` elements.
    pub(super) fn zeros(len: usize, dtype: DType) -> Option<Self> {
        // `vec!` ends the process where there is no memory, so the allocator is asked first. The answer reserves addresses
        // and touches no page.
        let mut question = Vec::<f32>::new();
        question.try_reserve_exact(len).ok()?;
        drop(std::hint::black_box(question));
        Some(Self { words: vec![0.0; len], dtype })
    }

    /// The elements, whatever they are.
    pub(super) fn words(&self) -> &[f32] {
        &self.words
    }

    /// The elements, whatever they are, to write.
    pub(super) fn words_mut(&mut self) -> &mut [f32] {
        &mut self.words
    }

    /// The elements of a float buffer; the checks of [`crate::ops`] vouch that it is one.
    pub(super) fn floats(&self) -> &[f32] {
        debug_assert_eq!(self.dtype, DType::F32);
        &self.words
    }

    /// The elements of a float buffer, to write.
    pub(super) fn floats_mut(&mut self) -> &mut [f32] {
        debug_assert_eq!(self.dtype, DType::F32);
        &mut self.words
    }

    /// The elements of an integer buffer.
    pub(super) fn integers(&self) -> &[u32] {
        debug_assert_eq!(self.dtype, DType::U32);
        bytemuck::cast_slice(&self.words)
    }

    /// The elements of an integer buffer, to write.
    pub(super) fn integers_mut(&mut self) -> &mut [u32] {
        debug_assert_eq!(self.dtype, DType::U32);
        bytemuck::cast_slice_mut(&mut self.words)
    }
}

impl Buffer for CpuBuffer {
    fn len(&self) -> usize {
        self.words.len()
    }

    fn dtype(&self) -> DType {
        self.dtype
    }
}
