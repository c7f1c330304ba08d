//! Host memory of one dtype.

use std::ops::Range;

use crate::ops::{Buffer, DType};

/// Bytes of a line of the caches. A register of AVX-512 that is loaded across two lines takes two loads.
const LINE: usize = 64;

/// A buffer of 4-byte elements: f32, or u32 in the same storage. The first one begins a line of the caches.
#[derive(Debug)]
pub struct CpuBuffer {
    storage: Vec<f32>,
    /// The elements of the storage that are the buffer's.
    range: Range<usize>,
    dtype: DType,
}

impl CpuBuffer {
    /// `None` where the system has no memory for `len` elements.
    pub(super) fn zeros(len: usize, dtype: DType) -> Option<Self> {
        // `vec!` ends the process where there is no memory, so the allocator is asked first. The answer reserves addresses
        // and touches no page.
        let stored = len.checked_add(LINE / size_of::<f32>())?;
        let mut question = Vec::<f32>::new();
        question.try_reserve_exact(stored).ok()?;
        drop(std::hint::black_box(question));
        let storage = vec![0.0f32; stored];
        let first = (storage.as_ptr() as usize).wrapping_neg() % LINE / size_of::<f32>();
        Some(Self { storage, range: first..first + len, dtype })
    }

    /// The elements, whatever they are.
    pub(super) fn words(&self) -> &[f32] {
        &self.storage[self.range.clone()]
    }

    /// The elements, whatever they are, to write.
    pub(super) fn words_mut(&mut self) -> &mut [f32] {
        &mut self.storage[self.range.clone()]
    }

    /// The elements of a float buffer; the checks of [`crate::ops`] vouch that it is one.
    pub(super) fn floats(&self) -> &[f32] {
        debug_assert_eq!(self.dtype, DType::F32);
        self.words()
    }

    /// The elements of a float buffer, to write.
    pub(super) fn floats_mut(&mut self) -> &mut [f32] {
        debug_assert_eq!(self.dtype, DType::F32);
        self.words_mut()
    }

    /// The elements of an integer buffer.
    pub(super) fn integers(&self) -> &[u32] {
        debug_assert_eq!(self.dtype, DType::U32);
        bytemuck::cast_slice(self.words())
    }

    /// The elements of an integer buffer, to write.
    pub(super) fn integers_mut(&mut self) -> &mut [u32] {
        debug_assert_eq!(self.dtype, DType::U32);
        bytemuck::cast_slice_mut(self.words_mut())
    }
}

impl Buffer for CpuBuffer {
    fn len(&self) -> usize {
        self.range.len()
    }

    fn dtype(&self) -> DType {
        self.dtype
    }
}
