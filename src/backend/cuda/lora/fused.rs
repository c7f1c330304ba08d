//! Launchers of the fused kernels in `lora.cu`: bf16, rows aligned to 16 bytes, up to four slices.

use super::{gradient, mask_arguments};
use crate::backend::cuda::driver::Argument;
use crate::backend::cuda::linear::count;
use crate::backend::cuda::{Cuda, CudaBuffer, Place, sizes};
use crate::error::{Error, Result};
use crate::ops::{DType, Dropout, LoraSlice, Matrix, MatrixMut};

/// Columns of dy, and of x, that a block takes.
const RANK_COLUMNS: usize = sizes::LORA_RANK_TILES * sizes::LORA_TILE;
const FACTOR_COLUMNS: usize = sizes::LORA_FACTOR_TILES * sizes::LORA_TILE;

/// Whether a matrix, from a column on, has rows that all begin at multiples of 16 bytes.
fn aligned(address: u64, column: usize, leading: usize) -> bool {
    (address + 2 * column as u64).is_multiple_of(16) && leading.is_multiple_of(8)
}

/// Whether [`factor_gradients`] takes x.
pub(super) fn takes_input(x: &Matrix<Cuda>) -> bool {
    x.dtype() == DType::Bf16 && aligned(x.address(), 0, x.cols)
}

/// Whether [`down`] and [`input_gradient`] take the slices, with x or dx at `address`.
pub(super) fn takes_slices(address: u64, slices: &[LoraSlice<Cuda>]) -> bool {
    let fits = |slice: &LoraSlice<Cuda>| slice.a.dtype() == DType::Bf16 && aligned(slice.a.address(), 0, slice.a.cols);
    slices.len() <= 4 && address.is_multiple_of(16) && slices.iter().all(fits)
}

/// Whether [`rank_gradients`] takes a slice.
pub(super) fn takes_output(dy: &Matrix<Cuda>, slice: &LoraSlice<Cuda>) -> bool {
    dy.dtype() == DType::Bf16 && aligned(dy.address(), slice.start, dy.cols)
}

/// s = dropout(x) `[a₁; a₂; …]ᵀ`.
pub(super) fn down(
    cuda: &Cuda,
    x: Matrix<Cuda>,
    slices: &[LoraSlice<Cuda>],
    dropout: Option<Dropout>,
    s: &MatrixMut<Cuda>,
) -> Result<()> {
    if s.cols == 0 {
        return Ok(());
    }
    let mut arguments =
        vec![x.pointer(), Argument::U32(count(x.rows)?), Argument::U32(count(x.cols)?), Argument::U32(count(s.cols)?)];
    arguments.extend(stacked(slices)?);
    arguments.extend([s.pointer(), Argument::F32(keep(dropout))]);
    let grid = blocks(&[x.rows.div_ceil(sizes::LORA_DOWN_TOKENS), s.cols.div_ceil(sizes::LORA_TILE)])?;
    launch(cuda, "lora_down", dropout, grid, sizes::LORA_DOWN_THREADS, sizes::LORA_DOWN_BYTES, arguments)
}

