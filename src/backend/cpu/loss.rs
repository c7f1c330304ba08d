//! Losses at the head and on hidden states.

use rayon::prelude::*;

use super::Cpu;
use super::product::{Operand, Product, Threads};
use super::vector::{dot, exp_in_place, maximum, sum_of, vectorised};
use super::view::{floats, floats_mut, integers, rows_per_task};
use crate::error::Result;
use crate::ops::{
    Checked, CosineMargin, DistanceKind, Execute, HeadGradients, HeadLoss, HeadTeacher, LossHead, Matrix, MatrixMut,
    RandomMapping, RepresentationDistance,
};

/// Tokens whose logits exist at one time.
pub(crate) const CHUNK: usize = 256;

/// A model's hidden states and its head, with buffers for one chunk of tokens.
struct Logits<'a> {
    /// [T, d].
    states: &'a [f32],
    /// [V, d].
    head: &'a [f32],
    d: usize,
    /// The hidden states of the chunk's tokens, one after another.
    hidden: Vec<f32>,
    /// [tokens of the chunk, V].
    logits: Vec<f32>,
}

impl<'a> Logits<'a> {
    fn new(hidden: Matrix<'a, Cpu>, head: Matrix<'a, Cpu>) -> Self {
        let d = hidden.cols;
        Self { states: floats(hidden), head: floats(head), d, hidden: Vec::new(), logits: Vec::new() }
    }

    /// Computes the logits of these tokens.
    fn compute(&mut self, tokens: &[usize], vocab: usize) {
        let Self { states, head, d, hidden, logits } = self;
        hidden.clear();
        tokens.iter().for_each(|&t| hidden.extend_from_slice(&states[t * *d..][..*d]));
        logits.resize(tokens.len() * vocab, 0.0);
        let x = Operand::rows(hidden, *d);
        let w = Operand::rows(head, *d).transposed();
        Product { m: tokens.len(), n: vocab, k: *d, a: x, b: w, alpha: 1.0, accumulate: false }.write(
            logits,
            vocab,
            Threads::All,
        );
    }
}

impl Execute<LossHead<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<LossHead<Cpu>>) -> Result<()> {
        let LossHead { loss, hidden, head, targets, teacher, weights, values, gradients } = checked.operands();
        let d = hidden.cols;
        let vocab = head.rows;
        let mut student = Logits::new(hidden, head);
        let mut teacher = teacher.map(|HeadTeacher { hidden, head }| Logits::new(hidden, head));
        let targets = integers(targets);
        let weights = floats(weights);
        let values = floats_mut(values);
        values.fill(0.0);
        let (mut d_hidden, mut d_head) = match gradients {
            None => (None, None),
            Some(HeadGradients { d_hidden, d_head }) => (Some(floats_mut(d_hidden)), d_head.map(floats_mut)),
        };
        if let Some(d_hidden) = &mut d_hidden {
            d_hidden.fill(0.0);
        }
        let live: Vec<usize> = (0..weights.len()).filter(|&t| weights[t] != 0.0).collect();
        let mut chunk_gradient = Vec::new();
        for tokens in live.chunks(CHUNK) {
            let n = tokens.len();
            student.compute(tokens, vocab);
            if let Some(teacher) = &mut teacher {
                teacher.compute(tokens, vocab);
            }
            let taught = teacher.as_ref().map(|teacher| teacher.logits.as_slice());
            let rows = rows_per_task(vocab);
            let results: Vec<f32> = student
                .logits
                .par_chunks_mut(rows * vocab)
                .zip(tokens.par_chunks(rows))
                .enumerate()
                .flat_map_iter(|(task, (logits, tokens))| {
                    let row = |(i, (z, &t)): (usize, (&mut [f32], &usize))| {
                        let teacher = taught.map_or(&[][..], |all| &all[(task * rows + i) * vocab..][..vocab]);
                        token(loss, z, Comparison { target: targets[t], teacher }, weights[t])
                    };
                    logits.chunks_mut(vocab).zip(tokens).enumerate().map(row).collect::<Vec<_>>()
                })
                .collect();
            tokens.iter().zip(results).for_each(|(&t, value)| values[t] = value);
            let x = Operand::rows(&student.hidden, d);
            let w = Operand::rows(student.head, d);
            let dz = Operand::rows(&student.logits, vocab);
            if let Some(d_hidden) = &mut d_hidden {
                chunk_gradient.resize(n * d, 0.0);
                Product { m: n, n: d, k: vocab, a: dz, b: w, alpha: 1.0, accumulate: false }.write(
                    &mut chunk_gradient,
                    d,
                    Threads::All,
                );
                let rows = tokens.iter().zip(chunk_gradient.chunks(d));
                rows.for_each(|(&t, row)| d_hidden[t * d..][..d].copy_from_slice(row));
            }
            if let Some(d_head) = &mut d_head {
                Product { m: vocab, n: d, k: n, a: dz.transposed(), b: x, alpha: 1.0, accumulate: true }.write(
                    d_head,
                    d,
                    Threads::All,
                );
            }
        }
        Ok(())
    }
}

