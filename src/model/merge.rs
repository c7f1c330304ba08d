//! Merging a LoRA adapter into the weights: W += scale · B A.

use rayon::prelude::*;

use super::{AdapterConfig, AdapterLayout, ModelConfig, ModelLayout};
use crate::error::Result;
use crate::ops;

/// Adds every projection's update to `weights` (in the order of [`ModelLayout`]); `factors` is in the order of
/// [`AdapterLayout`]. Each element is summed in f64 and rounded once.
pub fn merge_adapter(
    config: &ModelConfig,
    weights: &mut [f32],
    adapter: &AdapterConfig,
    factors: &[f32],
) -> Result<()> {
    let model = ModelLayout::new(config)?;
    let lora = AdapterLayout::new(config, adapter)?;
    ops::expect("merge_adapter", "number of weights", weights.len(), model.len())?;
    ops::expect("merge_adapter", "number of factors", factors.len(), lora.len())?;
    let scale = f64::from(adapter.scale());
    let rank = adapter.rank;
    for (layer, projections) in lora.layers().iter().enumerate() {
        for (&projection, blocks) in projections {
            let target = model.layer(layer).projection(projection);
            let a = &factors[blocks.a.range()];
            let b = &factors[blocks.b.range()];
            let rows = weights[target.range()].par_chunks_mut(target.cols);
            rows.zip(b.par_chunks(rank)).for_each(|(row, b)| {
                for (column, weight) in row.iter_mut().enumerate() {
                    let sum: f64 = (0..rank).map(|r| f64::from(b[r]) * f64::from(a[r * target.cols + column])).sum();
                    *weight = (f64::from(*weight) + scale * sum) as f32;
                }
            });
        }
    }
    Ok(())
}
