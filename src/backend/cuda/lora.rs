//! Launchers of the low-rank adapters: fused kernels where they fit (`lora/fused.rs`), else whole matrix products.

mod fused;

use super::driver::{Argument, Gemm, Operand};
use super::linear::{product, rows, transposed};
use super::{Cuda, CudaBuffer, Place, kernel_name};
use crate::error::{Error, Result};
use crate::ops::{Checked, DType, Dropout, Execute, LoraBackward, LoraForward, LoraSlice, Matrix, MatrixMut};

const THREADS: u32 = 256;

impl Execute<LoraForward<'_, Cuda>> for Cuda {
    fn execute(&self, checked: Checked<LoraForward<Cuda>>) -> Result<()> {
        let LoraForward { x, slices, dropout, s, y } = checked.operands();
        let dtype = x.dtype();
        if x.is_empty() || slices.is_empty() {
            return Ok(());
        }
        if fused::takes_input(&x) && fused::takes_slices(x.address(), slices) {
            fused::down(self, x, slices, dropout, &s)?;
        } else {
            down(self, x, slices, dropout, &s, dtype)?;
        }
        each_slice(slices, |slice, first| {
            let shape = Shape { m: y.rows, n: slice.b.rows, k: slice.b.cols };
            let to = Target { alpha: slice.scale, beta: 1.0, ..target(&y, slice.start, dtype) };
            multiply(self, shape, from(&s.as_matrix(), first), transposed(rows(&slice.b, slice.b.cols)), to, dtype)
        })
    }
}

/// s = dropout(x) `[a₁; a₂; …]ᵀ`.
fn down(
    cuda: &Cuda,
    x: Matrix<Cuda>,
    slices: &[LoraSlice<Cuda>],
    dropout: Option<Dropout>,
    s: &MatrixMut<Cuda>,
    dtype: DType,
) -> Result<()> {
    with_dropped(cuda, x, dropout, |x, keep| {
        each_slice(slices, |slice, first| {
            let shape = Shape { m: s.rows, n: slice.a.rows, k: slice.a.cols };
            let to = Target { alpha: keep, ..target(s, first, dtype) };
            multiply(cuda, shape, x, transposed(rows(&slice.a, slice.a.cols)), to, dtype)
        })
    })
}

impl Execute<LoraBackward<'_, Cuda>> for Cuda {
    fn execute(&self, checked: Checked<LoraBackward<Cuda>>) -> Result<()> {
        let LoraBackward { dy, x, s, slices, dropout, gradients, ds, dx } = checked.operands();
        let dtype = x.dtype();
        if x.is_empty() || slices.is_empty() {
            return Ok(());
        }
        let buffer = gradients.map(|buffer| &*buffer);
        each_slice(slices, |slice, first| {
            if fused::takes_output(&dy, slice) {
                fused::rank_gradients(self, dy, s, slice, first, buffer, &ds)
            } else {
                rank_gradients(self, dy, s, slice, first, buffer, &ds)
            }
        })?;
        let ds = ds.as_matrix();
        match buffer {
            Some(buffer) if fused::takes_input(&x) => fused::factor_gradients(self, x, ds, slices, dropout, buffer)?,
            Some(buffer) => factor_gradients(self, x, ds, slices, dropout, buffer)?,
            None => {}
        }
        if fused::takes_input(&dx.as_matrix()) && fused::takes_slices(dx.address(), slices) {
            fused::input_gradient(self, ds, slices, dropout, &dx)
        } else {
            add_input_gradient(self, ds, slices, dropout, dx, dtype)
        }
    }
}

/// ds of one slice = scale · dy b, and the gradient of its b += scale · dyᵀ s.
fn rank_gradients(
    cuda: &Cuda,
    dy: Matrix<Cuda>,
    s: Matrix<Cuda>,
    slice: &LoraSlice<Cuda>,
    first: usize,
    gradients: Option<&CudaBuffer>,
    ds: &MatrixMut<Cuda>,
) -> Result<()> {
    let part = from(&dy, slice.start);
    let dtype = dy.dtype();
    let tokens = dy.rows;
    let rank = slice.b.cols;
    let columns = slice.b.rows;
    let to = Target { alpha: slice.scale, ..target(ds, first, dtype) };
    multiply(cuda, Shape { m: tokens, n: rank, k: columns }, part, rows(&slice.b, rank), to, dtype)?;
    let Some(gradients) = gradients else { return Ok(()) };
    let to = gradient(gradients, &slice.b, slice.scale);
    multiply(cuda, Shape { m: columns, n: rank, k: tokens }, transposed(part), from(&s, first), to, dtype)
}

/// The gradients of all a += dsᵀ dropout(x).
fn factor_gradients(
    cuda: &Cuda,
    x: Matrix<Cuda>,
    ds: Matrix<Cuda>,
    slices: &[LoraSlice<Cuda>],
    dropout: Option<Dropout>,
    gradients: &CudaBuffer,
) -> Result<()> {
    let tokens = x.rows;
    let dtype = x.dtype();
    with_dropped(cuda, x, dropout, |x, keep| {
        each_slice(slices, |slice, first| {
            let shape = Shape { m: slice.a.rows, n: slice.a.cols, k: tokens };
            let to = gradient(gradients, &slice.a, keep);
            multiply(cuda, shape, transposed(from(&ds, first)), x, to, dtype)
        })
    })
}

