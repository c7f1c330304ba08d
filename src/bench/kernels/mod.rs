//! The rows of `temper bench kernels`, one file a group of kernel families.
//!
//! Left out: `weighted_sum`, `preference` and `negative_preference`, which move a few kilobytes: a launch takes as long.

mod attention;
mod element;
mod heads;
mod linear;
mod loss_head;
mod vectors;

use super::Bench;
use crate::error::Result;

/// Measures every row that the filter lets through.
pub(super) fn run(bench: &mut Bench) -> Result<()> {
    linear::run(bench);
    attention::run(bench);
    loss_head::run(bench);
    element::run(bench);
    heads::run(bench);
    vectors::run(bench)
}

/// Sets of operands that a row takes in turn, so that none is in a cache.
struct Sets<S>(Vec<S>);

impl<S> Sets<S> {
    /// The set of a repetition.
    fn at(&mut self, repetition: usize) -> &mut S {
        let count = self.0.len();
        &mut self.0[repetition % count]
    }
}

/// As many sets as a row needs that moves `bytes`.
fn sets<S>(bench: &Bench, bytes: f64, make: impl FnMut(usize) -> Result<S>) -> Result<Sets<S>> {
    Ok(Sets((0..bench.sets(bytes)).map(make).collect::<Result<_>>()?))
}
