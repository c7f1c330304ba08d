//! Launchers of the RMS norm of query and key heads (`kernels/head_norm.cu`).

use super::element::{aligned, fits, flag, size};
use super::norm::{RESIDENT_THREADS, ROWS_PER_BLOCK, add_partial_sums};
use super::{Argument, Cuda, Place};
use crate::error::Result;
use crate::ops::{AttentionShape, Checked, DType, Execute, HeadNormBackward, HeadNormForward};

/// Elements that a lane takes at once.
const WIDTH: usize = 4;
/// Most threads of a block.
const FORWARD_THREADS: u32 = 512;
const BACKWARD_THREADS: u32 = 256;

/// Whether heads at `addresses` consist of whole vectors.
fn vectorised(dtype: DType, shape: AttentionShape, addresses: &[u64]) -> bool {
    shape.head_dim.is_multiple_of(WIDTH) && aligned(addresses, (WIDTH * dtype.bytes()) as u64)
}

/// Threads for `heads` heads of a token: a warp each, at most `most`.
fn head_threads(heads: usize, most: u32) -> u32 {
    heads.saturating_mul(32).clamp(32, most as usize) as u32
}

impl Execute<HeadNormForward<'_, Cuda>> for Cuda {
    fn execute(&self, checked: Checked<HeadNormForward<Cuda>>) -> Result<()> {
        const NAME: &str = "head_norm_forward";
        let HeadNormForward { qkv, weight, epsilon, shape, out } = checked.operands();
        if qkv.is_empty() {
            return Ok(());
        }
        let queries = shape.num_attention_heads;
        let keys = shape.num_key_value_heads;
        let whole = vectorised(qkv.dtype(), shape, &[qkv.address(), weight.address(), out.address()]);
        let arguments = [
            qkv.pointer(),
            weight.pointer(),
            epsilon.into(),
            out.pointer(),
            size(NAME, queries)?.into(),
            size(NAME, keys)?.into(),
            size(NAME, shape.head_dim)?.into(),
            flag(whole),
        ];
        let threads = head_threads(queries + 2 * keys, FORWARD_THREADS);
        self.launch(&self.kernel(NAME), [size(NAME, qkv.rows)?, 1, 1], threads, 0, &arguments)
    }
}

impl Execute<HeadNormBackward<'_, Cuda>> for Cuda {
    fn execute(&self, checked: Checked<HeadNormBackward<Cuda>>) -> Result<()> {
        const NAME: &str = "head_norm_backward";
        let HeadNormBackward { qkv, weight, epsilon, shape, d_qkv, d_weight } = checked.operands();
        if qkv.is_empty() {
            return Ok(());
        }
        let queries = shape.num_attention_heads;
        let keys = shape.num_key_value_heads;
        let whole = vectorised(qkv.dtype(), shape, &[qkv.address(), weight.address(), d_qkv.address()]);
        let threads = head_threads(queries + keys, BACKWARD_THREADS);
        let launch = |partial: Argument, blocks: usize, shared: usize| {
            let arguments = [
                qkv.pointer(),
                weight.pointer(),
                epsilon.into(),
                d_qkv.pointer(),
                partial,
                size(NAME, qkv.rows)?.into(),
                size(NAME, queries)?.into(),
                size(NAME, keys)?.into(),
                size(NAME, shape.head_dim)?.into(),
                flag(whole),
            ];
            let shared = fits(NAME, self, shape.head_dim, shared)?;
            self.launch(&self.kernel(NAME), [size(NAME, blocks)?, 1, 1], threads, shared, &arguments)
        };
        let Some(d_weight) = d_weight else { return launch(Argument::Pointer(0), qkv.rows, 0) };
        let sums = 2 * shape.head_dim;
        let resident = self.driver.device().multiprocessors * (RESIDENT_THREADS / threads).min(16);
        let blocks = (qkv.rows / ROWS_PER_BLOCK).clamp(1, resident as usize);
        self.with_scratch("head norm partial sums", blocks * sums, DType::F32, |partial| {
            let partial = Argument::Pointer(partial.address(0));
            launch(partial, blocks, threads as usize / 32 * sums * size_of::<f32>())?;
            add_partial_sums(self, NAME, partial, blocks, d_weight)
        })
    }
}