/// ds of one slice, whose first column in s is `first`, and the gradient of its b where there is a buffer for it.
pub(super) fn rank_gradients(
    cuda: &Cuda,
    dy: Matrix<Cuda>,
    s: Matrix<Cuda>,
    slice: &LoraSlice<Cuda>,
    first: usize,
    gradients: Option<&CudaBuffer>,
    ds: &MatrixMut<Cuda>,
) -> Result<()> {
    let tokens = dy.rows;
    let columns = slice.b.rows;
    let rank = slice.b.cols;
    if rank == 0 || columns == 0 {
        return Ok(());
    }
    let at = |address: u64, column: usize| address + 2 * column as u64;
    let range = token_range(tokens);
    let column_blocks = columns.div_ceil(RANK_COLUMNS);
    let token_blocks = tokens.div_ceil(range);
    let aligned_ranks = aligned(s.address(), first, s.cols) && aligned(slice.b.address(), 0, rank);
    let ds_len = tokens * rank;
    let db_len = columns * rank;
    let elements = column_blocks * ds_len + token_blocks * db_len;
    cuda.with_scratch("parts of adapter gradients", elements, DType::F32, |parts| {
        let db_parts = parts.address(column_blocks * ds_len);
        let arguments = [
            Argument::Pointer(at(dy.address(), slice.start)),
            Argument::U64(dy.cols as u64),
            Argument::U32(count(tokens)?),
            Argument::U32(count(columns)?),
            Argument::Pointer(at(s.address(), first)),
            Argument::U64(s.cols as u64),
            Argument::U32(count(rank)?),
            slice.b.pointer(),
            Argument::Pointer(if gradients.is_some() { db_parts } else { 0 }),
            Argument::Pointer(parts.address(0)),
            Argument::U32(count(range)?),
            Argument::U32(u32::from(aligned_ranks)),
        ];
        let grid = [count(column_blocks)?, count(token_blocks)?, count(rank.div_ceil(sizes::LORA_RANK_RANKS))?];
        let threads = sizes::LORA_RECTANGLE_THREADS as u32;
        let shared = sizes::lora_rectangle_bytes(sizes::LORA_RANK_RANKS, sizes::LORA_RANK_TILES);
        cuda.launch("lora_rank_gradients_bf16", grid, threads, shared, &arguments)?;
        let ds_parts = Parts { pointer: parts.address(0), stride: ds_len, count: column_blocks };
        ds_parts.add_up(
            cuda,
            Sum {
                rows: tokens,
                columns: rank,
                to: at(ds.address(), first),
                leading: ds.cols,
                dtype: DType::Bf16,
                scale: slice.scale,
            },
        )?;
        let Some(gradients) = gradients else { return Ok(()) };
        let db_parts = Parts { pointer: db_parts, stride: db_len, count: token_blocks };
        let to = gradient(gradients, &slice.b, slice.scale).pointer;
        let sum = Sum { rows: columns, columns: rank, to, leading: rank, dtype: DType::F32, scale: slice.scale };
        db_parts.add_up(cuda, sum)
    })
}

/// The gradients of all a.
pub(super) fn factor_gradients(
    cuda: &Cuda,
    x: Matrix<Cuda>,
    ds: Matrix<Cuda>,
    slices: &[LoraSlice<Cuda>],
    dropout: Option<Dropout>,
    gradients: &CudaBuffer,
) -> Result<()> {
    if ds.cols == 0 {
        return Ok(());
    }
    let range = token_range(x.rows);
    let len = ds.cols * x.cols;
    let token_blocks = x.rows.div_ceil(range);
    cuda.with_scratch("parts of adapter gradients", token_blocks * len, DType::F32, |parts| {
        let arguments = vec![
            x.pointer(),
            Argument::U32(count(x.rows)?),
            Argument::U32(count(x.cols)?),
            ds.pointer(),
            Argument::U32(count(ds.cols)?),
            Argument::Pointer(parts.address(0)),
            Argument::U32(count(range)?),
            Argument::U32(u32::from(aligned(ds.address(), 0, ds.cols))),
        ];
        let column_blocks = count(x.cols.div_ceil(FACTOR_COLUMNS))?;
        let grid = [column_blocks, count(token_blocks)?, count(ds.cols.div_ceil(sizes::LORA_FACTOR_RANKS))?];
        let shared = sizes::lora_rectangle_bytes(sizes::LORA_FACTOR_RANKS, 0);
        launch(cuda, "lora_factor_gradients", dropout, grid, sizes::LORA_RECTANGLE_THREADS, shared, arguments)?;
        super::each_slice(slices, |slice, first| {
            let parts = Parts { pointer: parts.address(first * x.cols), stride: len, count: token_blocks };
            let to = gradient(gradients, &slice.a, 1.0).pointer;
            let scale = keep(dropout);
            let sum = Sum { rows: slice.a.rows, columns: x.cols, to, leading: x.cols, dtype: DType::F32, scale };
            parts.add_up(cuda, sum)
        })
    })
}

