//! LoX, low-rank extrapolation (arXiv 2506.15606): the weights go further in the few directions that an alignment moved them
//! in, without training and without data.

use super::low_rank::{Values, leading_part};
use crate::error::{Error, Result};
use crate::model::ParameterLayout;
use crate::settings::{at_least, fault, finite};

/// The settings of the extrapolation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Extrapolation {
    /// k, the number of singular vectors of each matrix that are followed. The paper's effective ranks are near 6.
    pub rank: usize,
    /// The factor on what they add. The authors' script takes 1 where nothing else is said.
    pub coefficient: f64,
}

impl Default for Extrapolation {
    fn default() -> Self {
        Self { rank: 6, coefficient: 1.0 }
    }
}

/// W + c · (the part of rank k of W − W_base) for every matrix W of `weights`; vectors (norms, biases) stay. Embeddings and the
/// head are matrices too, as in the authors' code. Both models are in the order of `layout`. Returns the floating-point
/// operations that it took.
///
/// # Errors
/// [`Error::Config`] for settings without a meaning; [`Error::NonFinite`] for weights that are no finite numbers.
pub fn extrapolate(
    layout: &ParameterLayout,
    weights: &mut [f32],
    base: &[f32],
    extrapolation: Extrapolation,
) -> Result<f64> {
    let Extrapolation { rank, coefficient } = extrapolation;
    at_least("rank", rank as u64, 1)?;
    finite("coefficient", coefficient)?;
    let mut flop = 0.0;
    for entry in layout.entries().iter().filter(|entry| entry.shape.len() > 1) {
        let own = &mut weights[entry.block.range()];
        let change: Vec<f32> = own.iter().zip(&base[entry.block.range()]).map(|(own, base)| own - base).collect();
        if let Some(value) = change.iter().find(|value| !value.is_finite()) {
            return Err(Error::NonFinite {
                what: format!("the difference of the two models' {} ({value})", entry.name),
                step: 0,
                remedy: "check the models".into(),
            });
        }
        let matrix = Values { values: &change, rows: entry.block.rows, cols: entry.block.cols };
        let Some(part) = leading_part(matrix, rank) else {
            let problem = format!("the first {rank} singular vectors of the change of {} were not found", entry.name);
            return Err(fault("rank", problem, "take another rank"));
        };
        flop += part.flop;
        for (weight, add) in own.iter_mut().zip(&part.values) {
            *weight = (f64::from(*weight) + coefficient * f64::from(*add)) as f32;
        }
    }
    Ok(flop)
}
