//! Losses at the head, on hidden states, and of preferences.

use rayon::prelude::*;

use super::{Numbers, dot, sigmoid};
use crate::ops::{DistanceKind, HeadLoss, IGNORE_INDEX, Segment};

/// Tokens whose logits are held at once.
const TOKENS: usize = 64;
/// Rows of the head that a task takes.
const HEAD_ROWS: usize = 256;

/// The operands of the loss head.
pub struct Head<'a> {
    pub loss: HeadLoss,
    pub hidden: &'a dyn Numbers,
    pub head: &'a dyn Numbers,
    pub targets: &'a [u32],
    /// For the divergence from a teacher.
    pub teacher: Option<Taught<'a>>,
    pub weights: &'a dyn Numbers,
}

/// A teacher's hidden states and its head.
pub struct Taught<'a> {
    pub hidden: &'a dyn Numbers,
    pub head: &'a dyn Numbers,
}

/// What the loss head gives.
pub struct HeadResults {
    /// Of every token.
    pub values: Vec<f64>,
    /// Of the tokens asked for.
    pub d_hidden: Vec<Vec<f64>>,
    /// Of the rows asked for, without what the gradient starts from.
    pub d_head: Vec<Vec<f64>>,
}

impl Head<'_> {
    /// Values of all tokens, and gradients of some rows of hidden states and head.
    pub fn run(&self, hidden_rows: &[usize], head_rows: &[usize]) -> HeadResults {
        let d = self.hidden.cols();
        let mut results = HeadResults {
            values: vec![0.0; self.hidden.rows()],
            d_hidden: vec![vec![0.0; d]; hidden_rows.len()],
            d_head: vec![vec![0.0; d]; head_rows.len()],
        };
        let live: Vec<usize> = (0..self.hidden.rows()).filter(|&t| self.weights.at(t, 0) != 0.0).collect();
        for tokens in live.chunks(TOKENS) {
            let hidden: Vec<Vec<f64>> = tokens.iter().map(|&t| self.hidden.row(t)).collect();
            // Logits at first.
            let mut gradients = logits(self.head, &hidden);
            let taught = match &self.teacher {
                Some(teacher) => {
                    let states: Vec<Vec<f64>> = tokens.iter().map(|&t| teacher.hidden.row(t)).collect();
                    logits(teacher.head, &states)
                }
                None => vec![Vec::new(); tokens.len()],
            };
            let rows = tokens.par_iter().zip(&mut gradients).zip(&taught);
            let values: Vec<f64> = rows.map(|((&token, z), teacher)| self.token(token, z, teacher)).collect();
            tokens.iter().zip(values).for_each(|(&token, value)| results.values[token] = value);
            self.add_d_hidden(tokens, &gradients, hidden_rows, &mut results.d_hidden);
            for (row, sum) in head_rows.iter().zip(&mut results.d_head) {
                for (z, h) in gradients.iter().zip(&hidden) {
                    sum.iter_mut().zip(h).for_each(|(sum, h)| *sum += z[*row] * h);
                }
            }
        }
        results
    }

    /// The value of a token; its logits become weight · their gradient.
    fn token(&self, token: usize, z: &mut [f64], teacher: &[f64]) -> f64 {
        let log_sum = log_of_exponentials(z);
        let weight = self.weights.at(token, 0);
        match self.loss {
            HeadLoss::CrossEntropy => {
                let target = self.targets[token];
                if target == IGNORE_INDEX {
                    z.fill(0.0);
                    return 0.0;
                }
                let value = log_sum - z[target as usize];
                z.iter_mut().for_each(|z| *z = weight * (*z - log_sum).exp());
                z[target as usize] -= weight;
                value
            }
            HeadLoss::NegativeEntropy => {
                let value: f64 = z.iter().map(|z| (z - log_sum).exp() * (z - log_sum)).sum();
                z.iter_mut().for_each(|z| *z = weight * (*z - log_sum).exp() * (*z - log_sum - value));
                value
            }
            HeadLoss::TeacherDivergence => {
                let teacher_log_sum = log_of_exponentials(teacher);
                let mut value = 0.0;
                for (z, y) in z.iter_mut().zip(teacher) {
                    let log_q = y - teacher_log_sum;
                    let log_p = *z - log_sum;
                    value += log_q.exp() * (log_q - log_p);
                    *z = weight * (log_p.exp() - log_q.exp());
                }
                value
            }
        }
    }

    /// d_hidden = dz head, for the wanted tokens among `tokens`.
    fn add_d_hidden(&self, tokens: &[usize], dz: &[Vec<f64>], wanted: &[usize], sums: &mut [Vec<f64>]) {
        let chosen: Vec<(usize, &Vec<f64>)> = tokens
            .iter()
            .zip(dz)
            .filter_map(|(token, dz)| wanted.binary_search(token).ok().map(|place| (place, dz)))
            .collect();
        let d = self.hidden.cols();
        let zeros = || vec![vec![0.0; d]; chosen.len()];
        let total = (0..self.head.rows()).into_par_iter().with_min_len(HEAD_ROWS).fold(zeros, |mut sums, v| {
            let head = self.head.row(v);
            for (sum, (_, dz)) in sums.iter_mut().zip(&chosen) {
                sum.iter_mut().zip(&head).for_each(|(sum, head)| *sum += dz[v] * head);
            }
            sums
        });
        let total = total.reduce(zeros, |mut a, b| {
            a.iter_mut().flatten().zip(b.into_iter().flatten()).for_each(|(a, b)| *a += b);
            a
        });
        for ((place, _), total) in chosen.iter().zip(total) {
            sums[*place] = total;
        }
    }
}

