//! Launchers of the RMS norm.

use super::Cuda;
use crate::error::{Error, Result};
use crate::ops::*;

#[allow(clippy::too_many_arguments, unused_variables)]
pub(super) fn forward(
    cuda: &Cuda,
    residual: Matrix<Cuda>,
    delta: Option<Matrix<Cuda>>,
    weight: Matrix<Cuda>,
    epsilon: f32,
    sum: Option<MatrixMut<Cuda>>,
    normed: MatrixMut<Cuda>,
    inverse_rms: MatrixMut<Cuda>,
) -> Result<()> {
    Err(Error::Device("norm::forward is not written yet".into()))
}

#[allow(clippy::too_many_arguments, unused_variables)]
pub(super) fn backward(
    cuda: &Cuda,
    d_normed: Matrix<Cuda>,
    x: Matrix<Cuda>,
    weight: Matrix<Cuda>,
    inverse_rms: Matrix<Cuda>,
    d_residual: MatrixMut<Cuda>,
    d_weight: Option<MatrixMut<Cuda>>,
) -> Result<()> {
    Err(Error::Device("norm::backward is not written yet".into()))
}
