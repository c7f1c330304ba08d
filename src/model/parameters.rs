//! The weights of a model or adapter in one flat buffer, on the device or parked in main memory.

use std::sync::Arc;

use super::{Block, ParameterLayout};
use crate::error::Result;
use crate::ops::{self, Backend, DType, Matrix, MatrixMut, Tensor};

/// The weights of a model or adapter in one buffer.
///
/// On a bf16 backend the buffer that the matmuls read is accompanied by the 16-bit remainder that makes each weight an
/// exact f32, so that small updates are not lost; on an f32 backend there is no remainder.
pub struct Parameters<B: Backend> {
    layout: Arc<ParameterLayout>,
    weights: Tensor<B>,
    remainder: Option<Tensor<B>>,
}

impl<B: Backend> Parameters<B> {
    /// All weights zero. `name` is the buffer's name in the memory plan.
    pub fn zeros(backend: &B, name: &str, layout: impl Into<Arc<ParameterLayout>>) -> Result<Self> {
        let layout = layout.into();
        let dtype = backend.compute_dtype();
        let weights = Tensor::zeros(backend, name, 1, layout.len(), dtype)?;
        let remainder = match dtype {
            DType::Bf16 => {
                Some(Tensor::zeros(backend, &format!("{name} remainder"), 1, layout.len(), DType::Remainder16)?)
            }
            _ => None,
        };
        Ok(Self { layout, weights, remainder })
    }

    /// Weights copied from the host, all of the layout in its order.
    pub fn from_host(backend: &B, name: &str, layout: impl Into<Arc<ParameterLayout>>, values: &[f32]) -> Result<Self> {
        let mut parameters = Self::zeros(backend, name, layout)?;
        parameters.upload(backend, values)?;
        Ok(parameters)
    }

    /// The layout.
    pub fn layout(&self) -> &ParameterLayout {
        &self.layout
    }

    /// The layout, shared.
    pub fn layout_handle(&self) -> Arc<ParameterLayout> {
        Arc::clone(&self.layout)
    }

    /// One matrix of the weights, as the matmuls read it.
    pub fn matrix(&self, block: Block) -> Matrix<'_, B> {
        Matrix { buffer: self.weights.buffer(), offset: block.offset, rows: block.rows, cols: block.cols }
    }

    /// The buffer of the weights.
    pub fn buffer(&self) -> &B::Buffer {
        self.weights.buffer()
    }

    /// Weights and remainder as flat matrices, for an optimizer.
    pub fn flat_mut(&mut self) -> (MatrixMut<'_, B>, Option<MatrixMut<'_, B>>) {
        (self.weights.view_mut(), self.remainder.as_mut().map(Tensor::view_mut))
    }

    /// Replaces all weights by host values.
    pub fn upload(&mut self, backend: &B, values: &[f32]) -> Result<()> {
        ops::expect("Parameters::upload", "number of values", values.len(), self.layout.len())?;
        let all = Block { offset: 0, rows: 1, cols: self.layout.len() };
        self.upload_block(backend, all, values)
    }

    /// Replaces one matrix of the weights by host values.
    pub fn upload_block(&mut self, backend: &B, block: Block, values: &[f32]) -> Result<()> {
        ops::expect("Parameters::upload_block", "number of values", values.len(), block.len())?;
        backend.upload_f32(self.weights.buffer_mut(), block.offset, values)?;
        match &mut self.remainder {
            None => Ok(()),
            // The backend computes the remainder of each value from the same f32.
            Some(remainder) => backend.upload_f32(remainder.buffer_mut(), block.offset, values),
        }
    }

    /// All weights on the host, in full precision. Waits for the device.
    pub fn download(&self, backend: &B) -> Result<Vec<f32>> {
        let high = self.weights.to_vec(backend)?;
        match &self.remainder {
            None => Ok(high),
            Some(remainder) => Ok(join(&high, &remainder.to_vec(backend)?)),
        }
    }

    /// Copies every weight of `other`, bit for bit.
    pub fn copy_from(&mut self, backend: &B, other: &Self) -> Result<()> {
        ops::expect("Parameters::copy_from", "number of weights", other.layout.len(), self.layout.len())?;
        backend.run(ops::CopyValues { from: other.weights.view(), to: self.weights.view_mut() })?;
        if let (Some(to), Some(from)) = (&mut self.remainder, &other.remainder) {
            backend.run(ops::CopyValues { from: from.view(), to: to.view_mut() })?;
        }
        Ok(())
    }
}

/// A set of weights that waits in main memory until it is fetched, bit for bit.
pub struct ParkedParameters<B: Backend> {
    len: usize,
    weights: B::Parked,
    remainder: Option<B::Parked>,
}

impl<B: Backend> ParkedParameters<B> {
    /// A copy of `parameters`. `name` is the buffers' name in the memory plan.
    pub fn of(backend: &B, name: &str, parameters: &Parameters<B>) -> Result<Self> {
        let park =
            |_: &Tensor<B>| backend.parked(&format!("{name} remainder"), parameters.layout.len(), DType::Remainder16);
        let remainder = parameters.remainder.as_ref().map(park).transpose()?;
        Self::with_remainder(backend, name, parameters, remainder)
    }

    /// A copy without the remainders, which forward and backward do not read: enough for a model that is run and never
    /// trained. Fetching it leaves the remainders as they are.
    pub fn to_read(backend: &B, name: &str, parameters: &Parameters<B>) -> Result<Self> {
        Self::with_remainder(backend, name, parameters, None)
    }

    fn with_remainder(
        backend: &B,
        name: &str,
        parameters: &Parameters<B>,
        remainder: Option<B::Parked>,
    ) -> Result<Self> {
        let len = parameters.layout.len();
        let weights = backend.parked(name, len, backend.compute_dtype())?;
        let mut new = Self { len, weights, remainder };
        new.park(backend, parameters)?;
        Ok(new)
    }

    /// Takes a copy of every weight, in the place of those from before.
    pub fn park(&mut self, backend: &B, from: &Parameters<B>) -> Result<()> {
        ops::expect("ParkedParameters::park", "number of weights", from.layout.len(), self.len)?;
        backend.run(ops::Park { from: from.weights.view(), to: &mut self.weights, to_offset: 0 })?;
        if let (Some(from), Some(to)) = (&from.remainder, &mut self.remainder) {
            backend.run(ops::Park { from: from.view(), to, to_offset: 0 })?;
        }
        Ok(())
    }

    /// Copies every weight to the device.
    pub fn fetch(&self, backend: &B, to: &mut Parameters<B>) -> Result<()> {
        ops::expect("ParkedParameters::fetch", "number of weights", to.layout.len(), self.len)?;
        backend.run(ops::Fetch { from: &self.weights, from_offset: 0, to: to.weights.view_mut() })?;
        if let (Some(from), Some(to)) = (&self.remainder, &mut to.remainder) {
            backend.run(ops::Fetch { from, from_offset: 0, to: to.view_mut() })?;
        }
        Ok(())
    }
}

/// bf16 weights and their remainders (read as integers held in f32) as the f32 numbers that they are together.
fn join(high: &[f32], remainder: &[f32]) -> Vec<f32> {
    high.iter().zip(remainder).map(|(h, r)| f32::from_bits(h.to_bits().wrapping_add_signed(*r as i32))).collect()
}
