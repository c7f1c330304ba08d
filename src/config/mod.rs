//! Run files: the settings of a run, their defaults, presets and checks.

mod forms;
mod load;
mod method;
mod reader;
mod schema;
#[cfg(test)]
mod tests;
mod tree;
mod validate;

pub(crate) use reader::suggestion;
pub use schema::{
    AdversaryConfig, AdversaryData, CheckpointConfig, CompatConfig, DataConfig, ModelSection, OuterConfig,
    ParameterChoice, RunConfig, SafeguardConfig, SafeguardMethod, SchedulefreePoint, ScriptEntry, SwitchDraw,
    TarConfig, TrLoss,
};
