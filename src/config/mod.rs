//! Run files: the settings of a run, their defaults, presets and checks.

mod forms;
mod load;
mod method;
mod schema;
#[cfg(test)]
mod tests;
mod validate;

pub use schema::{
    AdversaryConfig, AdversaryData, CheckpointConfig, CompatConfig, DataConfig, MemoryConfig, ModelSection,
    OuterConfig, ParameterChoice, RecomputeChoice, RunConfig, SafeguardConfig, SafeguardMethod, SchedulefreePoint,
    ScriptEntry, StatesChoice, SwitchDraw, TarConfig, TrLoss,
};
