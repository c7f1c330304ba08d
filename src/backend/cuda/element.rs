//! Launchers of the element-wise kernels, the embedding and the reductions (`kernels/element.cu`,
//! `kernels/embedding.cu`), and what all memory-bound launchers share.

use super::{Argument, Cuda, Place, sizes};
use crate::error::{Error, Result};
use crate::ops::{
    Checked, DType, EmbeddingBackward, Execute, GatherRows, SignMask, SquaredNorm, SwigluBackward, SwigluForward,
    WeightedSum,
};

/// Threads of a block of a flat kernel.
pub(super) const FLAT_THREADS: u32 = 256;
/// Blocks that fill a multiprocessor, with at most 32 registers a thread.
const FLAT_BLOCKS: u32 = 8;
/// Most threads of a kernel with a block for each row.
pub(super) const ROW_THREADS: u32 = 256;

/// A size as a kernel's 32-bit parameter or grid, which must fit 31 bits.
pub(super) fn size(operation: &str, value: usize) -> Result<u32> {
    i32::try_from(value)
        .map(|value| value as u32)
        .map_err(|_| Error::Device(format!("{operation}: {value} is more than one launch can count")))
}

/// Whether every address is a multiple of `bytes`, as vector accesses of that size need.
pub(super) fn aligned(addresses: &[u64], bytes: u64) -> bool {
    addresses.iter().all(|address| address.is_multiple_of(bytes))
}

/// Elements of a 16-byte vector of `dtype` if rows of `cols` elements at `addresses` consist of such vectors, else 1.
pub(super) fn row_width(dtype: DType, cols: usize, addresses: &[u64]) -> usize {
    let width = 16 / dtype.bytes();
    if cols.is_multiple_of(width) && aligned(addresses, 16) { width } else { 1 }
}

/// Threads for a row of `vectors` vectors: whole warps, at most `most`.
pub(super) fn row_threads(vectors: usize, most: u32) -> u32 {
    vectors.next_multiple_of(32).clamp(32, most as usize) as u32
}

/// `bytes` of shared memory for rows of `cols` elements; fails if a block cannot have them.
pub(super) fn fits(name: &str, cuda: &Cuda, cols: usize, bytes: usize) -> Result<usize> {
    let most = cuda.driver.device().shared_bytes_per_block as usize;
    if bytes <= most {
        return Ok(bytes);
    }
    Err(Error::Device(format!("{name}: rows of {cols} need {bytes} bytes of shared memory, the device has {most}")))
}

/// Blocks of a flat kernel that has work for `threads` threads: as many as are resident at once, `resident` on each
/// multiprocessor, so that none has to wait for another's end.
pub(super) fn flat_blocks(cuda: &Cuda, threads: usize, resident: u32) -> u32 {
    let full = cuda.driver.device().multiprocessors * resident;
    threads.div_ceil(FLAT_THREADS as usize).clamp(1, full as usize) as u32
}

/// A flag for a kernel.
pub(super) fn flag(value: bool) -> Argument {
    Argument::U32(u32::from(value))
}

impl Execute<GatherRows<'_, Cuda>> for Cuda {
    fn execute(&self, checked: Checked<GatherRows<Cuda>>) -> Result<()> {
        const NAME: &str = "gather_rows";
        let GatherRows { from, indices, out } = checked.operands();
        if out.is_empty() {
            return Ok(());
        }
        let rows = size(NAME, out.rows)?;
        let cols = size(NAME, out.cols)?;
        let width = row_width(out.dtype(), out.cols, &[from.address(), out.address()]);
        let arguments = [from.pointer(), indices.pointer(), out.pointer(), cols.into(), flag(width > 1)];
        self.launch(&self.kernel(NAME), [rows, 1, 1], row_threads(out.cols / width, ROW_THREADS), 0, &arguments)
    }
}

impl Execute<EmbeddingBackward<'_, Cuda>> for Cuda {
    fn execute(&self, checked: Checked<EmbeddingBackward<Cuda>>) -> Result<()> {
        const NAME: &str = "embedding_backward";
        let EmbeddingBackward { ids, d_out, d_table } = checked.operands();
        if d_out.is_empty() {
            return Ok(());
        }
        let tokens = size(NAME, d_out.rows)?;
        let cols = size(NAME, d_out.cols)?;
        // Keys are of 64 bits: the sorted tiles, then all of them in order.
        self.with_scratch("embedding keys", 4 * d_out.rows, DType::U32, |scratch| {
            let tiles = Argument::Pointer(scratch.address(0));
            let keys = Argument::Pointer(scratch.address(2 * d_out.rows));
            let tile = sizes::EMBEDDING_TILE;
            let grid = [size(NAME, d_out.rows.div_ceil(tile))?, 1, 1];
            let shared = sizes::EMBEDDING_SORT_BYTES;
            self.launch("embedding_sort_tiles", grid, tile as u32, shared, &[ids.pointer(), tiles, tokens.into()])?;
            // Eight lanes a token.
            let grid = [size(NAME, d_out.rows.div_ceil(32))?, 1, 1];
            self.launch("embedding_merge_tiles", grid, 256, 0, &[tiles, keys, tokens.into()])?;

            let whole = d_out.cols.is_multiple_of(4) && aligned(&[d_table.address()], 16);
            let vectorised = whole && aligned(&[d_out.address()], 4 * d_out.dtype().bytes() as u64);
            let chunks = size(NAME, d_out.cols.div_ceil(if vectorised { 256 } else { 64 }))?;
            let grid = [size(NAME, (d_out.rows * chunks as usize).div_ceil(4))?, 1, 1];
            let arguments =
                [keys, tokens.into(), d_out.pointer(), d_table.pointer(), cols.into(), chunks.into(), flag(vectorised)];
            self.launch(&self.kernel("embedding_sum_runs"), grid, 128, 0, &arguments)
        })
    }
}

