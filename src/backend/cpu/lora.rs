//! Low-rank adapters: s = x aᵀ, y += scale · s bᵀ, and their gradients, with dropout on x.

use rayon::prelude::*;

use super::product::{Operand, Product, Threads};
use super::view::{floats, floats_mut};
use super::{Cpu, CpuBuffer};
use crate::error::Result;
use crate::ops::{Checked, Dropout, Execute, LoraBackward, LoraForward, LoraSlice};
use crate::random::philox;

/// x with its dropout mask applied, or x itself.
fn dropped<'a>(x: &'a [f32], dropout: Option<Dropout>, storage: &'a mut Vec<f32>) -> &'a [f32] {
    let Some(dropout) = dropout else { return x };
    storage.extend_from_slice(x);
    apply_mask(dropout, storage);
    storage
}

/// Zeroes the dropped elements and scales the others by 1/(1−p).
fn apply_mask(dropout: Dropout, values: &mut [f32]) {
    let key = [dropout.seed as u32, (dropout.seed >> 32) as u32];
    let limit = (f64::from(dropout.probability) * 4_294_967_296.0) as u32;
    let keep = 1.0 / (1.0 - dropout.probability);
    values.par_chunks_mut(4096).enumerate().for_each(|(chunk, values)| {
        for (i, group) in values.chunks_mut(4).enumerate() {
            let block = (chunk * 1024 + i) as u64;
            let words = philox([block as u32, (block >> 32) as u32, dropout.site, dropout.step], key);
            for (value, word) in group.iter_mut().zip(words) {
                *value *= if word < limit { 0.0 } else { keep };
            }
        }
    });
}

impl Execute<LoraForward<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<LoraForward<Cpu>>) -> Result<()> {
        let LoraForward { x, slices, dropout, s, y } = checked.operands();
        let tokens = x.rows;
        let input = x.cols;
        let ranks = s.cols;
        let out = y.cols;
        let mut storage = Vec::new();
        let x = dropped(floats(x), dropout, &mut storage);
        let s = floats_mut(s);
        let mut first = 0;
        for slice in slices {
            let rank = slice.a.rows;
            let a = Operand::rows(floats(slice.a), input).transposed();
            Product { m: tokens, n: rank, k: input, a: Operand::rows(x, input), b: a, alpha: 1.0, accumulate: false }
                .write(&mut s[first..], ranks, Threads::All);
            first += rank;
        }
        let s = &*s;
        let y = floats_mut(y);
        first = 0;
        for slice in slices {
            let rank = slice.a.rows;
            let low = Operand::rows(&s[first..], ranks);
            let b = Operand::rows(floats(slice.b), rank).transposed();
            Product { m: tokens, n: slice.b.rows, k: rank, a: low, b, alpha: slice.scale, accumulate: true }.write(
                &mut y[slice.start..],
                out,
                Threads::All,
            );
            first += rank;
        }
        Ok(())
    }
}

impl Execute<LoraBackward<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<LoraBackward<Cpu>>) -> Result<()> {
        let LoraBackward { dy, x, s, slices, dropout, gradients, ds, dx } = checked.operands();
        let tokens = x.rows;
        let input = x.cols;
        let ranks = s.cols;
        let out = dy.cols;
        let mut storage = Vec::new();
        let x = dropped(floats(x), dropout, &mut storage);
        let dy = floats(dy);
        let s = floats(s);
        let ds = floats_mut(ds);
        let dx = floats_mut(dx);
        let mut first = 0;
        for slice in slices {
            let rank = slice.a.rows;
            let cols = slice.b.rows;
            let dy = Operand::rows(&dy[slice.start..], out);
            let b = Operand::rows(floats(slice.b), rank);
            Product { m: tokens, n: rank, k: cols, a: dy, b, alpha: slice.scale, accumulate: false }.write(
                &mut ds[first..],
                ranks,
                Threads::All,
            );
            first += rank;
        }
        let low = LowRank { s, ds, dy, x, tokens, ranks, input, out };
        if let Some(gradients) = gradients {
            add_factor_gradients(gradients, slices, &low);
        }
        add_input_gradient(&low, slices, dropout, dx);
        Ok(())
    }
}

struct LowRank<'a> {
    s: &'a [f32],
    ds: &'a [f32],
    dy: &'a [f32],
    x: &'a [f32],
    tokens: usize,
    ranks: usize,
    input: usize,
    out: usize,
}

/// db += scale · dyᵀ s and da += dsᵀ x.
fn add_factor_gradients(buffer: &mut CpuBuffer, slices: &[LoraSlice<Cpu>], low: &LowRank) {
    let gradient = buffer.floats_mut();
    let mut first = 0;
    for slice in slices {
        let rank = slice.a.rows;
        let cols = slice.b.rows;
        let dy = Operand::rows(&low.dy[slice.start..], low.out).transposed();
        let s = Operand::rows(&low.s[first..], low.ranks);
        let db = &mut gradient[slice.b.offset..slice.b.offset + slice.b.len()];
        Product { m: cols, n: rank, k: low.tokens, a: dy, b: s, alpha: slice.scale, accumulate: true }.write(
            db,
            rank,
            Threads::All,
        );
        let ds = Operand::rows(&low.ds[first..], low.ranks).transposed();
        let da = &mut gradient[slice.a.offset..slice.a.offset + slice.a.len()];
        Product {
            m: rank,
            n: low.input,
            k: low.tokens,
            a: ds,
            b: Operand::rows(low.x, low.input),
            alpha: 1.0,
            accumulate: true,
        }
        .write(da, low.input, Threads::All);
        first += rank;
    }
}

/// dx += mask · (ds a).
fn add_input_gradient(low: &LowRank, slices: &[LoraSlice<Cpu>], dropout: Option<Dropout>, dx: &mut [f32]) {
    let mut masked = dropout.map(|_| vec![0.0; dx.len()]);
    let target = masked.as_deref_mut().unwrap_or(dx);
    let mut first = 0;
    for slice in slices {
        let ds = Operand::rows(&low.ds[first..], low.ranks);
        let a = Operand::rows(floats(slice.a), low.input);
        Product { m: low.tokens, n: low.input, k: slice.a.rows, a: ds, b: a, alpha: 1.0, accumulate: true }.write(
            target,
            low.input,
            Threads::All,
        );
        first += slice.a.rows;
    }
    if let (Some(mut masked), Some(dropout)) = (masked, dropout) {
        apply_mask(dropout, &mut masked);
        dx.par_iter_mut().zip(&masked).for_each(|(x, m)| *x += m);
    }
}
