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
    AdversaryConfig, AdversaryData, CheckpointConfig, CompatConfig, DataConfig, MemoryConfig, ModelSection,
    OuterConfig, ParameterChoice, RecomputeChoice, RunConfig, SafeguardConfig, SafeguardMethod, SchedulefreePoint,
    ScriptEntry, StatesChoice, SwitchDraw, TarConfig, TrLoss,
};
