//! The door for other programs: open a device, then harden, attack, red-team, evaluate or plan.
//!
//! Every function takes its settings as a struct, built in code or read from the files that the command line takes, and
//! checks them first. A [`Control`] watches a run and stops it. Errors are one type, to be matched: see [`Error`].

mod hardening;

use std::path::Path;

pub use hardening::Hardening;

// Devices, errors, and the control of runs.
pub use crate::backend::any::{Device, DeviceName, Precision};
pub use crate::error::{Cause, Error, Result};
pub use crate::events::{Event, Measured, Phase};
pub use crate::run::Control;
pub use crate::run::signals::StopFlag;
pub use crate::tuning::{Followed, TuningPin, follow};

// Hardening: settings and results.
pub use crate::config::{
    AblationPoint, AttackPoint, CombineChoice, DefenceConfig, FrozenAttackPoint, NoisePoint, PointConfig, RoundConfig,
    RoundingPoint, StepPoint, TermConfig, TrainedConfig,
};
pub use crate::config::{
    AdversaryConfig, CheckpointConfig, Choices, CompatConfig, DataConfig, DataNames, MemoryConfig, ModelSection,
    OuterConfig, ParameterChoice, RecomputeChoice, RunConfig, SafeguardConfig, SafeguardMethod, SchedulefreePoint,
    ScriptEntry, StatesChoice, SwitchDraw, TarConfig, TrLoss,
};
pub use crate::objective::{EntropyOver, TermLoss};
pub use crate::run::HardenSummary;
pub use crate::safeguard::Losses as SafeguardLosses;
pub use crate::tar::{
    Curriculum, Direction, Draw, LearningRates, OuterReport, PoolSettings, RateRange, ShareRange, TermReport,
    TrajectoryReport,
};

// Low-rank extrapolation.
pub use crate::run::LoxConfig;
pub use crate::safeguard::Extrapolation;

// One attack: settings and results.
pub use crate::config::{
    AbliterationSearch, AttackCheckpoints, AttackCompat, AttackConfig, AttackData, AttackForm, AttackModel,
    AttackTable, Texts,
};
pub use crate::huggingface::ExportDType;
pub use crate::model::{AdapterConfig, Projection};
pub use crate::optimizer::{Decay, OptimizerConfig, OptimizerKind, Schedule};
pub use crate::run::AttackSummary;
pub use crate::training::{FineTune, Kick, Selection, Source, StepReport};

// A suite of attacks: settings and results.
pub use crate::plan::DefenderCost;
pub use crate::redteam::suite::{
    BudgetTable, ComplianceTable, DataTable, EvaluateTable, MetricKind, PerplexityTable, RestrictedTable, ScaleTable,
    SearchMethod, SearchTable, Suite, UtilityTable,
};
pub use crate::redteam::{
    AttackKind, AttackResult, BestSoFar, Cost, CostToBreach, Goal, Least, Metric, Outcome, Point, Results, Scores,
    SearchCost, Spread, Succeeded, Summary,
};
pub use crate::run::RedteamConfig;

// Defences side by side: settings and results.
pub use crate::report::{
    ComparedDefence, ComparedRun, ComparedSuite, DefenceComparison, DefendedModel, OverModels, Range,
};
pub use crate::run::{CompareConfig, ComparedModel, DefenceEntry, SuiteEntry};

// Measurements, plans and the demonstration.
pub use crate::data::{Columns, DataFile};
pub use crate::demo::toy;
pub use crate::eval::{ChoiceReport, ExactMatch, Perplexity, Prediction, PromptForm, Repetition};
pub use crate::plan::{Buffer, Gpu, Place, Plan, PlannedDevice, Work};
pub use crate::report::{AttackRow, DemoSummary, Stages};
pub use crate::run::{Answer, Answers, DemoConfig, EvalConfig, EvalForm, EvalReport, Evaluation};
pub use crate::training::{MemorySettings, Moments};

use crate::backend::any::on_device;
use crate::run::{self, RunDirectory};
use crate::tuning::follow_resumed;

