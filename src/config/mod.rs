//! Run files: the settings of a run, their defaults, presets and checks.

mod schema;

pub use schema::{
    AdversaryConfig, AdversaryData, CheckpointConfig, CompatConfig, DataConfig, EntropyOver, ModelSection, OuterConfig,
    ParameterChoice, RunConfig, SchedulefreePoint, ScriptEntry, SwitchDraw, TarConfig, TrLoss,
};
