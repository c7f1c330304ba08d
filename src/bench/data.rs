//! Random operands. Zeros would be faster than what training multiplies, and would hide unwritten outputs.
//!
//! Normal numbers are drawn once on the host into a pool on the device, and operands are filled from it by copies within
//! the device, each from another place.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::backend::cuda::{Cuda, CudaBuffer};
use crate::error::Result;
use crate::ops::{Backend, Buffer, CopyValues, DType, Matrix, MatrixMut, Memory, Tensor};
use crate::random::{Random, Stream};

pub(super) struct Data {
    cuda: Cuda,
    /// Numbers of a pool: odd, so that the rows of an operand do not repeat.
    elements: usize,
    pools: RefCell<HashMap<(DType, u32), CudaBuffer>>,
    /// Where the next operand starts in its pool.
    start: Cell<usize>,
    ids_drawn: Cell<u64>,
}

impl Data {
    pub fn new(cuda: &Cuda, elements: usize) -> Self {
        Self { cuda: cuda.clone(), elements, pools: RefCell::default(), start: Cell::new(0), ids_drawn: Cell::new(0) }
    }

    /// A matrix of normal numbers.
    pub fn normal(&self, name: &str, rows: usize, cols: usize, dtype: DType, deviation: f32) -> Result<Tensor<Cuda>> {
        let mut tensor = Tensor::zeros(&self.cuda, name, rows, cols, dtype)?;
        self.fill(tensor.buffer_mut(), 0, rows * cols, deviation)?;
        Ok(tensor)
    }

    /// A matrix of normal numbers in the compute dtype.
    pub fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Tensor<Cuda>> {
        self.normal(name, rows, cols, self.cuda.compute_dtype(), 1.0)
    }

    /// A matrix of zeros in f32, for gradients that accumulate, and for values.
    pub fn sums(&self, name: &str, rows: usize, cols: usize) -> Result<Tensor<Cuda>> {
        Tensor::zeros(&self.cuda, name, rows, cols, DType::F32)
    }

    /// Fills part of a buffer with normal numbers.
    pub fn fill(&self, buffer: &mut CudaBuffer, offset: usize, len: usize, deviation: f32) -> Result<()> {
        let key = (buffer.dtype(), deviation.to_bits());
        let mut pools = self.pools.borrow_mut();
        let pool = match pools.entry(key) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(self.pool(buffer.dtype(), deviation)?),
        };
        let mut done = 0;
        let mut from = self.start.get();
        while done < len {
            let part = (self.elements - from).min(len - done);
            let from_pool = Matrix { buffer: &*pool, offset: from, rows: 1, cols: part };
            let to = MatrixMut { buffer: &mut *buffer, offset: offset + done, rows: 1, cols: part };
            self.cuda.run(CopyValues { from: from_pool, to })?;
            (done, from) = (done + part, 0);
        }
        self.start.set((self.start.get() + self.elements / 3 + 7) % self.elements);
        Ok(())
    }

    fn pool(&self, dtype: DType, deviation: f32) -> Result<CudaBuffer> {
        let mut random = Random::new(11, Stream::Weights, 0, dtype as u64);
        let values: Vec<f32> = (0..self.elements).map(|_| deviation * random.normal() as f32).collect();
        let mut pool = self.cuda.zeros("random numbers", self.elements, dtype)?;
        self.cuda.upload_f32(&mut pool, 0, &values)?;
        Ok(pool)
    }

    /// `count` token ids below `vocab_size`.
    pub fn ids(&self, count: usize, vocab_size: usize) -> Vec<u32> {
        self.ids_drawn.set(self.ids_drawn.get() + 1);
        let mut random = Random::new(12, Stream::Data, self.ids_drawn.get(), 0);
        (0..count).map(|_| random.below(vocab_size) as u32).collect()
    }
}
