//! `temper plan`: what a run will need, from its configuration and its model's architecture.

use crate::config::RunConfig;
use crate::error::Result;
use crate::model::ModelConfig;
use crate::plan::{Plan, PlannedDevice};

/// The plan of a hardening run on `device`. Of the model only `config.json` is read.
pub fn plan(config: &RunConfig, device: PlannedDevice) -> Result<Plan> {
    config.check()?;
    let model = ModelConfig::from_directory(&config.model.path)?;
    Plan::new(config, &model, device)
}