/// What a token's logits are compared with.
struct Comparison<'a> {
    target: u32,
    /// The teacher's logits; empty without one.
    teacher: &'a [f32],
}

/// The loss of one token; its logits become weight · their gradient.
fn token(loss: HeadLoss, z: &mut [f32], comparison: Comparison, weight: f32) -> f32 {
    let Comparison { target, teacher } = comparison;
    let largest = maximum(z);
    if !largest.is_finite() || z.iter().any(|x| x.is_nan()) {
        z.fill(f32::NAN);
        return f32::NAN;
    }
    match loss {
        HeadLoss::CrossEntropy => {
            let Some(&logit) = z.get(target as usize) else {
                z.fill(0.0);
                return 0.0;
            };
            let sum = exp_in_place(z, 1.0, largest);
            scale_row(z, weight / sum);
            z[target as usize] -= weight;
            (sum.ln() + largest) - logit
        }
        HeadLoss::NegativeEntropy => negative_entropy(z, largest, weight),
        HeadLoss::TeacherDivergence => teacher_divergence(z, largest, teacher, weight),
    }
}

vectorised! {
    fn scale_row(row: &mut [f32], factor: f32) {
        row.iter_mut().for_each(|x| *x *= factor);
    }
}

/// Σ p log p; z becomes weight · p (log p − Σ p log p).
fn negative_entropy(z: &mut [f32], largest: f32, weight: f32) -> f32 {
    let mut p = z.to_vec();
    let sum = exp_in_place(&mut p, 1.0, largest);
    let log_sum = sum.ln() + largest;
    let value = sum_of(&p, z, |e, z| e * (z - log_sum)) / sum;
    entropy_gradient(z, &p, log_sum, value, weight / sum);
    value
}

vectorised! {
    fn entropy_gradient(z: &mut [f32], p: &[f32], log_sum: f32, value: f32, factor: f32) {
        for (z, e) in z.iter_mut().zip(p) {
            *z = factor * e * ((*z - log_sum) - value);
        }
    }
}

/// Σ q (log q − log p), q of the teacher's logits y; z becomes weight · (p − q).
///
/// Logits are referred to their maxima before they meet, so that logits of 1e4 cost no digits of a small divergence.
fn teacher_divergence(z: &mut [f32], largest: f32, y: &[f32], weight: f32) -> f32 {
    let teacher_largest = maximum(y);
    if !teacher_largest.is_finite() || y.iter().any(|y| y.is_nan()) {
        z.fill(f32::NAN);
        return f32::NAN;
    }
    let mut q = y.to_vec();
    let teacher_sum = exp_in_place(&mut q, 1.0, teacher_largest);
    let differences: Vec<f32> = y.iter().zip(&*z).map(|(y, z)| (y - teacher_largest) - (z - largest)).collect();
    // A token that the teacher gives no probability adds nothing, even where the student gives it none either.
    let product = sum_of(&q, &differences, |q, difference| if q == 0.0 { 0.0 } else { q * difference });
    let sum = exp_in_place(z, 1.0, largest);
    divergence_gradient(z, &q, weight / sum, weight / teacher_sum);
    product / teacher_sum + (sum.ln() - teacher_sum.ln())
}

vectorised! {
    fn divergence_gradient(z: &mut [f32], q: &[f32], factor: f32, teacher_factor: f32) {
        for (z, q) in z.iter_mut().zip(q) {
            *z = factor * *z - teacher_factor * q;
        }
    }
}

/// Rows of (hidden, gradient) with a per-row loss: calls `row(t, hidden, gradient)` and stores its value.
fn hidden_rows(
    hidden: Matrix<Cpu>,
    values: MatrixMut<Cpu>,
    d_hidden: Option<MatrixMut<Cpu>>,
    row: impl Fn(usize, &[f32], Option<&mut [f32]>) -> f32 + Sync,
) {
    let cols = hidden.cols;
    let rows = rows_per_task(hidden.cols);
    let inputs = floats(hidden).par_chunks(rows * cols).zip(floats_mut(values).par_chunks_mut(rows)).enumerate();
    match d_hidden {
        None => inputs.for_each(|(task, (hidden, values))| {
            for (i, (h, value)) in hidden.chunks(cols).zip(values).enumerate() {
                *value = row(task * rows + i, h, None);
            }
        }),
        Some(d_hidden) => {
            let gradients = floats_mut(d_hidden).par_chunks_mut(rows * cols);
            inputs.zip(gradients).for_each(|((task, (hidden, values)), gradient)| {
                let all = hidden.chunks(cols).zip(values).zip(gradient.chunks_mut(cols)).enumerate();
                for (i, ((h, value), g)) in all {
                    *value = row(task * rows + i, h, Some(g));
                }
            });
        }
    }
}

