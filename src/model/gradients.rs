//! Gradients in flat buffers: of all parameters of a layout, or of one part of them at a time.

use std::ops::Range;
use std::sync::Arc;

use super::{Block, ParameterLayout};
use crate::error::Result;
use crate::ops::{self, Backend, DType, Matrix, MatrixMut, Tensor};

/// The gradients of all parameters of a layout, f32 in one buffer.
pub struct Gradients<B: Backend> {
    layout: Arc<ParameterLayout>,
    values: Tensor<B>,
}

impl<B: Backend> Gradients<B> {
    /// All zero. `name` is the buffer's name in the memory plan.
    pub fn zeros(backend: &B, name: &str, layout: impl Into<Arc<ParameterLayout>>) -> Result<Self> {
        let layout = layout.into();
        let values = Tensor::zeros(backend, name, 1, layout.len(), DType::F32)?;
        Ok(Self { layout, values })
    }

    /// The layout.
    pub fn layout(&self) -> &ParameterLayout {
        &self.layout
    }

    /// All values, [1, parameters].
    pub fn flat(&self) -> Matrix<'_, B> {
        self.values.view()
    }

    /// All values with their places.
    pub fn view(&self) -> GradientView<'_, B> {
        GradientView { range: 0..self.layout.len(), values: self.flat() }
    }

    /// The values at `range` of the layout.
    ///
    /// # Panics
    /// When the layout ends before the range does.
    pub fn part(&self, range: Range<usize>) -> GradientView<'_, B> {
        assert!(range.end <= self.layout.len(), "gradients {range:?} of {}", self.layout.len());
        let values = Matrix { buffer: self.values.buffer(), offset: range.start, rows: 1, cols: range.len() };
        GradientView { range, values }
    }

    /// As [`Gradients::part`], to write: [1, parameters].
    ///
    /// # Panics
    /// When the layout ends before the range does.
    pub fn part_mut(&mut self, range: Range<usize>) -> MatrixMut<'_, B> {
        assert!(range.end <= self.layout.len(), "gradients {range:?} of {}", self.layout.len());
        MatrixMut { buffer: self.values.buffer_mut(), offset: range.start, rows: 1, cols: range.len() }
    }

    /// As [`Gradients::view`], to write.
    pub fn view_mut(&mut self) -> GradientViewMut<'_, B> {
        GradientViewMut { range: 0..self.layout.len(), values: self.values.view_mut() }
    }

    /// The buffer, for operations that address it by the layout's offsets.
    pub fn buffer_mut(&mut self) -> &mut B::Buffer {
        self.values.buffer_mut()
    }

    /// Sets all to zero.
    pub fn clear(&mut self, backend: &B) -> Result<()> {
        backend.run(ops::Clear { to: self.values.view_mut() })
    }

    /// Σ g², in f64. Waits for the device.
    pub fn squared_norm(&self, backend: &B) -> Result<f64> {
        backend.run(ops::SquaredNorm { x: self.flat() })
    }

    /// The L2 norm over `places` of the layout. Waits for the device.
    pub fn norm_of(&self, backend: &B, places: &[Range<usize>]) -> Result<f64> {
        let square = |place: &Range<usize>| backend.run(ops::SquaredNorm { x: self.part(place.clone()).values });
        Ok(places.iter().map(square).sum::<Result<f64>>()?.sqrt())
    }

    /// All values on the host. Waits for the device.
    pub fn download(&self, backend: &B) -> Result<Vec<f32>> {
        self.values.to_vec(backend)
    }
}

/// Memory for the gradients of one part of the parameters at a time.
pub struct PartGradient<B: Backend> {
    /// The places in the layout whose gradients the front of `values` has.
    range: Range<usize>,
    values: Tensor<B>,
}

impl<B: Backend> PartGradient<B> {
    /// Memory for parts of up to `most` parameters. It has the gradients of none before [`PartGradient::move_to`].
    pub(super) fn new(backend: &B, name: &str, most: usize) -> Result<Self> {
        Ok(Self { range: 0..0, values: Tensor::zeros(backend, name, 1, most, DType::F32)? })
    }

    /// Forgets what it has and takes the gradients of `range`, all zero.
    pub(super) fn move_to(&mut self, backend: &B, range: Range<usize>) -> Result<()> {
        if range.len() > self.values.cols() {
            let problem = format!("parameters {range:?} do not fit {}", self.values.cols());
            return Err(ops::shape_error("PartGradient::move_to", problem));
        }
        self.range = range;
        backend.run(ops::Clear { to: self.values.shaped_mut(1, self.range.len()) })
    }

    /// The values with their places.
    pub fn view(&self) -> GradientView<'_, B> {
        GradientView { range: self.range.clone(), values: self.values.shaped(1, self.range.len()) }
    }

    /// As [`PartGradient::view`], to write.
    pub fn view_mut(&mut self) -> GradientViewMut<'_, B> {
        GradientViewMut { range: self.range.clone(), values: self.values.shaped_mut(1, self.range.len()) }
    }

    /// The buffer of the values.
    pub(super) fn buffer(&self) -> &B::Buffer {
        self.values.buffer()
    }
}

/// The gradients of consecutive parameters of a layout.
pub struct GradientView<'a, B: Backend> {
    /// The places of the parameters in the layout.
    pub range: Range<usize>,
    /// Their gradients, [1, parameters].
    pub values: Matrix<'a, B>,
}

/// A [`GradientView`] that can be written.
pub struct GradientViewMut<'a, B: Backend> {
    range: Range<usize>,
    values: MatrixMut<'a, B>,
}

impl<B: Backend> GradientViewMut<'_, B> {
    /// The gradient of one matrix, to write.
    ///
    /// # Panics
    /// When the view does not reach over that matrix.
    pub fn matrix_mut(&mut self, block: Block) -> MatrixMut<'_, B> {
        let place = block.range();
        assert!(self.range.start <= place.start && place.end <= self.range.end, "a gradient that is not held");
        let offset = self.values.offset + place.start - self.range.start;
        MatrixMut { buffer: self.values.buffer, offset, rows: block.rows, cols: block.cols }
    }

    /// The buffer of the values.
    pub(super) fn buffer(&self) -> &B::Buffer {
        self.values.buffer
    }
}
