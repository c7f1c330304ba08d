//! `temper lox`: low-rank extrapolation from two model directories to a third.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::setup::same_shape;
use crate::error::{Error, Result};
use crate::files::write_directory;
use crate::huggingface::{ExportDType, ModelDirectory, fill_model};
use crate::model::ModelLayout;
use crate::plan::DefenderCost;
use crate::safeguard::{Extrapolation, extrapolate};

/// The models of an extrapolation.
#[derive(Clone, Debug)]
pub struct LoxConfig {
    /// The model that was aligned: a Hugging Face directory.
    pub model: PathBuf,
    /// The model that the alignment started from, of the same shape.
    pub base: PathBuf,
    /// How far, and in how many directions.
    pub extrapolation: Extrapolation,
    /// Dtype of the written weights; the aligned model's own where absent.
    pub dtype: Option<ExportDType>,
}

/// Extrapolates, and writes the result to `out` with its cost: that of the aligned model, where its directory says it, and
/// the extrapolation's own.
pub fn lox(config: &LoxConfig, out: &Path) -> Result<DefenderCost> {
    let start = Instant::now();
    let model = ModelDirectory::open(&config.model)?;
    let base = ModelDirectory::open(&config.base)?;
    if !same_shape(&model.config, &base.config) {
        let problem = format!("its architecture is not that of {}", config.model.display());
        return Err(Error::input(
            config.base.join("config.json"),
            problem,
            "use the model that the alignment started from",
        ));
    }
    let before = DefenderCost::read(&config.model)?;
    let layout = ModelLayout::new(&model.config)?;
    let mut weights = model.read_weights()?;
    let flop = extrapolate(&layout, &mut weights, &base.read_weights()?, config.extrapolation)?;
    let cost = DefenderCost {
        seconds: before.as_ref().map_or(0.0, |cost| cost.seconds) + start.elapsed().as_secs_f64(),
        flop: before.as_ref().map_or(0.0, |cost| cost.flop) + flop,
        device: before.map_or("cpu".into(), |cost| cost.device),
    };
    let dtype = config.dtype.unwrap_or(model.weights_dtype());
    write_directory(out, |directory| {
        fill_model(directory, &model.config, Some(&config.model), &weights, dtype)?;
        cost.write(directory)
    })?;
    Ok(cost)
}
