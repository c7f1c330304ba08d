//! Launchers of the element-wise kernels, the embedding and the reductions.

use super::Cuda;
use crate::error::{Error, Result};
use crate::ops::*;

#[allow(clippy::too_many_arguments, unused_variables)]
pub(super) fn embedding_backward(
    cuda: &Cuda,
    ids: Matrix<Cuda>,
    d_out: Matrix<Cuda>,
    d_table: MatrixMut<Cuda>,
) -> Result<()> {
    Err(Error::Device("element::embedding_backward is not written yet".into()))
}

#[allow(clippy::too_many_arguments, unused_variables)]
pub(super) fn gather_rows(cuda: &Cuda, from: Matrix<Cuda>, indices: Matrix<Cuda>, out: MatrixMut<Cuda>) -> Result<()> {
    Err(Error::Device("element::gather_rows is not written yet".into()))
}

#[allow(clippy::too_many_arguments, unused_variables)]
pub(super) fn swiglu_forward(cuda: &Cuda, gate_up: Matrix<Cuda>, h: MatrixMut<Cuda>) -> Result<()> {
    Err(Error::Device("element::swiglu_forward is not written yet".into()))
}

#[allow(clippy::too_many_arguments, unused_variables)]
pub(super) fn swiglu_backward(
    cuda: &Cuda,
    d_h: Matrix<Cuda>,
    gate_up: Matrix<Cuda>,
    d_gate_up: MatrixMut<Cuda>,
) -> Result<()> {
    Err(Error::Device("element::swiglu_backward is not written yet".into()))
}

#[allow(clippy::too_many_arguments, unused_variables)]
pub(super) fn axpy(cuda: &Cuda, alpha: f32, x: Matrix<Cuda>, y: MatrixMut<Cuda>) -> Result<()> {
    Err(Error::Device("element::axpy is not written yet".into()))
}

#[allow(clippy::too_many_arguments, unused_variables)]
pub(super) fn weighted_sum(
    cuda: &Cuda,
    a: Matrix<Cuda>,
    b: Matrix<Cuda>,
    scale: f32,
    out: MatrixMut<Cuda>,
) -> Result<()> {
    Err(Error::Device("element::weighted_sum is not written yet".into()))
}

#[allow(clippy::too_many_arguments, unused_variables)]
pub(super) fn squared_norm(cuda: &Cuda, x: Matrix<Cuda>) -> Result<f64> {
    Err(Error::Device("element::squared_norm is not written yet".into()))
}
