//! Launchers of the matrix products.

use super::Cuda;
use crate::error::{Error, Result};
use crate::ops::*;

#[allow(clippy::too_many_arguments, unused_variables)]
pub(super) fn forward(cuda: &Cuda, x: Matrix<Cuda>, w: Matrix<Cuda>, y: MatrixMut<Cuda>) -> Result<()> {
    Err(Error::Device("linear::forward is not written yet".into()))
}

#[allow(clippy::too_many_arguments, unused_variables)]
pub(super) fn backward_input(
    cuda: &Cuda,
    dy: Matrix<Cuda>,
    w: Matrix<Cuda>,
    dx: MatrixMut<Cuda>,
    accumulate: bool,
) -> Result<()> {
    Err(Error::Device("linear::backward_input is not written yet".into()))
}

#[allow(clippy::too_many_arguments, unused_variables)]
pub(super) fn backward_weight(cuda: &Cuda, dy: Matrix<Cuda>, x: Matrix<Cuda>, dw: MatrixMut<Cuda>) -> Result<()> {
    Err(Error::Device("linear::backward_weight is not written yet".into()))
}
