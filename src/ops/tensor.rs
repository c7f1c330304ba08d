//! Matrices in device memory: an owner ([`Tensor`]) and borrowed row ranges of it ([`Matrix`], [`MatrixMut`]).

use super::{Backend, Buffer, DType, Memory};
use crate::error::Result;

/// A row-major matrix that owns its device buffer.
pub struct Tensor<B: Memory> {
    buffer: B::Buffer,
    rows: usize,
    cols: usize,
}

/// `rows` × `cols` values inside a buffer, from element `offset`, row-major and without gaps.
pub struct Matrix<'a, B: Memory> {
    /// The buffer that holds the values.
    pub buffer: &'a B::Buffer,
    /// The element at which the matrix starts.
    pub offset: usize,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
}

/// A [`Matrix`] that can be written.
pub struct MatrixMut<'a, B: Memory> {
    /// The buffer that holds the values.
    pub buffer: &'a mut B::Buffer,
    /// The element at which the matrix starts.
    pub offset: usize,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
}

impl<B: Memory> Clone for Matrix<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Memory> Copy for Matrix<'_, B> {}

impl<B: Memory> Matrix<'_, B> {
    /// How its buffer is stored.
    pub fn dtype(&self) -> DType {
        self.buffer.dtype()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<B: Memory> MatrixMut<'_, B> {
    /// How its buffer is stored.
    pub fn dtype(&self) -> DType {
        self.buffer.dtype()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same matrix for a shorter time.
    pub fn reborrow(&mut self) -> MatrixMut<'_, B> {
        MatrixMut { buffer: self.buffer, offset: self.offset, rows: self.rows, cols: self.cols }
    }

    /// The same matrix, read-only.
    pub fn as_matrix(&self) -> Matrix<'_, B> {
        Matrix { buffer: self.buffer, offset: self.offset, rows: self.rows, cols: self.cols }
    }
}

impl<B: Memory> Tensor<B> {
    /// A matrix of zeros. `name` is the buffer's name in the memory plan.
    pub fn zeros(backend: &B, name: &str, rows: usize, cols: usize, dtype: DType) -> Result<Self> {
        let Some(len) = rows.checked_mul(cols) else {
            return Err(super::shape_error("Tensor::zeros", format!("{name}: {rows} × {cols} elements")));
        };
        Ok(Self { buffer: backend.zeros(name, len, dtype)?, rows, cols })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The device buffer.
    pub fn buffer(&self) -> &B::Buffer {
        &self.buffer
    }

    /// The device buffer, to write.
    pub fn buffer_mut(&mut self) -> &mut B::Buffer {
        &mut self.buffer
    }

    /// The whole matrix.
    pub fn view(&self) -> Matrix<'_, B> {
        self.top(self.rows)
    }

    /// The whole matrix, to write.
    pub fn view_mut(&mut self) -> MatrixMut<'_, B> {
        self.top_mut(self.rows)
    }

    /// The first `rows` rows: activations are allocated for the largest batch and used for smaller ones.
    ///
    /// # Panics
    /// When there are fewer rows: callers check a batch against the capacity first.
    pub fn top(&self, rows: usize) -> Matrix<'_, B> {
        assert!(rows <= self.rows, "a batch larger than its workspace");
        Matrix { buffer: &self.buffer, offset: 0, rows, cols: self.cols }
    }

    /// The first `rows` rows, to write; see [`Tensor::top`].
    pub fn top_mut(&mut self, rows: usize) -> MatrixMut<'_, B> {
        assert!(rows <= self.rows, "a batch larger than its workspace");
        MatrixMut { buffer: &mut self.buffer, offset: 0, rows, cols: self.cols }
    }

    /// The front of the buffer as a matrix of another shape: scratch that several shapes share.
    ///
    /// # Panics
    /// When the buffer is smaller than `rows` × `cols`.
    pub fn shaped(&self, rows: usize, cols: usize) -> Matrix<'_, B> {
        assert!(rows * cols <= self.rows * self.cols, "a matrix larger than its buffer");
        Matrix { buffer: &self.buffer, offset: 0, rows, cols }
    }

    /// As [`Tensor::shaped`], to write.
    pub fn shaped_mut(&mut self, rows: usize, cols: usize) -> MatrixMut<'_, B> {
        assert!(rows * cols <= self.rows * self.cols, "a matrix larger than its buffer");
        MatrixMut { buffer: &mut self.buffer, offset: 0, rows, cols }
    }
}

impl<B: Backend> Tensor<B> {
    /// A matrix of f32 values copied from the host.
    pub fn from_f32(backend: &B, name: &str, rows: usize, cols: usize, values: &[f32]) -> Result<Self> {
        super::expect("Tensor::from_f32", "number of values", values.len(), rows * cols)?;
        let mut tensor = Self::zeros(backend, name, rows, cols, DType::F32)?;
        backend.upload_f32(&mut tensor.buffer, 0, values)?;
        Ok(tensor)
    }

    /// A column of u32 values copied from the host.
    pub fn from_u32(backend: &B, name: &str, values: &[u32]) -> Result<Self> {
        let mut tensor = Self::zeros(backend, name, values.len(), 1, DType::U32)?;
        backend.upload_u32(&mut tensor.buffer, 0, values)?;
        Ok(tensor)
    }

    /// Replaces the column by other values, as many as the buffer has room for.
    pub fn refill_u32(&mut self, backend: &B, values: &[u32]) -> Result<()> {
        let room = self.buffer.len();
        if values.len() > room {
            return Err(super::shape_error("Tensor::refill_u32", format!("{} values for {room} places", values.len())));
        }
        backend.upload_u32(&mut self.buffer, 0, values)?;
        (self.rows, self.cols) = (values.len(), 1);
        Ok(())
    }

    /// All values as f32, on the host. Waits for the device.
    pub fn to_vec(&self, backend: &B) -> Result<Vec<f32>> {
        backend.download_f32(&self.buffer, 0, self.rows * self.cols)
    }
}
