//! Launchers of the losses on hidden states (`kernels/hidden.cu`) and of preferences (`kernels/preference.cu`).

use super::element::{ROW_THREADS, SUM_BYTES, fits, flag, row_threads, row_width, size, stored_as};
use super::{Cuda, Place, optional};
use crate::error::Result;
use crate::ops::{DType, Matrix, MatrixMut, Segments};

/// Shared memory in front of the rows: three sums for each of 32 warps, rounded up.
const SCRATCH_BYTES: usize = 512;

pub(super) fn representation_distance(
    cuda: &Cuda,
    hidden: Matrix<Cuda>,
    reference: Matrix<Cuda>,
    weights: Matrix<Cuda>,
    values: MatrixMut<Cuda>,
    d_hidden: Option<MatrixMut<Cuda>>,
) -> Result<()> {
    const NAME: &str = "representation_distance";
    let mut operands = vec![("hidden", hidden.dtype()), ("reference", reference.dtype())];
    operands.extend(d_hidden.iter().map(|m| ("d_hidden", m.dtype())));
    stored_as(NAME, &operands, cuda.compute_dtype)?;
    stored_as(NAME, &[("weights", weights.dtype()), ("values", values.dtype())], DType::F32)?;
    if hidden.is_empty() {
        return Ok(());
    }
    let (rows, cols) = (size(NAME, hidden.rows)?, hidden.cols);
    let mut addresses = vec![hidden.address(), reference.address()];
    addresses.extend(d_hidden.iter().map(Place::address));
    let width = row_width(hidden.dtype(), cols, &addresses);
    let kept = if d_hidden.is_some() { cols * 4 } else { 0 };
    let arguments = [
        hidden.pointer(),
        reference.pointer(),
        weights.pointer(),
        values.pointer(),
        optional(d_hidden.as_ref()),
        size(NAME, cols)?.into(),
        flag(width > 1),
    ];
    let shared = fits(NAME, cuda, cols, SCRATCH_BYTES + kept)?;
    cuda.launch(&cuda.kernel(NAME), [rows, 1, 1], row_threads(cols / width, ROW_THREADS), shared, &arguments)
}

pub(super) fn random_mapping(
    cuda: &Cuda,
    hidden: Matrix<Cuda>,
    table: Matrix<Cuda>,
    ids: Matrix<Cuda>,
    weights: Matrix<Cuda>,
    values: MatrixMut<Cuda>,
    d_hidden: Option<MatrixMut<Cuda>>,
) -> Result<()> {
    const NAME: &str = "random_mapping";
    stored_as(NAME, &[("hidden", hidden.dtype())], cuda.compute_dtype)?;
    if let Some(d_hidden) = &d_hidden {
        stored_as(NAME, &[("d_hidden", d_hidden.dtype())], cuda.compute_dtype)?;
    }
    let columns = [("table", table.dtype()), ("weights", weights.dtype()), ("values", values.dtype())];
    stored_as(NAME, &columns, DType::F32)?;
    stored_as(NAME, &[("ids", ids.dtype())], DType::U32)?;
    if hidden.is_empty() {
        return Ok(());
    }
    let (rows, cols, dtype) = (size(NAME, hidden.rows)?, hidden.cols, hidden.dtype());
    let mut addresses = vec![hidden.address(), table.address()];
    addresses.extend(d_hidden.iter().map(Place::address));
    let width = row_width(dtype, cols, &addresses);
    let kept = if d_hidden.is_some() { cols.next_multiple_of(4) * 4 + cols * dtype.bytes() } else { 0 };
    let arguments = [
        hidden.pointer(),
        table.pointer(),
        ids.pointer(),
        weights.pointer(),
        values.pointer(),
        optional(d_hidden.as_ref()),
        size(NAME, cols)?.into(),
        flag(width > 1),
    ];
    let shared = fits(NAME, cuda, cols, SCRATCH_BYTES + kept)?;
    cuda.launch(&cuda.kernel(NAME), [rows, 1, 1], row_threads(cols / width, ROW_THREADS), shared, &arguments)
}

#[allow(clippy::too_many_arguments)]
pub(super) fn preference(
    cuda: &Cuda,
    values: Matrix<Cuda>,
    segments: &Segments<Cuda>,
    reference_margins: Matrix<Cuda>,
    beta: f32,
    scale: f32,
    weights: MatrixMut<Cuda>,
    losses: MatrixMut<Cuda>,
) -> Result<()> {
    const NAME: &str = "preference";
    let columns = [
        ("values", values.dtype()),
        ("reference_margins", reference_margins.dtype()),
        ("weights", weights.dtype()),
        ("losses", losses.dtype()),
    ];
    stored_as(NAME, &columns, DType::F32)?;
    if losses.is_empty() {
        return Ok(());
    }
    let arguments = [
        values.pointer(),
        segments.device.view().pointer(),
        reference_margins.pointer(),
        beta.into(),
        scale.into(),
        weights.pointer(),
        losses.pointer(),
    ];
    cuda.launch("preference_f32", [size(NAME, losses.len())?, 1, 1], ROW_THREADS, SUM_BYTES, &arguments)
}
