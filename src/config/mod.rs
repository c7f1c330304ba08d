//! Run files and attack files: the settings of a run, their defaults, presets and checks.

mod abliteration_table;
mod adversary_table;
mod attack_file;
mod attack_table;
#[cfg(test)]
mod attack_tests;
mod defence;
#[cfg(test)]
mod defence_tests;
mod forms;
mod load;
mod method;
mod schema;
mod settings;
#[cfg(test)]
mod tests;
mod validate;
mod validate_defence;

pub use abliteration_table::AbliterationSearch;
pub use adversary_table::{AdversaryConfig, ScriptEntry, SwitchDraw};
pub use attack_file::{AttackCheckpoints, AttackCompat, AttackConfig, AttackData, AttackModel};
pub use attack_table::{AttackForm, AttackTable};
pub use defence::{
    AblationPoint, AttackPoint, CombineChoice, DefenceConfig, FrozenAttackPoint, NoisePoint, PersistentPoint,
    PointConfig, RoundConfig, RoundingPoint, StepPoint, TermConfig, TrainedConfig,
};
pub use forms::{Choices, Texts};
pub use method::{SimulatedAttacks, TakenGradient};
pub use schema::{
    CheckpointConfig, CompatConfig, DataConfig, DataNames, MemoryConfig, ModelSection, OuterConfig, ParameterChoice,
    RecomputeChoice, RunConfig, SafeguardConfig, SafeguardMethod, SchedulefreePoint, StatesChoice, TarConfig, TrLoss,
};
pub(crate) use settings::settings;
