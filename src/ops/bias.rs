//! The bias of a linear layer.

use super::{Check, DType, Matrix, MatrixMut, Memory, Operation};
use crate::error::Result;

/// y += bias, on every row.
pub struct AddBias<'a, B: Memory> {
    /// [1, out].
    pub bias: Matrix<'a, B>,
    /// [T, out], accumulated.
    pub y: MatrixMut<'a, B>,
}

impl<B: Memory> Operation for AddBias<'_, B> {
    const NAME: &'static str = "add_bias";
    type Output = ();

    fn check(&self, check: &Check) -> Result<()> {
        let Self { bias, y } = self;
        check.elements(y.cols, &[("bias", bias)])?;
        check.stored(check.compute, &[("bias", bias), ("y", y)])
    }
}

/// Gradient of [`AddBias`] with respect to the bias: d_bias += Σ_t dy. The gradient of y passes on unchanged.
pub struct BiasBackward<'a, B: Memory> {
    /// [T, out].
    pub dy: Matrix<'a, B>,
    /// [1, out] f32, accumulated.
    pub d_bias: MatrixMut<'a, B>,
}

impl<B: Memory> Operation for BiasBackward<'_, B> {
    const NAME: &'static str = "bias_backward";
    type Output = ();

    fn check(&self, check: &Check) -> Result<()> {
        let Self { dy, d_bias } = self;
        check.elements(dy.cols, &[("d_bias", d_bias)])?;
        check.stored(check.compute, &[("dy", dy)])?;
        check.stored(DType::F32, &[("d_bias", d_bias)])
    }
}
