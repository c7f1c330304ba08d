//! Launchers of the optimizers.

use super::Cuda;
use crate::error::{Error, Result};
use crate::ops::*;

#[allow(clippy::too_many_arguments, unused_variables)]
pub(super) fn update(
    cuda: &Cuda,
    rule: UpdateRule,
    coefficients: Matrix<Cuda>,
    weights: MatrixMut<Cuda>,
    remainder: Option<MatrixMut<Cuda>>,
    gradients: Matrix<Cuda>,
    states: &mut [MatrixMut<Cuda>],
) -> Result<()> {
    Err(Error::Device("optimizer::update is not written yet".into()))
}
