//! Launchers of the loss head.

use super::Cuda;
use crate::error::{Error, Result};
use crate::ops::*;

#[allow(clippy::too_many_arguments, unused_variables)]
pub(super) fn loss_head(
    cuda: &Cuda,
    loss: HeadLoss,
    hidden: Matrix<Cuda>,
    head: Matrix<Cuda>,
    targets: Matrix<Cuda>,
    weights: Matrix<Cuda>,
    values: MatrixMut<Cuda>,
    gradients: Option<HeadGradients<Cuda>>,
) -> Result<()> {
    Err(Error::Device("loss_head::loss_head is not written yet".into()))
}
