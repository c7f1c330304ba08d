//! Launcher of attention to a cache (`kernels/attention_cached.cu`).

use super::attention::check_head_dim;
use super::element::{ROW_THREADS, flag, row_threads, row_width, size};
use super::{Cuda, Place, sizes};
use crate::error::Result;
use crate::ops::{AttentionCached, Checked, Execute};

impl Execute<AttentionCached<'_, Cuda>> for Cuda {
    fn execute(&self, checked: Checked<AttentionCached<Cuda>>) -> Result<()> {
        const NAME: &str = "attention_cached";
        let AttentionCached { qkv, segments, cache, out } = checked.operands();
        let shape = segments.shape;
        check_head_dim(shape.head_dim)?;
        let rows = segments.device_rows.view();
        let slots = segments.device_slots.view();
        if qkv.is_empty() {
            return Ok(());
        }
        let tail = 2 * shape.key_value_cols();
        // Rows of both matrices and the tail of a qkv row have to consist of vectors.
        let vector = row_width(qkv.dtype(), shape.query_cols(), &[]).min(row_width(
            qkv.dtype(),
            tail,
            &[qkv.address(), cache.address()],
        ));
        let arguments = [
            qkv.pointer(),
            rows.pointer(),
            cache.pointer(),
            size(NAME, shape.query_cols())?.into(),
            size(NAME, tail)?.into(),
            flag(vector > 1),
        ];
        let threads = row_threads(tail / vector, ROW_THREADS);
        self.launch(&self.kernel("attention_cached_store"), [size(NAME, qkv.rows)?, 1, 1], threads, 0, &arguments)?;
        let arguments = [
            qkv.pointer(),
            cache.pointer(),
            out.pointer(),
            rows.pointer(),
            slots.pointer(),
            size(NAME, shape.num_attention_heads)?.into(),
            size(NAME, shape.num_key_value_heads)?.into(),
            size(NAME, shape.head_dim)?.into(),
            shape.score_scale().into(),
        ];
        let blocks = size(NAME, qkv.rows * shape.num_attention_heads)?;
        let threads = 32 * sizes::ATTENTION_CACHED_WARPS as u32;
        let shared_bytes = sizes::attention_cached_bytes(shape.head_dim);
        self.launch(&self.kernel("attention_cached_forward"), [blocks, 1, 1], threads, shared_bytes, &arguments)
    }
}
