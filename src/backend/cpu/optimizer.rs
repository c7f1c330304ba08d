//! The element-wise update rules of the optimizers, in f32 and as close to PyTorch's order of operations as one division
//! an element allows.
//!
//! Every element is computed from its own operands alone, so results depend on no chunk and no thread.

use rayon::prelude::*;

use super::Cpu;
use super::view::{floats, floats_mut};
use crate::error::Result;
use crate::ops::{COEFFICIENTS, Checked, Execute, OptimizerUpdate, UpdateRule};

/// Elements of one task: its four arrays of 64 KiB fit a second-level cache, and a task outlasts its scheduling.
const CHUNK: usize = 1 << 14;

impl Execute<OptimizerUpdate<'_, Cpu>> for Cpu {
    /// Weights are f32 here, so the check has refused a remainder and rounding.
    fn execute(&self, checked: Checked<OptimizerUpdate<Cpu>>) -> Result<()> {
        let OptimizerUpdate { rule, coefficients, weights, gradients, states, .. } = checked.operands();
        let mut c = [0.0; COEFFICIENTS];
        c.copy_from_slice(floats(coefficients));
        let w = floats_mut(weights);
        let g = floats(gradients);
        let mut states = states.into_iter().map(floats_mut);
        let mut state = || states.next().unwrap_or_default();
        match rule {
            UpdateRule::Sgd => one_state(w, g, state(), sgd(c)),
            UpdateRule::Adagrad => one_state(w, g, state(), adagrad(c)),
            UpdateRule::Adam => two_states(w, g, state(), state(), adam(c)),
            UpdateRule::Adadelta => two_states(w, g, state(), state(), adadelta(c)),
            UpdateRule::NAdam => two_states(w, g, state(), state(), nadam(c)),
            UpdateRule::RAdam => two_states(w, g, state(), state(), radam(c)),
            UpdateRule::ScheduleFreeAdamW => two_states(w, g, state(), state(), schedule_free(c)),
        }
        Ok(())
    }
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
