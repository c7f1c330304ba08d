//! Rotary embedding and causal attention. One task is one key/value head of one sequence, with the query heads that share
//! it, so that every gradient has one writer. Queries go in blocks, so that scores need little memory.

use rayon::prelude::*;

use super::Cpu;
use super::product::{Operand, Product, Threads};
use super::vector::{dot, exp_in_place, maximum, vectorised};
use super::view::{floats, floats_mut, integers, rows_per_task};
use crate::error::Result;
use crate::ops::{AttentionBackward, AttentionForward, AttentionShape, Checked, Execute, Rope, Segment, Segments};

/// Query rows of a block.
const BLOCK: usize = 64;

vectorised! {
    fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
        let (first, second) = head.split_at_mut(cos.len());
        for i in 0..cos.len() {
            let a = first[i];
            let b = second[i];
            first[i] = a * cos[i] - b * (sign * sin[i]);
            second[i] = b * cos[i] + a * (sign * sin[i]);
        }
    }
}

impl Execute<Rope<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<Rope<Cpu>>) -> Result<()> {
        let Rope { qkv, positions, table, shape, inverse } = checked.operands();
        let cols = qkv.cols;
        let half = shape.head_dim / 2;
        let cos = floats(table.cos.view());
        let sin = floats(table.sin.view());
        let positions = integers(positions);
        let sign = if inverse { -1.0 } else { 1.0 };
        let rotated = shape.query_cols() + shape.key_value_cols();
        let rows = rows_per_task(cols);
        floats_mut(qkv).par_chunks_mut(rows * cols).zip(positions.par_chunks(rows)).for_each(|(qkv, positions)| {
            for (row, &position) in qkv.chunks_mut(cols).zip(positions) {
                let angles = position as usize * half..(position as usize + 1) * half;
                for head in row[..rotated].chunks_mut(shape.head_dim) {
                    rotate(head, &cos[angles.clone()], &sin[angles.clone()], sign);
                }
            }
        });
        Ok(())
    }
}

/// One key/value head of one sequence.
#[derive(Clone, Copy)]
struct Task<'a> {
    segment: &'a Segment,
    group: usize,
    shape: AttentionShape,
}

impl<'a> Task<'a> {
    fn all(segments: &'a Segments<Cpu>, shape: AttentionShape) -> Vec<Self> {
        let heads = 0..shape.num_key_value_heads;
        let of = |segment| heads.clone().map(move |group| Self { segment, group, shape });
        segments.host.iter().flat_map(of).collect()
    }

    /// Query heads per key/value head.
    fn queries(&self) -> usize {
        self.shape.num_attention_heads / self.shape.num_key_value_heads
    }

    /// The columns of a qkv row at which the `head`-th query of the group, its key and its value begin.
    fn columns(&self, head: usize) -> (usize, usize, usize) {
        let d = self.shape.head_dim;
        let s = self.shape;
        let key = s.query_cols() + self.group * d;
        ((self.group * self.queries() + head) * d, key, key + s.key_value_cols())
    }

    /// A part of the sequence's rows of a matrix with `stride` columns, from row `row` and column `column` on.
    fn part<'m>(&self, values: &'m [f32], stride: usize, row: usize, column: usize) -> Operand<'m> {
        Operand::rows(&values[(self.segment.start + row) * stride + column..], stride)
    }

    /// Blocks of query rows, each with the range of keys that any of its rows sees.
    fn blocks(self) -> impl Iterator<Item = Block> {
        (0..self.segment.length).step_by(BLOCK).map(move |first| {
            let last = (first + BLOCK).min(self.segment.length) - 1;
            let keys = self.shape.visible_keys(first, self.segment.valid).start
                ..self.shape.visible_keys(last, self.segment.valid).end;
            Block { first, rows: last + 1 - first, keys: keys.start.min(keys.end)..keys.end }
        })
    }
}

struct Block {
    first: usize,
    rows: usize,
    keys: std::ops::Range<usize>,
}

/// Scores of a block against its keys: q kᵀ, [rows, keys].
fn scores(task: &Task, block: &Block, qkv: &[f32], head: usize, scores: &mut [f32]) {
    let cols = task.shape.qkv_cols();
    let width = block.keys.len();
    let (query, key, _) = task.columns(head);
    let q = task.part(qkv, cols, block.first, query);
    let k = task.part(qkv, cols, block.keys.start, key).transposed();
    Product { m: block.rows, n: width, k: task.shape.head_dim, a: q, b: k, alpha: 1.0, accumulate: false }.write(
        scores,
        width,
        Threads::This,
    );
}