/// Hardens a model with TAR and writes the result to `out`: a model directory with the run's own files in its folder
/// `temper`.
///
/// # Errors
/// [`Error::Config`] for wrong settings, or where `out` holds a run that `control` does not resume;
/// [`Error::Interrupted`] after a request to stop, with a checkpoint saved.
pub fn harden(device: &Device, config: &RunConfig, out: impl AsRef<Path>, control: Control) -> Result<HardenSummary> {
    let device = &following(device, config.tuning.as_ref(), out.as_ref(), control.resumes())?;
    on_device!(device, backend => run::harden(backend.clone(), config, out.as_ref(), control))
}

/// The device with the measured choices that a run in `out` goes by: where it is resumed, those that it began with, else those
/// that `pin` names, if it names any.
fn following(device: &Device, pin: Option<&TuningPin>, out: &Path, resume: bool) -> Result<Device> {
    if resume && let Some((resumed, _)) = follow_resumed(device, pin, &RunDirectory::kept_choices(out))? {
        return Ok(resumed);
    }
    match pin {
        Some(pin) => Ok(follow(device, Some(pin))?.0),
        None => Ok(device.clone()),
    }
}

/// Extrapolates an alignment from two model directories without training (LoX, arXiv 2506.15606), and writes the result to
/// `out`. Returns what the defence has cost.
///
/// # Errors
/// [`Error::Input`] for models of different shapes; [`Error::Config`] for settings without a meaning.
pub fn lox(config: &LoxConfig, out: impl AsRef<Path>) -> Result<DefenderCost> {
    run::lox(config, out.as_ref())
}

/// Attacks a model by fine-tuning it, and writes the attacked model or adapter to `out`.
///
/// # Errors
/// [`Error::Interrupted`] after a request to stop, with a checkpoint saved; [`Error::NonFinite`] where the attack
/// diverges.
pub fn attack(
    device: &Device,
    config: &AttackConfig,
    out: impl AsRef<Path>,
    control: Control,
) -> Result<AttackSummary> {
    let device = &following(device, None, out.as_ref(), control.resumes())?;
    on_device!(device, backend => run::attack(backend.clone(), config, out.as_ref(), control))
}

/// Attacks a model with every attack of a suite, and writes what was found, with a report for people, to the
/// configuration's output directory. An attack that fails is a row of the results.
///
/// # Errors
/// [`Error::Interrupted`] after a request to stop; a run that resumes repeats no finished attack.
pub fn redteam(device: &Device, config: &RedteamConfig, control: Control) -> Result<Results> {
    on_device!(device, backend => run::redteam(backend.clone(), config, control))
}

/// Hardens one model by several defences, attacks every result with the same suites, and writes what was found to `out`.
///
/// # Errors
/// [`Error::Config`] for wrong settings, or where `out` holds a comparison that `control` does not resume;
/// [`Error::Interrupted`] after a request to stop; a comparison that resumes repeats nothing that is finished.
pub fn compare(
    device: &Device,
    config: &CompareConfig,
    out: impl AsRef<Path>,
    control: Control,
) -> Result<DefenceComparison> {
    on_device!(device, backend => run::compare(backend.clone(), config, out.as_ref(), control))
}

/// Measures a model on a data file.
///
/// # Errors
/// [`Error::Config`] for an option that the form does not read; [`Error::NonFinite`] where a measured number is not.
pub fn eval(device: &Device, config: &EvalConfig) -> Result<Evaluation> {
    on_device!(device, backend => run::eval(backend.clone(), config))
}

/// Plans a hardening run on `device`: the memory and the arithmetic that it needs. Nothing is run.
pub fn plan(config: &RunConfig, device: PlannedDevice) -> Result<Plan> {
    run::plan(config, device)
}

/// Runs the demonstration: trains a tiny model, safeguards it, hardens it, and attacks it before and after.
///
/// # Errors
/// [`Error::Interrupted`] after a request to stop: a demonstration cannot be resumed.
pub fn demo(device: &Device, config: &DemoConfig, control: Control) -> Result<DemoSummary> {
    on_device!(device, backend => run::demo(backend.clone(), config, control))
}