/// Rows of logits, one a token.
fn logits(head: &dyn Numbers, hidden: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let parts: Vec<Vec<f64>> = (0..head.rows())
        .into_par_iter()
        .with_min_len(HEAD_ROWS)
        .map(|v| {
            let row = head.row(v);
            hidden.iter().map(|h| dot(h, &row)).collect()
        })
        .collect();
    (0..hidden.len()).map(|token| parts.iter().map(|part| part[token]).collect()).collect()
}

/// log Σ eᶻ.
fn log_of_exponentials(z: &[f64]) -> f64 {
    let largest = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    largest + z.iter().map(|z| (z - largest).exp()).sum::<f64>().ln()
}

/// The state that `row` is compared with: its own, or the one for all.
fn target(states: &dyn Numbers, row: usize) -> Vec<f64> {
    states.row(if states.rows() == 1 { 0 } else { row })
}

/// ‖hidden − reference‖ of one row, or its square, with the difference.
pub fn distance(kind: DistanceKind, hidden: &dyn Numbers, reference: &dyn Numbers, row: usize) -> (f64, Vec<f64>) {
    let difference: Vec<f64> = hidden.row(row).iter().zip(target(reference, row)).map(|(a, b)| a - b).collect();
    let square = dot(&difference, &difference);
    (if kind == DistanceKind::Squared { square } else { square.sqrt() }, difference)
}

/// start + weight · (hidden − reference) / distance, or · 2 (hidden − reference) for the square.
pub fn distance_gradient(
    kind: DistanceKind,
    hidden: &dyn Numbers,
    reference: &dyn Numbers,
    weights: &dyn Numbers,
    start: &dyn Numbers,
) -> impl Fn(usize, &[usize]) -> Vec<f64> {
    move |row, cols| {
        let (distance, difference) = distance(kind, hidden, reference, row);
        let slope = match kind {
            DistanceKind::Squared => 2.0,
            DistanceKind::Euclidean if distance == 0.0 => 0.0,
            DistanceKind::Euclidean => 1.0 / distance,
        };
        let factor = weights.at(row, 0) * slope;
        cols.iter().map(|&col| start.at(row, col) + factor * difference[col]).collect()
    }
}

/// The cosine of a hidden state and its direction, with both norms.
fn cosine(h: &[f64], direction: &[f64]) -> (f64, f64, f64) {
    let norm = dot(h, h).sqrt().max(1e-8);
    let length = dot(direction, direction).sqrt().max(1e-8);
    (dot(h, direction) / (norm * length), norm, length)
}

/// The operands of a margin between cosines.
pub struct CosineStates<'a> {
    pub hidden: &'a dyn Numbers,
    pub away: &'a dyn Numbers,
    pub toward: Option<&'a dyn Numbers>,
    pub margin: f64,
}