impl Execute<RepresentationDistance<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<RepresentationDistance<Cpu>>) -> Result<()> {
        let RepresentationDistance { kind, hidden, reference, weights, values, d_hidden } = checked.operands();
        let references = Targets::new(reference);
        let weights = floats(weights);
        hidden_rows(hidden, values, d_hidden, |t, h, gradient| {
            let reference = references.of(t);
            let square = sum_of(h, reference, |a, b| (a - b) * (a - b));
            let (distance, factor) = match kind {
                DistanceKind::Euclidean => (square.sqrt(), weights[t] / square.sqrt()),
                DistanceKind::Squared => (square, 2.0 * weights[t]),
            };
            if let Some(gradient) = gradient
                && distance != 0.0
            {
                gradient.iter_mut().zip(h.iter().zip(reference)).for_each(|(g, (a, b))| *g += factor * (a - b));
            }
            distance
        });
        Ok(())
    }
}

/// The states that hidden states are compared with: one for each token, or one for all.
struct Targets<'a> {
    states: &'a [f32],
    cols: usize,
    one: bool,
}

impl<'a> Targets<'a> {
    fn new(matrix: Matrix<'a, Cpu>) -> Self {
        Self { states: floats(matrix), cols: matrix.cols, one: matrix.rows == 1 }
    }

    fn of(&self, token: usize) -> &'a [f32] {
        let row = if self.one { 0 } else { token };
        &self.states[row * self.cols..][..self.cols]
    }
}

/// A cosine, and the two factors of its gradient: along · other − back · h.
struct Cosine {
    value: f32,
    along: f32,
    back: f32,
}

/// The cosine of `h`, whose norm is `norm`, with `other`.
fn cosine(h: &[f32], norm: f32, other: &[f32]) -> Cosine {
    let length = dot(other, other).sqrt().max(LEAST_NORM);
    let value = dot(h, other) / (norm * length);
    Cosine { value, along: 1.0 / (norm * length), back: value / (norm * norm) }
}

impl Execute<CosineMargin<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<CosineMargin<Cpu>>) -> Result<()> {
        let CosineMargin { hidden, away, toward, margin, weights, values, d_hidden } = checked.operands();
        let away = Targets::new(away);
        let toward = toward.map(Targets::new);
        let weights = floats(weights);
        hidden_rows(hidden, values, d_hidden, |t, h, gradient| {
            let norm = dot(h, h).sqrt().max(LEAST_NORM);
            let from = cosine(h, norm, away.of(t));
            let to = toward.as_ref().map(|toward| (toward.of(t), cosine(h, norm, toward.of(t))));
            let value = from.value - to.as_ref().map_or(0.0, |(_, cosine)| cosine.value) + margin;
            // A NaN stays one.
            if value <= 0.0 {
                return 0.0;
            }
            if let Some(gradient) = gradient {
                let mut add = |other: &[f32], cosine: &Cosine, factor: f32| {
                    for ((g, r), h) in gradient.iter_mut().zip(other).zip(h) {
                        *g += factor * (cosine.along * r - cosine.back * h);
                    }
                };
                add(away.of(t), &from, weights[t]);
                if let Some((toward, cosine)) = &to {
                    add(toward, cosine, -weights[t]);
                }
            }
            value
        });
        Ok(())
    }
}

/// The least norm in a cosine, as in PyTorch.
const LEAST_NORM: f32 = 1e-8;

impl Execute<RandomMapping<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<RandomMapping<Cpu>>) -> Result<()> {
        let RandomMapping { hidden, table, ids, weights, values, d_hidden } = checked.operands();
        let cols = hidden.cols;
        let table = floats(table);
        let ids = integers(ids);
        let weights = floats(weights);
        hidden_rows(hidden, values, d_hidden, |t, h, gradient| {
            let direction = &table[ids[t] as usize * cols..][..cols];
            let norm = dot(h, h).sqrt().max(LEAST_NORM);
            let length = dot(direction, direction).sqrt().max(LEAST_NORM);
            let cosine = dot(h, direction) / (norm * length);
            if let Some(gradient) = gradient {
                // d(−|cos|)/dh = −sign(cos) (direction/(‖h‖‖direction‖) − cos · h/‖h‖²).
                let factor = -weights[t] * if cosine == 0.0 { 0.0 } else { cosine.signum() };
                let along = factor / (norm * length);
                let back = factor * cosine / (norm * norm);
                for ((g, r), h) in gradient.iter_mut().zip(direction).zip(h) {
                    *g += along * r - back * h;
                }
            }
            1.0 - cosine.abs()
        });
        Ok(())
    }
}
