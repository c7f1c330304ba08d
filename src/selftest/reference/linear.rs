//! Linear layers and low-rank adapters.

use super::{Numbers, dot};
use crate::ops::Dropout;
use crate::random::philox;

/// y = x wᵀ.
pub fn linear_forward(x: &dyn Numbers, w: &dyn Numbers) -> impl Fn(usize, &[usize]) -> Vec<f64> {
    |token, cols| {
        let x = x.row(token);
        cols.iter().map(|&out| dot(&x, &w.row(out))).collect()
    }
}

/// dx = start + dy w.
pub fn linear_backward_input(
    dy: &dyn Numbers,
    w: &dyn Numbers,
    start: Option<&dyn Numbers>,
) -> impl Fn(usize, &[usize]) -> Vec<f64> {
    move |token, cols| {
        let first = |&input: &usize| start.map_or(0.0, |start| start.at(token, input));
        let mut sums: Vec<f64> = cols.iter().map(first).collect();
        for (out, dy) in dy.row(token).iter().enumerate() {
            sums.iter_mut().zip(cols).for_each(|(sum, &input)| *sum += dy * w.at(out, input));
        }
        sums
    }
}

/// dw = start + dyᵀ x.
pub fn linear_backward_weight(
    dy: &dyn Numbers,
    x: &dyn Numbers,
    start: &dyn Numbers,
) -> impl Fn(usize, &[usize]) -> Vec<f64> {
    move |out, cols| {
        let dy: Vec<f64> = (0..dy.rows()).map(|token| dy.at(token, out)).collect();
        let sum = |input: usize| dy.iter().enumerate().map(|(token, dy)| dy * x.at(token, input)).sum::<f64>();
        cols.iter().map(|&input| start.at(out, input) + sum(input)).collect()
    }
}

/// x times its dropout mask.
pub struct Dropped<'a> {
    pub x: &'a dyn Numbers,
    pub dropout: Option<Dropout>,
}

impl Dropped<'_> {
    /// The mask's factor on element (row, col) of a matrix of the shape of x.
    pub fn mask(&self, row: usize, col: usize) -> f64 {
        let Some(dropout) = self.dropout else { return 1.0 };
        let element = (row * self.x.cols() + col) as u64;
        let block = element / 4;
        let counter = [block as u32, (block >> 32) as u32, dropout.site, dropout.step];
        let word = philox(counter, [dropout.seed as u32, (dropout.seed >> 32) as u32])[(element % 4) as usize];
        let probability = f64::from(dropout.probability);
        if f64::from(word) < (probability * 4_294_967_296.0).floor() { 0.0 } else { 1.0 / (1.0 - probability) }
    }
}

impl Numbers for Dropped<'_> {
    fn rows(&self) -> usize {
        self.x.rows()
    }
    fn cols(&self) -> usize {
        self.x.cols()
    }
    fn at(&self, row: usize, col: usize) -> f64 {
        self.x.at(row, col) * self.mask(row, col)
    }
}

/// The factors of one adapted projection.
pub struct Factors<'a> {
    /// `[r, in]`.
    pub a: &'a dyn Numbers,
    /// `[out, r]`.
    pub b: &'a dyn Numbers,
    /// First column of y that it writes.
    pub start: usize,
    /// Factor on b a.
    pub scale: f64,
}

/// The projection and its component that column `col` of s belongs to.
fn component<'a, 'b>(slices: &'b [Factors<'a>], mut col: usize) -> (&'b Factors<'a>, usize) {
    for slice in slices {
        if col < slice.a.rows() {
            return (slice, col);
        }
        col -= slice.a.rows();
    }
    unreachable!("a column beyond the ranks")
}

/// `s = x [a₁; a₂; …]ᵀ`.
pub fn lora_low(x: &Dropped, slices: &[Factors]) -> impl Fn(usize, &[usize]) -> Vec<f64> {
    move |token, cols| {
        let x = x.row(token);
        let element = |&col: &usize| {
            let (slice, k) = component(slices, col);
            dot(&x, &slice.a.row(k))
        };
        cols.iter().map(element).collect()
    }
}

