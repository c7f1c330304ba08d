//! Launchers of the low-rank adapters.

use super::Cuda;
use crate::error::{Error, Result};
use crate::ops::*;

#[allow(clippy::too_many_arguments, unused_variables)]
pub(super) fn forward(
    cuda: &Cuda,
    x: Matrix<Cuda>,
    slices: &[LoraSlice<Cuda>],
    dropout: Option<Dropout>,
    s: MatrixMut<Cuda>,
    y: MatrixMut<Cuda>,
) -> Result<()> {
    Err(Error::Device("lora::forward is not written yet".into()))
}

#[allow(clippy::too_many_arguments, unused_variables)]
pub(super) fn backward(
    cuda: &Cuda,
    dy: Matrix<Cuda>,
    x: Matrix<Cuda>,
    s: Matrix<Cuda>,
    slices: &[LoraSlice<Cuda>],
    dropout: Option<Dropout>,
    gradients: Option<LoraGradients<Cuda>>,
    ds: MatrixMut<Cuda>,
    dx: MatrixMut<Cuda>,
) -> Result<()> {
    Err(Error::Device("lora::backward is not written yet".into()))
}
