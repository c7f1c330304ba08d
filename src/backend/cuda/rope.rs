//! Launcher of the rotary position embedding (`kernels/rope.cu`).

use super::element::{ROW_THREADS, flag, row_width, size};
use super::{Cuda, Place};
use crate::error::Result;
use crate::ops::{Checked, Execute, Rope};

impl Execute<Rope<'_, Cuda>> for Cuda {
    fn execute(&self, checked: Checked<Rope<Cuda>>) -> Result<()> {
        const NAME: &str = "rope";
        let Rope { qkv, positions, table, shape, inverse } = checked.operands();
        let cos = table.cos.view();
        let sin = table.sin.view();
        if qkv.is_empty() {
            return Ok(());
        }
        let half = shape.head_dim / 2;
        let heads = shape.num_attention_heads + shape.num_key_value_heads;
        // Heads start at multiples of two halves, so vectors fit a half only if they fit a head and a row too.
        let width = row_width(qkv.dtype(), half, &[qkv.address(), cos.address(), sin.address()]);
        // The work of a token in passes of equal size.
        let work = heads * (half / width);
        let passes = work.div_ceil(ROW_THREADS as usize).max(1);
        let threads = work.div_ceil(passes).max(half / width).next_multiple_of(32).min(ROW_THREADS as usize) as u32;
        let arguments = [
            qkv.pointer(),
            positions.pointer(),
            cos.pointer(),
            sin.pointer(),
            size(NAME, qkv.cols)?.into(),
            size(NAME, heads)?.into(),
            size(NAME, half)?.into(),
            (if inverse { -1.0 } else { 1.0f32 }).into(),
            flag(width > 1),
        ];
        self.launch(&self.kernel(NAME), [size(NAME, qkv.rows)?, 1, 1], threads, 0, &arguments)
    }
}
