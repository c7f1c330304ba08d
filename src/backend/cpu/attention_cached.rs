//! Attention to a cache. One task is one key/value head of one sequence: it gathers the keys and values that its rows see,
//! then takes row after row with the query heads that share them.

use rayon::prelude::*;

use super::Cpu;
use super::attention::probabilities;
use super::product::{Operand, Product, Threads};
use super::view::{floats, floats_mut};
use crate::error::Result;
use crate::ops::{AttentionCached, CachedSegment, CachedSegments, Checked, Execute};

impl Execute<AttentionCached<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<AttentionCached<Cpu>>) -> Result<()> {
        let AttentionCached { qkv, segments, cache, out } = checked.operands();
        let shape = segments.shape;
        let qkv = floats(qkv);
        let cache = floats_mut(cache);
        store(qkv, segments, cache);
        let cache = &*cache;
        let groups = 0..shape.num_key_value_heads;
        let tasks: Vec<_> = segments.host.iter().flat_map(|s| groups.clone().map(move |group| (s, group))).collect();
        let results: Vec<_> =
            tasks.par_iter().map(|&(segment, group)| attend(segments, segment, group, qkv, cache)).collect();
        let out = floats_mut(out);
        let cols = shape.query_cols();
        let width = cols / shape.num_key_value_heads;
        for ((segment, group), result) in tasks.iter().zip(&results) {
            for (from, to) in result.chunks(width).zip(out[segment.start * cols..].chunks_mut(cols)) {
                to[group * width..(group + 1) * width].copy_from_slice(from);
            }
        }
        Ok(())
    }
}

/// A slot holds the end of a qkv row: its keys and values.
fn store(qkv: &[f32], segments: &CachedSegments<Cpu>, cache: &mut [f32]) {
    let cols = segments.shape.qkv_cols();
    let width = 2 * segments.shape.key_value_cols();
    let slots = segments.host.iter().flat_map(|segment| segments.new_slots(segment));
    for (row, &slot) in qkv.chunks(cols).zip(slots) {
        cache[slot as usize * width..][..width].copy_from_slice(&row[cols - width..]);
    }
}

/// Output of one key/value head's query heads, [length, H/G · D].
fn attend(
    segments: &CachedSegments<Cpu>,
    segment: &CachedSegment,
    group: usize,
    qkv: &[f32],
    cache: &[f32],
) -> Vec<f32> {
    let shape = segments.shape;
    let d = segments.shape.head_dim;
    let queries = shape.num_attention_heads / shape.num_key_value_heads;
    let slots = &segments.slots[segment.slots.clone()];
    let before = slots.len() - segment.length;
    let first = shape.visible_keys(before, slots.len()).start;
    let gather = |column: usize| -> Vec<f32> {
        let width = 2 * shape.key_value_cols();
        let mut gathered = Vec::with_capacity((slots.len() - first) * d);
        slots[first..]
            .iter()
            .for_each(|&slot| gathered.extend_from_slice(&cache[slot as usize * width + column..][..d]));
        gathered
    };
    let keys = gather(group * d);
    let values = gather(shape.key_value_cols() + group * d);
    let mut out = vec![0.0; segment.length * queries * d];
    let mut scores = Vec::new();
    for (i, out) in out.chunks_mut(queries * d).enumerate() {
        let visible = shape.visible_keys(before + i, slots.len());
        let count = visible.len();
        let skipped = (visible.start - first) * d;
        scores.resize(queries * count, 0.0);
        let q = Operand::rows(&qkv[(segment.start + i) * shape.qkv_cols() + group * queries * d..], d);
        let k = Operand::rows(&keys[skipped..], d).transposed();
        Product { m: queries, n: count, k: d, a: q, b: k, alpha: 1.0, accumulate: false }.write(
            &mut scores,
            count,
            Threads::This,
        );
        for row in scores.chunks_mut(count) {
            probabilities(row, shape.score_scale());
        }
        let v = Operand::rows(&values[skipped..], d);
        Product { m: queries, n: d, k: count, a: Operand::rows(&scores, count), b: v, alpha: 1.0, accumulate: false }
            .write(out, d, Threads::This);
    }
    out
}
