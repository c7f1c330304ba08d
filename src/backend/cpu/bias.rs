//! The bias of a linear layer.

use rayon::prelude::*;

use super::Cpu;
use super::vector::vectorised;
use super::view::{floats, floats_mut, rows_per_task};
use crate::error::Result;
use crate::ops::{AddBias, BiasBackward, Checked, Execute};

vectorised! {
    /// sum += row.
    fn add_row(sum: &mut [f32], row: &[f32]) {
        for (s, r) in sum.iter_mut().zip(row) {
            *s += r;
        }
    }
}

impl Execute<AddBias<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<AddBias<Cpu>>) -> Result<()> {
        let AddBias { bias, y } = checked.operands();
        let cols = y.cols;
        let bias = floats(bias);
        floats_mut(y).par_chunks_mut(rows_per_task(cols) * cols).for_each(|rows| {
            rows.chunks_mut(cols).for_each(|row| add_row(row, bias));
        });
        Ok(())
    }
}

impl Execute<BiasBackward<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<BiasBackward<Cpu>>) -> Result<()> {
        let BiasBackward { dy, d_bias } = checked.operands();
        let cols = dy.cols;
        let sum_of_task = |rows: &[f32]| {
            let mut sum = vec![0.0; cols];
            rows.chunks(cols).for_each(|row| add_row(&mut sum, row));
            sum
        };
        let sums: Vec<Vec<f32>> = floats(dy).par_chunks(rows_per_task(cols) * cols).map(sum_of_task).collect();
        let d_bias = floats_mut(d_bias);
        sums.iter().for_each(|sum| add_row(d_bias, sum));
        Ok(())
    }
}
