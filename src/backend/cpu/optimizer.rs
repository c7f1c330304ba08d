//! The element-wise update rules of the optimizers, in f32 and as close to PyTorch's order of operations as one division
//! an element allows.
//!
//! Every element is computed from its own operands alone, so results depend on no chunk and no thread.

use rayon::prelude::*;

use super::{Cpu, CpuBuffer};
use crate::error::{Error, Result};
use crate::ops::{COEFFICIENTS, Matrix, MatrixMut, StateRounding, UpdateRule};

/// Elements of one task: its four arrays of 64 KiB fit a second-level cache, and a task outlasts its scheduling.
const CHUNK: usize = 1 << 14;

/// Applies `rule`; see [`crate::ops::optimizer_update`], which has checked the lengths.
pub(super) fn update(
    rule: UpdateRule,
    coefficients: Matrix<Cpu>,
    weights: MatrixMut<Cpu>,
    remainder: Option<MatrixMut<Cpu>>,
    gradients: Matrix<Cpu>,
    states: &mut [MatrixMut<Cpu>],
    rounding: Option<StateRounding<Cpu>>,
) -> Result<()> {
    if rounding.is_some() {
        return Err(Error::Device("optimizer_update: the CPU keeps every state in f32".into()));
    }
    if remainder.is_some() {
        return Err(Error::Device("optimizer_update: f32 weights have no remainder".into()));
    }
    let mut c = [0.0; COEFFICIENTS];
    c.copy_from_slice(elements(&coefficients));
    let (w, g) = (elements_mut(weights.buffer, weights.offset, weights.rows * weights.cols), elements(&gradients));
    match states {
        [s] => {
            let s = elements_mut(s.buffer, s.offset, s.rows * s.cols);
            match rule {
                UpdateRule::Sgd => one_state(w, g, s, sgd(c)),
                UpdateRule::Adagrad => one_state(w, g, s, adagrad(c)),
                _ => return Err(wrong_states(rule, 1)),
            }
        }
        [s0, s1] => {
            let s0 = elements_mut(s0.buffer, s0.offset, s0.rows * s0.cols);
            let s1 = elements_mut(s1.buffer, s1.offset, s1.rows * s1.cols);
            match rule {
                UpdateRule::Adam => two_states(w, g, s0, s1, adam(c)),
                UpdateRule::Adadelta => two_states(w, g, s0, s1, adadelta(c)),
                UpdateRule::NAdam => two_states(w, g, s0, s1, nadam(c)),
                UpdateRule::RAdam => two_states(w, g, s0, s1, radam(c)),
                UpdateRule::ScheduleFreeAdamW => two_states(w, g, s0, s1, schedule_free(c)),
                UpdateRule::Sgd | UpdateRule::Adagrad => return Err(wrong_states(rule, 2)),
            }
        }
        _ => return Err(wrong_states(rule, states.len())),
    }
    Ok(())
}

fn wrong_states(rule: UpdateRule, found: usize) -> Error {
    Error::Shape { operation: "optimizer_update", problem: format!("{rule:?} does not have {found} states") }
}

fn elements<'a>(matrix: &Matrix<'a, Cpu>) -> &'a [f32] {
    &matrix.buffer.floats()[matrix.offset..matrix.offset + matrix.len()]
}

fn elements_mut(buffer: &mut CpuBuffer, offset: usize, len: usize) -> &mut [f32] {
    &mut buffer.floats_mut()[offset..offset + len]
}

/// `rule`(w, g, s) for every element.
fn one_state(w: &mut [f32], g: &[f32], s: &mut [f32], rule: impl Fn(&mut f32, f32, &mut f32) + Sync) {
    let chunks = w.par_chunks_mut(CHUNK).zip(g.par_chunks(CHUNK)).zip(s.par_chunks_mut(CHUNK));
    chunks.for_each(|((w, g), s)| {
        for ((w, g), s) in w.iter_mut().zip(g).zip(s) {
            rule(w, *g, s);
        }
    });
}

