//! The threads of kernels with a block for each row.

use std::collections::BTreeMap;

use super::{Tuned, Tuner, Ways};
use crate::backend::cuda::{Choices, Cuda, RowKernel, RowShape};
use crate::error::{Error, Result};
use crate::ops::{self, Backend, DType, Tensor};
use crate::tuning::ThreadsEntry;

/// Rows that are compared.
const COMPARED_ROWS: usize = 64;

/// The operands of an RMS norm, forward and backward, and the threads that a block may have.
struct RowWays {
    /// A device that follows the way that was taken.
    cuda: Cuda,
    shape: RowShape,
    /// Residual and delta, sum and normed; or gradient of normed, x, and gradient of the residual; as many times as no cache
    /// holds.
    sets: Vec<[Tensor<Cuda>; 4]>,
    weight: Tensor<Cuda>,
    inverse_rms: Tensor<Cuda>,
    d_weight: Tensor<Cuda>,
}

impl RowWays {
    fn new(tuner: &Tuner, shape: RowShape, rows: usize) -> Result<Self> {
        let RowShape { columns, dtype, .. } = shape;
        let data = &tuner.data;
        let matrix = || data.normal("tuned rows", rows, columns, dtype, 1.0);
        let set = |_| Ok([matrix()?, matrix()?, matrix()?, matrix()?]);
        let bytes = 4 * rows * columns * dtype.bytes();
        let inverse_rms = Tensor::from_f32(&tuner.cuda, "inverse rms", rows, 1, &vec![1.0; rows])?;
        Ok(Self {
            cuda: tuner.cuda.clone(),
            shape,
            sets: (0..tuner.cold.sets(bytes as f64)).map(set).collect::<Result<_>>()?,
            weight: data.normal("norm weight", 1, columns, dtype, 1.0)?,
            inverse_rms,
            d_weight: Tensor::zeros(&tuner.cuda, "gradient of norm weight", 1, columns, DType::F32)?,
        })
    }
}

impl Ways for RowWays {
    fn names(&self) -> Vec<String> {
        self.shape.kernel.candidates().iter().map(|threads| format!("{threads} threads")).collect()
    }

    fn take(&mut self, way: usize) -> Result<()> {
        let threads = BTreeMap::from([(self.shape.to_string(), self.shape.kernel.candidates()[way])]);
        self.cuda = self.cuda.clone().with_choices(Choices { threads, ..Choices::default() })?;
        Ok(())
    }

    /// Backward with the gradient of the weight, as an attack on all weights runs it.
    fn run(&mut self, repetition: usize) -> Result<()> {
        let Self { cuda, shape, sets, weight, inverse_rms, d_weight } = self;
        let count = sets.len();
        let [first, second, third, fourth] = &mut sets[repetition % count];
        match shape.kernel {
            RowKernel::RmsNormForward => cuda.run(ops::RmsNormForward {
                residual: first.view(),
                delta: Some(second.view()),
                weight: weight.view(),
                epsilon: 1e-5,
                sum: Some(third.view_mut()),
                normed: fourth.view_mut(),
                inverse_rms: inverse_rms.view_mut(),
            }),
            RowKernel::RmsNormBackward => cuda.run(ops::RmsNormBackward {
                d_normed: first.view(),
                x: second.view(),
                weight: weight.view(),
                inverse_rms: inverse_rms.view(),
                d_residual: third.view_mut(),
                d_weight: Some(d_weight.view_mut()),
            }),
        }
    }

    /// Some rows of the results, from outputs that are zero before.
    fn results(&mut self) -> Result<Vec<f32>> {
        self.cuda.run(ops::Clear { to: self.sets[0][2].view_mut() })?;
        self.cuda.run(ops::Clear { to: self.sets[0][3].view_mut() })?;
        self.cuda.run(ops::Clear { to: self.d_weight.view_mut() })?;
        self.run(0)?;
        let compared = |tensor: &Tensor<Cuda>| {
            let view = tensor.view();
            self.cuda.download_f32(tensor.buffer(), 0, view.rows.min(COMPARED_ROWS) * view.cols)
        };
        let parts = [compared(&self.sets[0][2])?, compared(&self.sets[0][3])?, compared(&self.d_weight)?];
        Ok(parts.concat())
    }
}

impl Tuner<'_> {
    /// Measures one kernel on so many rows.
    pub(super) fn row_kernel(&self, shape: RowShape, rows: usize) -> Result<(ThreadsEntry, Tuned)> {
        let bound = if shape.dtype == DType::Bf16 { 1e-2 } else { 1e-5 };
        let compared = self.compare(&mut RowWays::new(self, shape, rows)?, bound)?;
        let refused = || Error::Device(format!("{shape}: {}", compared.refused.join("; ")));
        let (place, tuned) = compared.best(&shape).ok_or_else(refused)?;
        let candidates = shape.kernel.candidates();
        let measured = candidates.iter().zip(compared.costs()).filter_map(|(threads, cost)| Some((*threads, cost?)));
        Ok((ThreadsEntry { threads: candidates[place], costs: measured.collect() }, tuned))
    }
}
