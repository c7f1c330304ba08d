//! Merging a LoRA adapter into the weights: W += scale · B A.

use rayon::prelude::*;

use super::{AdapterConfig, ModelConfig, ParameterLayout};
use crate::error::Result;
use crate::ops;

/// Adds every projection's update to `weights` (in the order of [`ParameterLayout::for_model`]); `factors` is in the order
/// of [`ParameterLayout::for_adapter`]. Each element is summed in f64 and rounded once.
pub fn merge_adapter(
    config: &ModelConfig,
    weights: &mut [f32],
    adapter: &AdapterConfig,
    factors: &[f32],
) -> Result<()> {
    let (model, lora) = (ParameterLayout::for_model(config), ParameterLayout::for_adapter(config, adapter));
    ops::expect("merge_adapter", "number of weights", weights.len(), model.len())?;
    ops::expect("merge_adapter", "number of factors", factors.len(), lora.len())?;
    let scale = f64::from(adapter.scale());
    for pair in lora.entries().chunks_exact(2) {
        let name = pair[0].name.trim_start_matches("base_model.model.").replace(".lora_A.weight", ".weight");
        let Some(target) = model.find(&name) else {
            return Err(ops::shape_error("merge_adapter", format!("the model has no tensor `{name}`")));
        };
        let factor = |index: usize| &factors[pair[index].block.offset..][..pair[index].block.len()];
        let (a, b, cols, rank) = (factor(0), factor(1), target.block.cols, adapter.rank);
        let rows = weights[target.block.offset..][..target.block.len()].par_chunks_mut(cols);
        rows.zip(b.par_chunks(rank)).for_each(|(row, b)| {
            for (column, weight) in row.iter_mut().enumerate() {
                let sum: f64 = (0..rank).map(|r| f64::from(b[r]) * f64::from(a[r * cols + column])).sum();
                *weight = (f64::from(*weight) + scale * sum) as f32;
            }
        });
    }
    Ok(())
}
