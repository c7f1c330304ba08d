//! Launchers of the bias of a linear layer (`kernels/bias.cu`).

use super::element::{ROW_THREADS, flag, row_threads, row_width, size};
use super::norm::add_partial_sums;
use super::{Argument, Cuda, Place, sizes};
use crate::error::Result;
use crate::ops::{AddBias, BiasBackward, Checked, DType, Execute};

/// Fewest rows of a block that sums a bias gradient: below that, partial sums would cost more than the rows.
const ROWS_PER_CHUNK: usize = 64;
/// Such blocks that fill a multiprocessor.
const RESIDENT: usize = 8;

impl Execute<AddBias<'_, Cuda>> for Cuda {
    fn execute(&self, checked: Checked<AddBias<Cuda>>) -> Result<()> {
        const NAME: &str = "add_bias";
        let AddBias { bias, y } = checked.operands();
        if y.is_empty() {
            return Ok(());
        }
        let width = row_width(y.dtype(), y.cols, &[bias.address(), y.address()]);
        let threads = row_threads(y.cols / width, ROW_THREADS);
        let parts = (y.cols / width).div_ceil(threads as usize);
        let arguments =
            [bias.pointer(), y.pointer(), size(NAME, y.cols)?.into(), size(NAME, parts)?.into(), flag(width > 1)];
        self.launch(&self.kernel(NAME), [size(NAME, y.rows * parts)?, 1, 1], threads, 0, &arguments)
    }
}

impl Execute<BiasBackward<'_, Cuda>> for Cuda {
    fn execute(&self, checked: Checked<BiasBackward<Cuda>>) -> Result<()> {
        const NAME: &str = "bias_backward";
        let BiasBackward { dy, d_bias } = checked.operands();
        if dy.is_empty() {
            return Ok(());
        }
        let width = row_width(dy.dtype(), dy.cols, &[dy.address()]);
        let group_cols = 32 * width;
        let groups = dy.cols.div_ceil(group_cols);
        let resident = self.driver.device().multiprocessors as usize * RESIDENT;
        let most = (dy.rows / ROWS_PER_CHUNK).max(1);
        let chunk_rows = dy.rows.div_ceil((resident / groups).clamp(1, most));
        let chunks = dy.rows.div_ceil(chunk_rows);
        self.with_scratch("bias partial sums", chunks * dy.cols, DType::F32, |partial| {
            let partial = Argument::Pointer(partial.address(0));
            let arguments = [
                dy.pointer(),
                partial,
                size(NAME, dy.rows)?.into(),
                size(NAME, dy.cols)?.into(),
                size(NAME, groups)?.into(),
                size(NAME, chunk_rows)?.into(),
                flag(width > 1),
            ];
            let grid = [size(NAME, chunks * groups)?, 1, 1];
            let shared = sizes::BIAS_WARPS * group_cols * size_of::<f32>();
            self.launch(&self.kernel("bias_sums"), grid, 32 * sizes::BIAS_WARPS as u32, shared, &arguments)?;
            add_partial_sums(self, NAME, partial, chunks, d_bias)
        })
    }
}
