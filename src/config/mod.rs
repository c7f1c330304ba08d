//! Run files: the settings of a run, their defaults, presets and checks.

mod forms;
pub(crate) mod load;
mod method;
mod reader;
mod schema;
#[cfg(test)]
mod tests;
pub(crate) mod tree;
pub(crate) mod validate;

pub(crate) use reader::suggestion;
pub use schema::{
    AdversaryConfig, AdversaryData, CheckpointConfig, CompatConfig, DataConfig, MemoryConfig, ModelSection,
    OuterConfig, ParameterChoice, RecomputeChoice, RunConfig, SafeguardConfig, SafeguardMethod, SchedulefreePoint,
    ScriptEntry, StatesChoice, SwitchDraw, TarConfig, TrLoss,
};
