//! Linear layers: y = x wᵀ and its two gradients.

use super::Cpu;
use super::product::{Operand, Product, Threads};
use super::view::{floats, floats_mut};
use crate::error::Result;
use crate::ops::{Checked, Execute, LinearBackwardInput, LinearBackwardWeight, LinearForward};

impl Execute<LinearForward<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<LinearForward<Cpu>>) -> Result<()> {
        let LinearForward { x, w, y } = checked.operands();
        let a = Operand::rows(floats(x), x.cols);
        let b = Operand::rows(floats(w), w.cols).transposed();
        Product { m: x.rows, n: w.rows, k: x.cols, a, b, alpha: 1.0, accumulate: false }.write(
            floats_mut(y),
            w.rows,
            Threads::All,
        );
        Ok(())
    }
}

impl Execute<LinearBackwardInput<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<LinearBackwardInput<Cpu>>) -> Result<()> {
        let LinearBackwardInput { dy, w, dx, accumulate } = checked.operands();
        let a = Operand::rows(floats(dy), dy.cols);
        let b = Operand::rows(floats(w), w.cols);
        Product { m: dy.rows, n: w.cols, k: dy.cols, a, b, alpha: 1.0, accumulate }.write(
            floats_mut(dx),
            w.cols,
            Threads::All,
        );
        Ok(())
    }
}

impl Execute<LinearBackwardWeight<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<LinearBackwardWeight<Cpu>>) -> Result<()> {
        let LinearBackwardWeight { dy, x, dw } = checked.operands();
        let a = Operand::rows(floats(dy), dy.cols).transposed();
        let b = Operand::rows(floats(x), x.cols);
        Product { m: dy.cols, n: x.cols, k: dy.rows, a, b, alpha: 1.0, accumulate: true }.write(
            floats_mut(dw),
            x.cols,
            Threads::All,
        );
        Ok(())
    }
}