/// y = start + scale · s bᵀ in each projection's columns.
pub fn lora_out(x: &Dropped, slices: &[Factors], start: &dyn Numbers) -> impl Fn(usize, &[usize]) -> Vec<f64> {
    move |token, cols| {
        let ranks: usize = slices.iter().map(|slice| slice.a.rows()).sum();
        let s = lora_low(x, slices)(token, &(0..ranks).collect::<Vec<_>>());
        let element = |&col: &usize| {
            let mut first = 0;
            let mut sum = start.at(token, col);
            for slice in slices {
                let rank = slice.a.rows();
                if (slice.start..slice.start + slice.b.rows()).contains(&col) {
                    sum += slice.scale * dot(&s[first..first + rank], &slice.b.row(col - slice.start));
                }
                first += rank;
            }
            sum
        };
        cols.iter().map(element).collect()
    }
}

/// ds = scale · dy b, one row.
fn lora_low_gradient(dy: &dyn Numbers, slices: &[Factors], token: usize) -> Vec<f64> {
    let dy = dy.row(token);
    let components = |slice: &Factors| {
        let mut sums = vec![0.0; slice.a.rows()];
        for out in 0..slice.b.rows() {
            let factor = slice.scale * dy[slice.start + out];
            sums.iter_mut().enumerate().for_each(|(k, sum)| *sum += factor * slice.b.at(out, k));
        }
        sums
    };
    slices.iter().flat_map(components).collect()
}

/// dx = start + mask · (ds a).
pub fn lora_backward_input(
    dy: &dyn Numbers,
    x: &Dropped,
    slices: &[Factors],
    start: &dyn Numbers,
) -> impl Fn(usize, &[usize]) -> Vec<f64> {
    move |token, cols| {
        let ds = lora_low_gradient(dy, slices, token);
        let element = |&col: &usize| {
            let sum: f64 = ds
                .iter()
                .enumerate()
                .map(|(k, ds)| {
                    let (slice, k) = component(slices, k);
                    ds * slice.a.at(k, col)
                })
                .sum();
            start.at(token, col) + x.mask(token, col) * sum
        };
        cols.iter().map(element).collect()
    }
}

/// The gradients of the factors in their flat buffer, in which `places` says where a and b of each projection begin:
/// start + dsᵀ x for a, start + scale · dyᵀ s for b, start elsewhere.
pub fn lora_backward_factors(
    dy: &dyn Numbers,
    x: &Dropped,
    s: &dyn Numbers,
    slices: &[Factors],
    places: &[(usize, usize)],
    start: &dyn Numbers,
) -> impl Fn(usize, &[usize]) -> Vec<f64> {
    use rayon::prelude::*;
    let tokens = x.rows();
    let ds: Vec<Vec<f64>> = (0..tokens).into_par_iter().map(|t| lora_low_gradient(dy, slices, t)).collect();
    move |_, cols| {
        let element = |&place: &usize| {
            let mut first = 0;
            for (slice, &(a, b)) in slices.iter().zip(places) {
                let rank = slice.a.rows();
                let input = slice.a.cols();
                if (a..a + rank * input).contains(&place) {
                    let k = (place - a) / input;
                    let i = (place - a) % input;
                    return (0..tokens).map(|t| ds[t][first + k] * x.at(t, i)).sum();
                }
                if (b..b + rank * slice.b.rows()).contains(&place) {
                    let out = (place - b) / rank;
                    let k = (place - b) % rank;
                    let sum: f64 = (0..tokens).map(|t| dy.at(t, slice.start + out) * s.at(t, first + k)).sum();
                    return slice.scale * sum;
                }
                first += rank;
            }
            0.0
        };
        cols.iter().map(|place| start.at(0, *place) + element(place)).collect()
    }
}