/// How a SwiGLU kernel is launched.
struct SwigluLaunch {
    blocks: u32,
    threads: u32,
    /// Blocks of a row.
    chunks: u32,
    vectorised: bool,
}

impl SwigluLaunch {
    /// The launch for matrices at `addresses`, whose h has `rows` × `cols` elements of `dtype`.
    fn new(name: &str, dtype: DType, rows: usize, cols: usize, addresses: &[u64]) -> Result<Self> {
        let width = row_width(dtype, cols, addresses);
        let threads = row_threads(cols / width, ROW_THREADS);
        let chunks = (cols / width).div_ceil(threads as usize);
        Ok(Self { blocks: size(name, rows * chunks)?, threads, chunks: size(name, chunks)?, vectorised: width > 1 })
    }
}

impl Execute<SwigluForward<'_, Cuda>> for Cuda {
    fn execute(&self, checked: Checked<SwigluForward<Cuda>>) -> Result<()> {
        const NAME: &str = "swiglu_forward";
        let SwigluForward { gate_up, h } = checked.operands();
        if h.is_empty() {
            return Ok(());
        }
        let addresses = [gate_up.address(), h.address()];
        let SwigluLaunch { blocks, threads, chunks, vectorised } =
            SwigluLaunch::new(NAME, h.dtype(), h.rows, h.cols, &addresses)?;
        let cols = size(NAME, 2 * h.cols)? / 2;
        let arguments = [gate_up.pointer(), h.pointer(), cols.into(), chunks.into(), flag(vectorised)];
        self.launch(&self.kernel(NAME), [blocks, 1, 1], threads, 0, &arguments)
    }
}

impl Execute<SwigluBackward<'_, Cuda>> for Cuda {
    fn execute(&self, checked: Checked<SwigluBackward<Cuda>>) -> Result<()> {
        const NAME: &str = "swiglu_backward";
        let SwigluBackward { d_h, gate_up, d_gate_up } = checked.operands();
        if d_h.is_empty() {
            return Ok(());
        }
        let addresses = [d_h.address(), gate_up.address(), d_gate_up.address()];
        let SwigluLaunch { blocks, threads, chunks, vectorised } =
            SwigluLaunch::new(NAME, d_h.dtype(), d_h.rows, d_h.cols, &addresses)?;
        let cols = size(NAME, 2 * d_h.cols)? / 2;
        let arguments =
            [d_h.pointer(), gate_up.pointer(), d_gate_up.pointer(), cols.into(), chunks.into(), flag(vectorised)];
        self.launch(&self.kernel(NAME), [blocks, 1, 1], threads, 0, &arguments)
    }
}

impl Execute<WeightedSum<'_, Cuda>> for Cuda {
    fn execute(&self, checked: Checked<WeightedSum<Cuda>>) -> Result<()> {
        let WeightedSum { a, b, scale, out } = checked.operands();
        let arguments = [a.pointer(), b.pointer(), scale.into(), out.pointer(), Argument::U64(a.len() as u64)];
        self.launch("weighted_sum_f32", [1; 3], row_threads(a.len(), 1024), sizes::F64_SUM_BYTES, &arguments)
    }
}

impl Execute<SquaredNorm<'_, Cuda>> for Cuda {
    fn execute(&self, checked: Checked<SquaredNorm<Cuda>>) -> Result<f64> {
        let SquaredNorm { x } = checked.operands();
        let n = x.len();
        let vectorised = aligned(&[x.address()], 16);
        let blocks = flat_blocks(self, if vectorised { n.div_ceil(16) } else { n.div_ceil(4) }, FLAT_BLOCKS);
        // One f64 a block.
        self.with_scratch("squared norm", 2 * blocks as usize, DType::U32, |partial| {
            let arguments =
                [x.pointer(), Argument::Pointer(partial.address(0)), Argument::U64(n as u64), flag(vectorised)];
            self.launch("squared_norm_f32", [blocks, 1, 1], FLAT_THREADS, sizes::F64_SUM_BYTES, &arguments)?;
            let mut sums = vec![0.0f64; blocks as usize];
            // SAFETY: the scratch buffer has at least these 8 bytes for each block.
            unsafe { self.driver.download(partial.address(0), bytemuck::cast_slice_mut(&mut sums))? };
            Ok(sums.iter().sum())
        })
    }
}

impl Execute<SignMask<'_, Cuda>> for Cuda {
    fn execute(&self, checked: Checked<SignMask<Cuda>>) -> Result<()> {
        let SignMask { masked, scale, decay, accumulated, gradient } = checked.operands();
        let n = gradient.len();
        if n == 0 {
            return Ok(());
        }
        let vectorised = aligned(&[masked.address(), accumulated.address(), gradient.address()], 16);
        let blocks = flat_blocks(self, if vectorised { n.div_ceil(4) } else { n }, FLAT_BLOCKS);
        let arguments = [
            masked.pointer(),
            accumulated.pointer(),
            gradient.pointer(),
            scale.into(),
            (decay as f32).into(),
            ((1.0 - decay) as f32).into(),
            Argument::U64(n as u64),
            flag(vectorised),
        ];
        self.launch("sign_mask_f32", [blocks, 1, 1], FLAT_THREADS, 0, &arguments)
    }
}
