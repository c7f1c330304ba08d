//! Launchers of the losses on hidden states.

use super::Cuda;
use crate::error::{Error, Result};
use crate::ops::*;

#[allow(clippy::too_many_arguments, unused_variables)]
pub(super) fn representation_distance(
    cuda: &Cuda,
    hidden: Matrix<Cuda>,
    reference: Matrix<Cuda>,
    weights: Matrix<Cuda>,
    values: MatrixMut<Cuda>,
    d_hidden: Option<MatrixMut<Cuda>>,
) -> Result<()> {
    Err(Error::Device("hidden::representation_distance is not written yet".into()))
}

#[allow(clippy::too_many_arguments, unused_variables)]
pub(super) fn random_mapping(
    cuda: &Cuda,
    hidden: Matrix<Cuda>,
    table: Matrix<Cuda>,
    ids: Matrix<Cuda>,
    weights: Matrix<Cuda>,
    values: MatrixMut<Cuda>,
    d_hidden: Option<MatrixMut<Cuda>>,
) -> Result<()> {
    Err(Error::Device("hidden::random_mapping is not written yet".into()))
}
