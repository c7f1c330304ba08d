//! `temper plan`: what a run will need, from its configuration, its model's architecture and the lengths of its data.

use super::streams;
use crate::config::RunConfig;
use crate::error::Result;
use crate::model::ModelConfig;
use crate::plan::{Plan, PlannedDevice};

/// The plan of a hardening run on `device`. Of the model only `config.json` is read, and its tokenizer where the data is text.
/// Sequences count at the longest that a stream has; where its data cannot be read, the plan says so and counts them as
/// `max_length`.
pub fn plan(config: &RunConfig, device: PlannedDevice) -> Result<Plan> {
    config.check()?;
    let model = ModelConfig::from_directory(&config.model.path)?;
    let (actual, unread) = streams::lengths(config, &model);
    Ok(Plan { unread, ..Plan::new(&actual, &model, device)? })
}
