//! Launchers of attention.

use super::Cuda;
use crate::error::{Error, Result};
use crate::ops::*;

#[allow(clippy::too_many_arguments, unused_variables)]
pub(super) fn forward(
    cuda: &Cuda,
    qkv: Matrix<Cuda>,
    segments: &Segments<Cuda>,
    shape: AttentionShape,
    out: MatrixMut<Cuda>,
    log_sum_exp: MatrixMut<Cuda>,
) -> Result<()> {
    Err(Error::Device("attention::forward is not written yet".into()))
}

#[allow(clippy::too_many_arguments, unused_variables)]
pub(super) fn backward(
    cuda: &Cuda,
    d_out: Matrix<Cuda>,
    qkv: Matrix<Cuda>,
    out: Matrix<Cuda>,
    log_sum_exp: Matrix<Cuda>,
    segments: &Segments<Cuda>,
    shape: AttentionShape,
    d_qkv: MatrixMut<Cuda>,
) -> Result<()> {
    Err(Error::Device("attention::backward is not written yet".into()))
}