/// `rule`(w, g, s0, s1) for every element.
fn two_states(
    w: &mut [f32],
    g: &[f32],
    s0: &mut [f32],
    s1: &mut [f32],
    rule: impl Fn(&mut f32, f32, &mut f32, &mut f32) + Sync,
) {
    let states = s0.par_chunks_mut(CHUNK).zip(s1.par_chunks_mut(CHUNK));
    w.par_chunks_mut(CHUNK).zip(g.par_chunks(CHUNK)).zip(states).for_each(|((w, g), (s0, s1))| {
        for ((w, g), (s0, s1)) in w.iter_mut().zip(g).zip(s0.iter_mut().zip(s1)) {
            rule(w, *g, s0, s1);
        }
    });
}

/// The moments of the Adam family: s0 += (1−β1)·(g − s0), s1 = β2·s1 + (1−β2)·g².
#[inline(always)]
fn moments([rest1, beta2, rest2]: [f32; 3], g: f32, s0: &mut f32, s1: &mut f32) {
    *s0 += rest1 * (g - *s0);
    *s1 = *s1 * beta2 + rest2 * g * g;
}

fn adam(c: [f32; COEFFICIENTS]) -> impl Fn(&mut f32, f32, &mut f32, &mut f32) + Sync {
    let [rest1, beta2, rest2, epsilon, decay, coupled, lr, correction, _] = c;
    move |w, g, s0, s1| {
        *w -= decay * *w;
        moments([rest1, beta2, rest2], g + coupled * *w, s0, s1);
        *w -= lr * *s0 / (s1.sqrt() * correction + epsilon);
    }
}

fn sgd(c: [f32; COEFFICIENTS]) -> impl Fn(&mut f32, f32, &mut f32) + Sync {
    let [lr, momentum, coupled, nesterov, first, ..] = c;
    move |w, g, s| {
        let g = g + coupled * *w;
        *s = if first != 0.0 { g } else { *s * momentum + g };
        *w -= lr * if nesterov != 0.0 { g + momentum * *s } else { *s };
    }
}

fn adagrad(c: [f32; COEFFICIENTS]) -> impl Fn(&mut f32, f32, &mut f32) + Sync {
    let [lr, epsilon, coupled, ..] = c;
    move |w, g, s| {
        let g = g + coupled * *w;
        *s += g * g;
        *w -= lr * g / (s.sqrt() + epsilon);
    }
}

fn adadelta(c: [f32; COEFFICIENTS]) -> impl Fn(&mut f32, f32, &mut f32, &mut f32) + Sync {
    let [lr, rho, rest, epsilon, coupled, ..] = c;
    move |w, g, s0, s1| {
        let g = g + coupled * *w;
        *s0 = *s0 * rho + rest * g * g;
        let u = (*s1 + epsilon).sqrt() / (*s0 + epsilon).sqrt() * g;
        *s1 = *s1 * rho + rest * u * u;
        *w -= lr * u;
    }
}

fn nadam(c: [f32; COEFFICIENTS]) -> impl Fn(&mut f32, f32, &mut f32, &mut f32) + Sync {
    let [rest1, beta2, rest2, epsilon, coupled, correction, lr_gradient, lr_moment, _] = c;
    move |w, g, s0, s1| {
        let g = g + coupled * *w;
        moments([rest1, beta2, rest2], g, s0, s1);
        *w -= (lr_gradient * g + lr_moment * *s0) / ((*s1 * correction).sqrt() + epsilon);
    }
}

fn radam(c: [f32; COEFFICIENTS]) -> impl Fn(&mut f32, f32, &mut f32, &mut f32) + Sync {
    let [rest1, beta2, rest2, epsilon, coupled, rectified, plain, ..] = c;
    move |w, g, s0, s1| {
        moments([rest1, beta2, rest2], g + coupled * *w, s0, s1);
        *w -= if plain == 0.0 { rectified * *s0 / (s1.sqrt() + epsilon) } else { plain * *s0 };
    }
}

fn schedule_free(c: [f32; COEFFICIENTS]) -> impl Fn(&mut f32, f32, &mut f32, &mut f32) + Sync {
    let [beta2, rest2, epsilon, decay, average, lr, lr_point, correction, first] = c;
    move |w, g, z, v| {
        let start = if first != 0.0 { *w } else { *z };
        *v = *v * beta2 + rest2 * g * g;
        let n = g / ((*v * correction).sqrt() + epsilon) + decay * *w;
        let way = start - *w;
        // Two forms, as PyTorch's lerp: each is exact at its end.
        let between = if average < 0.5 { *w + average * way } else { start - (1.0 - average) * way };
        *w = between + lr_point * n;
        *z = start - lr * n;
    }
}