/// dx += mask · (ds `[a₁; a₂; …]`).
pub(super) fn input_gradient(
    cuda: &Cuda,
    ds: Matrix<Cuda>,
    slices: &[LoraSlice<Cuda>],
    dropout: Option<Dropout>,
    dx: &MatrixMut<Cuda>,
) -> Result<()> {
    let mut arguments = vec![
        ds.pointer(),
        Argument::U32(count(dx.rows)?),
        Argument::U32(count(dx.cols)?),
        Argument::U32(count(ds.cols)?),
    ];
    arguments.extend(stacked(slices)?);
    let aligned_ranks = aligned(ds.address(), 0, ds.cols);
    arguments.extend([dx.pointer(), Argument::F32(keep(dropout)), Argument::U32(u32::from(aligned_ranks))]);
    let grid = blocks(&[dx.rows.div_ceil(sizes::LORA_TILE), dx.cols.div_ceil(sizes::LORA_INPUT_COLUMNS)])?;
    launch(cuda, "lora_input_gradient", dropout, grid, sizes::LORA_INPUT_THREADS, sizes::LORA_INPUT_BYTES, arguments)
}

/// Where the sum of parts goes, times `scale`: into a bf16 matrix, or onto an f32 matrix.
struct Sum {
    rows: usize,
    columns: usize,
    to: u64,
    /// Elements from one row of the matrix to the next.
    leading: usize,
    dtype: DType,
    scale: f32,
}

/// Sums in scratch that are still to be added up.
struct Parts {
    pointer: u64,
    /// Elements from one part to the next.
    stride: usize,
    count: usize,
}

impl Parts {
    /// Writes their sum, or adds it to what is there.
    fn add_up(&self, cuda: &Cuda, sum: Sum) -> Result<()> {
        let Sum { rows, columns, to, leading, dtype, scale } = sum;
        let elements = rows * columns;
        if elements == 0 {
            return Ok(());
        }
        let arguments = [
            Argument::Pointer(self.pointer),
            Argument::U64(self.stride as u64),
            Argument::U32(count(self.count)?),
            Argument::U64(elements as u64),
            Argument::U32(count(columns)?),
            Argument::Pointer(to),
            Argument::U64(leading as u64),
            Argument::F32(scale),
        ];
        cuda.launch(
            &super::kernel_name("lora_sum_parts", dtype),
            blocks(&[elements.div_ceil(256)])?,
            256,
            0,
            &arguments,
        )
    }
}

/// Tokens whose sums one block keeps in registers: many, since their parts are written and read; but an eighth of all
/// at most, so that there are blocks enough. A function of the shape alone, so that the same bits come out on every
/// device.
fn token_range(tokens: usize) -> usize {
    (tokens / 8).next_multiple_of(sizes::LORA_TILE).clamp(sizes::LORA_TILE, 512)
}

fn keep(dropout: Option<Dropout>) -> f32 {
    dropout.map_or(1.0, |dropout| 1.0 / (1.0 - dropout.probability))
}

/// The a of all slices as `StackedRows`: four pointers, and where the first three end.
fn stacked(slices: &[LoraSlice<Cuda>]) -> Result<Vec<Argument>> {
    let mut end = 0;
    let mut pointers = Vec::new();
    let mut ends = Vec::new();
    for i in 0..4 {
        let slice = slices.get(i);
        end += slice.map_or(0, |slice| slice.a.rows);
        pointers.push(slice.map_or(Argument::Pointer(0), |slice| slice.a.pointer()));
        ends.push(Argument::U32(count(end)?));
    }
    ends.pop();
    Ok([pointers, ends].concat())
}

fn blocks(factors: &[usize]) -> Result<[u32; 3]> {
    let all: usize = factors.iter().product();
    Ok([u32::try_from(all).map_err(|_| Error::Device(format!("a launch of {all} blocks")))?, 1, 1])
}

/// Launches the variant of a kernel with or without dropout; the mask's arguments come last.
fn launch(
    cuda: &Cuda,
    stem: &str,
    dropout: Option<Dropout>,
    grid: [u32; 3],
    block: usize,
    shared: usize,
    mut arguments: Vec<Argument>,
) -> Result<()> {
    let name = if dropout.is_some() { format!("{stem}_dropout_bf16") } else { format!("{stem}_bf16") };
    arguments.extend(dropout.map_or([0; 5].map(Argument::U32), mask_arguments));
    cuda.launch(&name, grid, block as u32, shared, &arguments)
}
