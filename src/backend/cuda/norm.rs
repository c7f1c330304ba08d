//! Launchers of the RMS norm (`kernels/norm.cu`).

use super::choices::{RowKernel, RowShape};
use super::element::{fits, flag, row_threads, row_width, size};
use super::{Argument, Cuda, Place, optional, sizes};
use crate::error::Result;
use crate::ops::{Checked, DType, Execute, MatrixMut, RmsNormBackward, RmsNormForward};

/// Threads of backward blocks that a multiprocessor is to hold.
pub(super) const RESIDENT_THREADS: u32 = 1536;
/// Fewest rows of a block that sums a weight gradient: below that, partial sums would cost more than the rows.
pub(super) const ROWS_PER_BLOCK: usize = 8;

impl Execute<RmsNormForward<'_, Cuda>> for Cuda {
    fn execute(&self, checked: Checked<RmsNormForward<Cuda>>) -> Result<()> {
        const NAME: &str = "rms_norm_forward";
        let RmsNormForward { residual, delta, weight, epsilon, sum, normed, inverse_rms } = checked.operands();
        if residual.is_empty() {
            return Ok(());
        }
        let rows = size(NAME, residual.rows)?;
        let cols = residual.cols;
        let dtype = residual.dtype();
        let mut addresses = vec![residual.address(), weight.address(), normed.address()];
        addresses.extend(delta.iter().map(Place::address));
        addresses.extend(sum.iter().map(Place::address));
        let width = row_width(dtype, cols, &addresses);
        let shared = fits(NAME, self, cols, sizes::NORM_SCRATCH_BYTES + cols * dtype.bytes())?;
        let arguments = [
            residual.pointer(),
            optional(delta.as_ref()),
            weight.pointer(),
            epsilon.into(),
            optional(sum.as_ref()),
            normed.pointer(),
            inverse_rms.pointer(),
            size(NAME, cols)?.into(),
            flag(width > 1),
        ];
        let most = self.choices.threads(RowShape { kernel: RowKernel::RmsNormForward, columns: cols, dtype });
        self.launch(&self.kernel(NAME), [rows, 1, 1], row_threads(cols / width, most), shared, &arguments)
    }
}

impl Execute<RmsNormBackward<'_, Cuda>> for Cuda {
    fn execute(&self, checked: Checked<RmsNormBackward<Cuda>>) -> Result<()> {
        const NAME: &str = "rms_norm_backward";
        let RmsNormBackward { d_normed, x, weight, inverse_rms, d_residual, d_weight } = checked.operands();
        if x.is_empty() {
            return Ok(());
        }
        let cols = x.cols;
        let dtype = x.dtype();
        let width = row_width(dtype, cols, &[d_normed.address(), x.address(), weight.address(), d_residual.address()]);
        let most = self.choices.threads(RowShape { kernel: RowKernel::RmsNormBackward, columns: cols, dtype });
        let threads = row_threads(cols / width, most);
        let kept = sizes::NORM_SCRATCH_BYTES + 2 * (cols * dtype.bytes()).next_multiple_of(16);
        let launch = |partial: Argument, blocks: usize, shared: usize| {
            let arguments = [
                d_normed.pointer(),
                x.pointer(),
                weight.pointer(),
                inverse_rms.pointer(),
                d_residual.pointer(),
                partial,
                size(NAME, x.rows)?.into(),
                size(NAME, cols)?.into(),
                flag(width > 1),
            ];
            let shared = fits(NAME, self, cols, shared)?;
            self.launch(&self.kernel(NAME), [size(NAME, blocks)?, 1, 1], threads, shared, &arguments)
        };
        let Some(d_weight) = d_weight else { return launch(Argument::Pointer(0), x.rows, kept) };
        let resident = self.driver.device().multiprocessors * (RESIDENT_THREADS / threads).min(16);
        let blocks = (x.rows / ROWS_PER_BLOCK).clamp(1, resident as usize);
        self.with_scratch("norm partial sums", blocks * cols, DType::F32, |partial| {
            let partial = Argument::Pointer(partial.address(0));
            launch(partial, blocks, kept + cols * 4)?;
            add_partial_sums(self, NAME, partial, blocks, d_weight)
        })
    }
}

/// Adds `rows` rows of partial sums to a gradient of as many elements as a row has, in order of the rows.
pub(super) fn add_partial_sums(
    cuda: &Cuda,
    name: &str,
    partial: Argument,
    rows: usize,
    gradient: MatrixMut<Cuda>,
) -> Result<()> {
    let cols = gradient.len();
    let grid = [size(name, cols.div_ceil(sizes::NORM_WEIGHT_COLUMNS))?, 1, 1];
    let arguments = [partial, size(name, rows)?.into(), size(name, cols)?.into(), gradient.pointer()];
    let threads = sizes::NORM_WEIGHT_THREADS as u32;
    cuda.launch("rms_norm_weight_f32", grid, threads, sizes::NORM_WEIGHT_BYTES, &arguments)
}