impl CosineStates<'_> {
    /// max(0, cos(hidden, away) − cos(hidden, toward) + margin), and its gradient at the columns asked for.
    pub fn of(&self, row: usize, cols: &[usize]) -> (f64, Vec<f64>) {
        let h = self.hidden.row(row);
        let mut value = self.margin;
        let mut gradient = vec![0.0; cols.len()];
        for (states, sign) in [(Some(self.away), 1.0), (self.toward, -1.0)] {
            let Some(states) = states else { continue };
            let direction = target(states, row);
            let (cosine, norm, length) = cosine(&h, &direction);
            value += sign * cosine;
            for (sum, &col) in gradient.iter_mut().zip(cols) {
                *sum += sign * (direction[col] / (norm * length) - cosine * h[col] / (norm * norm));
            }
        }
        if value > 0.0 { (value, gradient) } else { (0.0, vec![0.0; cols.len()]) }
    }
}

/// 1 − |cos|.
pub fn mapping_value(hidden: &dyn Numbers, table: &dyn Numbers, ids: &[u32], row: usize) -> f64 {
    1.0 - cosine(&hidden.row(row), &table.row(ids[row] as usize)).0.abs()
}

/// start − weight · sign(cos) · d cos / d hidden.
pub fn mapping_gradient(
    hidden: &dyn Numbers,
    table: &dyn Numbers,
    ids: &[u32],
    weights: &dyn Numbers,
    start: &dyn Numbers,
) -> impl Fn(usize, &[usize]) -> Vec<f64> {
    move |row, cols| {
        let h = hidden.row(row);
        let direction = table.row(ids[row] as usize);
        let (cosine, norm, length) = cosine(&h, &direction);
        let sign = if cosine == 0.0 { 0.0 } else { cosine.signum() };
        let gradient = |col: usize| direction[col] / (norm * length) - cosine * h[col] / (norm * norm);
        cols.iter().map(|&col| start.at(row, col) - weights.at(row, 0) * sign * gradient(col)).collect()
    }
}

/// DPO: the loss of each pair, and what each token's weight becomes.
pub fn preference(
    values: &dyn Numbers,
    segments: &[Segment],
    margins: &dyn Numbers,
    (beta, scale): (f64, f64),
    weights: &dyn Numbers,
) -> (Vec<f64>, Vec<f64>) {
    let sum = |s: &Segment| (s.start..s.start + s.length).map(|t| values.at(t, 0)).sum::<f64>();
    let mut after: Vec<f64> = (0..weights.rows()).map(|t| weights.at(t, 0)).collect();
    let pairs = segments.len() / 2;
    let loss = |(index, pair): (usize, &[Segment])| {
        let delta = beta * (sum(&pair[1]) - sum(&pair[0]) - margins.at(index, 0));
        let factor = scale * beta * sigmoid(-delta) / pairs as f64;
        for (segment, factor) in pair.iter().zip([factor, -factor]) {
            after[segment.start..segment.start + segment.length].iter_mut().for_each(|w| *w *= factor);
        }
        (-delta).exp().ln_1p()
    };
    let losses = segments.chunks_exact(2).enumerate().map(loss).collect();
    (losses, after)
}

/// NPO and SimNPO: the loss of each sequence, and what each token's weight becomes.
pub fn negative_preference(
    values: &dyn Numbers,
    segments: &[Segment],
    [lengths, references]: [&dyn Numbers; 2],
    (beta, scale): (f64, f64),
    weights: &dyn Numbers,
) -> (Vec<f64>, Vec<f64>) {
    let mut after: Vec<f64> = (0..weights.rows()).map(|t| weights.at(t, 0)).collect();
    let loss = |(index, s): (usize, &Segment)| {
        let log_probability = -(s.start..s.start + s.length).map(|t| values.at(t, 0)).sum::<f64>();
        let length = lengths.at(index, 0);
        let x = beta * (log_probability / length - references.at(index, 0));
        let factor = -2.0 * scale * sigmoid(x) / (length * segments.len() as f64);
        after[s.start..s.start + s.length].iter_mut().for_each(|w| *w *= factor);
        2.0 / beta * x.exp().ln_1p()
    };
    let losses = segments.iter().enumerate().map(loss).collect();
    (losses, after)
}