/// Output of a task: [length, queries · D] and log-sum-exp [length, queries].
fn forward_task(task: Task, qkv: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let d = task.shape.head_dim;
    let queries = task.queries();
    let length = task.segment.length;
    let mut out = vec![0.0; length * queries * d];
    let mut log_sum_exp = vec![f32::NEG_INFINITY; length * queries];
    let mut buffer = Vec::new();
    for block in task.blocks().filter(|block| !block.keys.is_empty()) {
        let width = block.keys.len();
        buffer.resize(block.rows * width, 0.0);
        for head in 0..queries {
            scores(&task, &block, qkv, head, &mut buffer);
            for (i, row) in buffer.chunks_mut(width).enumerate() {
                log_sum_exp[(block.first + i) * queries + head] = softmax(&task, &block, i, row);
            }
            let (_, _, value) = task.columns(head);
            let v = task.part(qkv, task.shape.qkv_cols(), block.keys.start, value);
            let out = &mut out[block.first * queries * d + head * d..];
            Product {
                m: block.rows,
                n: d,
                k: width,
                a: Operand::rows(&buffer, width),
                b: v,
                alpha: 1.0,
                accumulate: false,
            }
            .write(out, queries * d, Threads::This);
        }
    }
    (out, log_sum_exp)
}

/// Turns row `i` of a block's scores into probabilities, 0 for keys that it does not see; returns the log-sum-exp.
fn softmax(task: &Task, block: &Block, i: usize, row: &mut [f32]) -> f32 {
    let visible = task.shape.visible_keys(block.first + i, task.segment.valid);
    let start = visible.start - block.keys.start;
    let end = visible.end - block.keys.start;
    row[..start].fill(0.0);
    row[end..].fill(0.0);
    match &mut row[start..end] {
        [] => f32::NEG_INFINITY,
        seen => probabilities(seen, task.shape.score_scale()),
    }
}

/// Turns scores, at least one, into the softmax of `scale` times them; returns the log-sum-exp.
pub(super) fn probabilities(scores: &mut [f32], scale: f32) -> f32 {
    let shift = maximum(scores) * scale;
    let sum = exp_in_place(scores, scale, shift);
    let inverse = 1.0 / sum;
    scores.iter_mut().for_each(|p| *p *= inverse);
    shift + sum.ln()
}

impl Execute<AttentionForward<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<AttentionForward<Cpu>>) -> Result<()> {
        let AttentionForward { qkv, segments, shape, out, log_sum_exp } = checked.operands();
        let qkv = floats(qkv);
        let tasks = Task::all(segments, shape);
        let results: Vec<_> = tasks.par_iter().map(|&task| forward_task(task, qkv)).collect();
        let out = floats_mut(out);
        let log_sum_exp = floats_mut(log_sum_exp);
        for (task, (values, sums)) in tasks.iter().zip(&results) {
            let width = task.queries() * shape.head_dim;
            scatter(task, values, width, task.group * width, out, shape.query_cols());
            let heads = task.queries();
            scatter(task, sums, heads, task.group * heads, log_sum_exp, shape.num_attention_heads);
        }
        Ok(())
    }
}

/// Copies [length, width] into the columns from `column` on of the sequence's rows of a matrix with `stride` columns.
fn scatter(task: &Task, from: &[f32], width: usize, column: usize, to: &mut [f32], stride: usize) {
    let rows = to[task.segment.start * stride..].chunks_mut(stride);
    for (from, to) in from.chunks(width).zip(rows) {
        to[column..column + width].copy_from_slice(from);
    }
}

/// What the backward pass reads.
#[derive(Clone, Copy)]
struct Saved<'a> {
    d_out: &'a [f32],
    qkv: &'a [f32],
    out: &'a [f32],
    log_sum_exp: &'a [f32],
}

/// Gradients of a task.
struct TaskGradient {
    /// [length, queries · D].
    d_query: Vec<f32>,
    /// [length, D].
    d_key: Vec<f32>,
    /// [length, D].
    d_value: Vec<f32>,
}

vectorised! {
    /// ds = p · (dp − delta) · scale, in place of dp.
    fn score_gradient(p: &[f32], dp: &mut [f32], delta: f32, scale: f32) {
        for (dp, p) in dp.iter_mut().zip(p) {
            *dp = p * (*dp - delta) * scale;
        }
    }
}

