//! Attention to a cache.

use super::{Case, shapes};
use crate::error::Result;
use crate::ops::{self, AttentionShape, Backend, CachedSegments};
use crate::selftest::compare::{EXACT, summed};
use crate::selftest::reference;
use crate::selftest::trial::Trial;

/// Sequences as (tokens before, new rows), heads as (H, G, D), and the window.
#[derive(Clone, Copy)]
struct Shape {
    sequences: &'static [(usize, usize)],
    heads: (usize, usize, usize),
    window: Option<usize>,
}

const fn shape(sequences: &'static [(usize, usize)], heads: (usize, usize, usize)) -> Shape {
    Shape { sequences, heads, window: None }
}

/// First tokens, single new rows after few and many, pieces of prompts, windows, head sizes that are no multiple of a vector.
const SMALL: [Shape; 4] = [
    shape(&[(0, 1), (130, 1), (31, 1), (5, 40)], (4, 2, 64)),
    shape(&[(260, 2)], (2, 1, 128)),
    Shape { window: Some(17), ..shape(&[(40, 3), (3, 30)], (3, 3, 24)) },
    shape(&[(9, 9)], (2, 1, 7)),
];
const REAL: [Shape; 2] = [
    shape(&[(2047, 1), (1500, 1), (33, 1), (700, 64)], (32, 8, 128)),
    Shape { window: Some(300), ..shape(&[(1023, 1), (200, 200)], (32, 8, 64)) },
];

pub(super) fn cases(full: bool) -> Vec<Case> {
    let case = |shape: Shape| {
        let (heads, groups, size) = shape.heads;
        let lengths: Vec<String> = shape.sequences.iter().map(|(before, new)| format!("{before}+{new}")).collect();
        let window = shape.window.map_or(String::new(), |window| format!(", window {window}"));
        let text = format!("{} x {heads}/{groups} x {size}{window}", lengths.join(", "));
        Case::new("attention_cached", text, move |trial| attention(trial, shape))
    };
    shapes(full, &SMALL, &REAL).into_iter().map(case).collect()
}

/// Every second slot is in use, the last one first.
fn attention(trial: &mut Trial, shape: Shape) -> Result<()> {
    let cuda = trial.cuda();
    let dtype = trial.compute();
    let (num_attention_heads, num_key_value_heads, head_dim) = shape.heads;
    let heads = AttentionShape { num_attention_heads, num_key_value_heads, head_dim, sliding_window: shape.window };
    let total: usize = shape.sequences.iter().map(|(before, new)| before + new).sum();
    let slots: Vec<u32> = (0..total as u32).rev().map(|i| 2 * i).collect();
    let (mut table, mut rest): (Vec<(usize, &[u32])>, &[u32]) = (Vec::new(), &slots);
    for &(before, new) in shape.sequences {
        let (own, others) = rest.split_at(before + new);
        table.push((new, own));
        rest = others;
    }
    let segments = CachedSegments::new(cuda, heads, &table)?;
    let qkv = trial.normal(segments.tokens(), heads.qkv_cols(), 1.0)?;
    let cache = trial.starting(dtype, 2 * total, 2 * heads.key_value_cols(), 1.0);
    let out = trial.poisoned(dtype, segments.tokens(), heads.query_cols());
    let [stored, found] = trial.launch([&cache, &out], |[cache, out]| {
        cuda.run(ops::AttentionCached {
            qkv: qkv.tensor.view(),
            segments: &segments,
            cache: cache.view_mut(),
            out: out.view_mut(),
        })
    })?;
    let formula = reference::CachedAttention {
        qkv: &qkv,
        cache: cache.start(),
        segments: &segments.host,
        slots: &segments.slots,
        shape: heads,
    };
    trial.check("cache", &stored, EXACT, formula.stored());
    trial.check("out", &found, summed(dtype, total), formula.forward());
    Ok(())
}
