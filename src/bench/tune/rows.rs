//! The threads of kernels with a block for each row.

use std::collections::BTreeMap;

use super::{Tuned, Tuner, best, distance};
use crate::backend::cuda::{Choices, Cuda, RowKernel, RowShape};
use crate::error::{Error, Result};
use crate::ops::{self, Backend, DType, Tensor};
use crate::tuning::ThreadsEntry;

/// Rows that are compared.
const COMPARED_ROWS: usize = 64;

/// The operands of an RMS norm, forward and backward.
struct Operands {
    kernel: RowKernel,
    /// Residual and delta, sum and normed; or gradient of normed, x, and gradient of the residual.
    matrices: Vec<Tensor<Cuda>>,
    weight: Tensor<Cuda>,
    inverse_rms: Tensor<Cuda>,
    d_weight: Tensor<Cuda>,
}

impl Operands {
    fn new(tuner: &Tuner, shape: RowShape, rows: usize) -> Result<Self> {
        let RowShape { kernel, columns, dtype } = shape;
        let data = &tuner.data;
        let matrix = |_| data.normal("tuned rows", rows, columns, dtype, 1.0);
        let inverse_rms = Tensor::from_f32(&tuner.cuda, "inverse rms", rows, 1, &vec![1.0; rows])?;
        Ok(Self {
            kernel,
            matrices: (0..4).map(matrix).collect::<Result<_>>()?,
            weight: data.normal("norm weight", 1, columns, dtype, 1.0)?,
            inverse_rms,
            d_weight: Tensor::zeros(&tuner.cuda, "gradient of norm weight", 1, columns, DType::F32)?,
        })
    }

    /// Queues the kernel once; backward with the gradient of the weight, as an attack on all weights runs it.
    fn run(&mut self, cuda: &Cuda) -> Result<()> {
        let Self { kernel, matrices, weight, inverse_rms, d_weight } = self;
        let [first, second, third, fourth] = &mut matrices[..] else {
            return Err(Error::Defect("an RMS norm of other than four matrices".into()));
        };
        match kernel {
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
    fn results(&mut self, cuda: &Cuda) -> Result<Vec<f32>> {
        cuda.run(ops::Clear { to: self.matrices[2].view_mut() })?;
        cuda.run(ops::Clear { to: self.matrices[3].view_mut() })?;
        cuda.run(ops::Clear { to: self.d_weight.view_mut() })?;
        self.run(cuda)?;
        let compared = |tensor: &Tensor<Cuda>| {
            let view = tensor.view();
            cuda.download_f32(tensor.buffer(), 0, view.rows.min(COMPARED_ROWS) * view.cols)
        };
        let parts = [compared(&self.matrices[2])?, compared(&self.matrices[3])?, compared(&self.d_weight)?];
        Ok(parts.concat())
    }
}

impl Tuner<'_> {
    /// Measures one kernel on so many rows.
    pub(super) fn row_kernel(&self, shape: RowShape, rows: usize) -> Result<(ThreadsEntry, Tuned)> {
        let mut operands = Operands::new(self, shape, rows)?;
        let bound = if shape.dtype == DType::Bf16 { 1e-2 } else { 1e-5 };
        let candidates = shape.kernel.candidates();
        let mut expected: Option<Vec<f32>> = None;
        let mut costs = Vec::new();
        let mut refused = Vec::new();
        for threads in candidates {
            let chosen = BTreeMap::from([(shape.to_string(), *threads)]);
            let cuda = self.cuda.clone().with_choices(Choices { threads: chosen, ..Choices::default() })?;
            let found = operands.results(&cuda)?;
            let again = operands.results(&cuda)?;
            let apart = distance(&found, expected.get_or_insert_with(|| found.clone()));
            let same_bits = found.iter().zip(&again).all(|(a, b)| a.to_bits() == b.to_bits());
            if same_bits && apart <= bound {
                costs.push(Some(self.cost(&mut || operands.run(&cuda))?));
            } else {
                refused.push(format!("{threads} threads: {apart:.1e} from the first, same bits twice: {same_bits}"));
                costs.push(None);
            }
        }
        let place = best(&costs).ok_or_else(|| Error::Device(format!("{shape}: {}", refused.join("; "))))?;
        let measured = candidates.iter().zip(&costs).filter_map(|(threads, cost)| Some((*threads, (*cost)?)));
        let entry = ThreadsEntry { threads: candidates[place], costs: measured.collect() };
        let tuned = Tuned {
            shape: shape.to_string(),
            candidates: candidates.len(),
            chosen: place,
            first: costs[0],
            best: costs[place].unwrap_or_default(),
            refused,
        };
        Ok((entry, tuned))
    }
}