/// dx += mask · (ds a).
fn add_input_gradient(
    cuda: &Cuda,
    ds: Matrix<Cuda>,
    slices: &[LoraSlice<Cuda>],
    dropout: Option<Dropout>,
    dx: MatrixMut<Cuda>,
    dtype: DType,
) -> Result<()> {
    let add_all = |to: Target| {
        each_slice(slices, |slice, first| {
            let shape = Shape { m: dx.rows, n: slice.a.cols, k: slice.a.rows };
            // The first product overwrites scratch, whose content is undefined.
            let beta = if first == 0 { to.beta } else { 1.0 };
            multiply(cuda, shape, from(&ds, first), rows(&slice.a, slice.a.cols), Target { beta, ..to }, dtype)
        })
    };
    let Some(dropout) = dropout else { return add_all(Target { beta: 1.0, ..target(&dx, 0, dtype) }) };
    cuda.with_scratch("input gradient before dropout", dx.len(), DType::F32, |sum| {
        let pointer = sum.address(0);
        add_all(Target { pointer, leading: dx.cols, dtype: DType::F32, alpha: 1.0, beta: 0.0 })?;
        let mut arguments = vec![
            Argument::Pointer(pointer),
            dx.pointer(),
            Argument::U64(dx.len() as u64),
            Argument::F32(1.0 / (1.0 - dropout.probability)),
        ];
        arguments.extend(mask_arguments(dropout));
        cuda.launch(&kernel_name("lora_add_kept", dtype), groups_of_four(dx.len())?, THREADS, 0, &arguments)
    })
}

/// Where a product goes, and its factors.
#[derive(Clone, Copy)]
struct Target {
    pointer: u64,
    leading: usize,
    dtype: DType,
    alpha: f32,
    beta: f32,
}

/// A matrix from column `column` on, to be overwritten.
fn target(matrix: &MatrixMut<Cuda>, column: usize, dtype: DType) -> Target {
    let pointer = matrix.address() + (column * dtype.bytes()) as u64;
    Target { pointer, leading: matrix.cols, dtype, alpha: 1.0, beta: 0.0 }
}

/// The gradient of a factor, to be added to.
fn gradient(buffer: &CudaBuffer, factor: &Matrix<Cuda>, alpha: f32) -> Target {
    let pointer = buffer.address(factor.offset);
    Target { pointer, leading: factor.cols, dtype: DType::F32, alpha, beta: 1.0 }
}

/// A matrix from column `column` on, as an operand.
fn from(matrix: &Matrix<Cuda>, column: usize) -> Operand {
    let pointer = matrix.address() + (column * matrix.dtype().bytes()) as u64;
    Operand { pointer, leading: matrix.cols, transposed: false }
}

/// Rows, columns and inner dimension of a product.
#[derive(Clone, Copy)]
struct Shape {
    m: usize,
    n: usize,
    k: usize,
}

fn multiply(cuda: &Cuda, shape: Shape, a: Operand, b: Operand, to: Target, input: DType) -> Result<()> {
    let Shape { m, n, k } = shape;
    let Target { pointer: c, leading: c_leading, dtype: output, alpha, beta } = to;
    product(cuda, &Gemm { m, n, k, a, b, c, c_leading, input, output, alpha, beta })
}

/// Calls `work` with each slice and its first column in s.
fn each_slice<'a>(
    slices: &'a [LoraSlice<'a, Cuda>],
    mut work: impl FnMut(&'a LoraSlice<'a, Cuda>, usize) -> Result<()>,
) -> Result<()> {
    let mut first = 0;
    for slice in slices {
        work(slice, first)?;
        first += slice.a.rows;
    }
    Ok(())
}

/// Calls `work` with dropout(x) but for its scale, and that scale.
fn with_dropped<R>(
    cuda: &Cuda,
    x: Matrix<Cuda>,
    dropout: Option<Dropout>,
    work: impl FnOnce(Operand, f32) -> Result<R>,
) -> Result<R> {
    let Some(dropout) = dropout else { return work(rows(&x, x.cols), 1.0) };
    cuda.with_scratch("adapter input after dropout", x.len(), x.dtype(), |dropped| {
        let mut arguments = vec![x.pointer(), Argument::Pointer(dropped.address(0)), Argument::U64(x.len() as u64)];
        arguments.extend(mask_arguments(dropout));
        if !x.is_empty() {
            cuda.launch(&kernel_name("lora_drop", x.dtype()), groups_of_four(x.len())?, THREADS, 0, &arguments)?;
        }
        let operand = Operand { pointer: dropped.address(0), leading: x.cols, transposed: false };
        work(operand, 1.0 / (1.0 - dropout.probability))
    })
}

/// The key of a mask and the limit below which a word drops its element, as kernels take them.
fn mask_arguments(dropout: Dropout) -> [Argument; 5] {
    let limit = (f64::from(dropout.probability) * 4_294_967_296.0) as u32;
    [dropout.seed as u32, (dropout.seed >> 32) as u32, dropout.site, dropout.step, limit].map(Argument::U32)
}

/// A thread for each four elements.
fn groups_of_four(len: usize) -> Result<[u32; 3]> {
    let blocks = len.div_ceil(4 * THREADS as usize);
    let blocks = u32::try_from(blocks).map_err(|_| Error::Device(format!("an input of {len} elements")))?;
    Ok([blocks, 1, 1])
}