/// P from the scores and log-sum-exp, dP = dO Vᵀ, dS = P ∘ (dP − rowsum(dO ∘ O)); then dV += Pᵀ dO, dQ = dS K,
/// dK += dSᵀ Q.
fn backward_task(task: Task, saved: Saved) -> TaskGradient {
    let d = task.shape.head_dim;
    let queries = task.queries();
    let length = task.segment.length;
    let cols = task.shape.qkv_cols();
    let width = task.shape.query_cols();
    let mut gradient = TaskGradient {
        d_query: vec![0.0; length * queries * d],
        d_key: vec![0.0; length * d],
        d_value: vec![0.0; length * d],
    };
    let mut p = Vec::new();
    let mut dp = Vec::new();
    for block in task.blocks().filter(|block| !block.keys.is_empty()) {
        let keys = block.keys.len();
        p.resize(block.rows * keys, 0.0);
        dp.resize(block.rows * keys, 0.0);
        for head in 0..queries {
            let (query, key, value) = task.columns(head);
            let d_out = task.part(saved.d_out, width, block.first, query);
            let v = task.part(saved.qkv, cols, block.keys.start, value);
            scores(&task, &block, saved.qkv, head, &mut p);
            Product { m: block.rows, n: keys, k: d, a: d_out, b: v.transposed(), alpha: 1.0, accumulate: false }.write(
                &mut dp,
                keys,
                Threads::This,
            );
            for (i, (p, dp)) in p.chunks_mut(keys).zip(dp.chunks_mut(keys)).enumerate() {
                row_gradient(&task, &block, saved, head, i, p, dp);
            }
            let probabilities = Operand::rows(&p, keys);
            let ds = Operand::rows(&dp, keys);
            let at = block.keys.start * d;
            Product {
                m: keys,
                n: d,
                k: block.rows,
                a: probabilities.transposed(),
                b: d_out,
                alpha: 1.0,
                accumulate: true,
            }
            .write(&mut gradient.d_value[at..], d, Threads::This);
            let q = task.part(saved.qkv, cols, block.first, query);
            Product { m: keys, n: d, k: block.rows, a: ds.transposed(), b: q, alpha: 1.0, accumulate: true }.write(
                &mut gradient.d_key[at..],
                d,
                Threads::This,
            );
            let k = task.part(saved.qkv, cols, block.keys.start, key);
            let d_query = &mut gradient.d_query[block.first * queries * d + head * d..];
            Product { m: block.rows, n: d, k: keys, a: ds, b: k, alpha: 1.0, accumulate: false }.write(
                d_query,
                queries * d,
                Threads::This,
            );
        }
    }
    gradient
}

/// Row `i` of a block and a head: scores become probabilities, and dp becomes ds.
fn row_gradient(task: &Task, block: &Block, saved: Saved, head: usize, i: usize, p: &mut [f32], dp: &mut [f32]) {
    let shape = task.shape;
    let d = task.shape.head_dim;
    let visible = shape.visible_keys(block.first + i, task.segment.valid);
    let start = visible.start - block.keys.start;
    let end = visible.end - block.keys.start;
    for row in [&mut *p, &mut *dp] {
        row[..start].fill(0.0);
        row[end..].fill(0.0);
    }
    let row = task.segment.start + block.first + i;
    let (column, _, _) = task.columns(head);
    let place = row * shape.query_cols() + column..row * shape.query_cols() + column + d;
    let delta = dot(&saved.d_out[place.clone()], &saved.out[place]);
    let log_sum_exp = saved.log_sum_exp[row * shape.num_attention_heads + task.group * task.queries() + head];
    let scale = shape.score_scale();
    exp_in_place(&mut p[start..end], scale, log_sum_exp);
    score_gradient(&p[start..end], &mut dp[start..end], delta, scale);
}

impl Execute<AttentionBackward<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<AttentionBackward<Cpu>>) -> Result<()> {
        let AttentionBackward { d_out, qkv, out, log_sum_exp, segments, shape, d_qkv } = checked.operands();
        let saved =
            Saved { d_out: floats(d_out), qkv: floats(qkv), out: floats(out), log_sum_exp: floats(log_sum_exp) };
        let tasks = Task::all(segments, shape);
        let results: Vec<_> = tasks.par_iter().map(|&task| backward_task(task, saved)).collect();
        let d_qkv = floats_mut(d_qkv);
        for (task, gradient) in tasks.iter().zip(&results) {
            let (query, key, value) = task.columns(0);
            let d = shape.head_dim;
            let stride = shape.qkv_cols();
            scatter(task, &gradient.d_query, task.queries() * d, query, d_qkv, stride);
            scatter(task, &gradient.d_key, d, key, d_qkv, stride);
            scatter(task, &gradient.d_value, d, value, d_qkv, stride);
        }
        Ok(())
    }
}
