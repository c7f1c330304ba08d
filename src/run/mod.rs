//! Runs as users start them: from files to files, with checkpoints, stop signals and metrics around the methods of
//! `crate::tar` and `crate::training`.
//!
//! A run's output directory becomes the model (or adapter) directory; its folder `temper` holds the run's own files:
//! the resolved configuration, the metrics stream and the checkpoints.

mod attack;
mod compare;
mod control;
mod demo;
mod directory;
mod eval;
mod harden;
mod lox;
mod plan;
mod redteam;
mod safeguard;
mod setup;
pub mod signals;
mod streams;

pub use crate::events::{Event, Measured, Phase};
pub use attack::{AttackSummary, attack};
pub use compare::{CompareConfig, ComparedModel, DefenceEntry, SuiteEntry, compare};
pub use control::Control;
pub use demo::{DemoConfig, demo};
pub use directory::RunDirectory;
pub use eval::{Answer, Answers, EvalConfig, EvalForm, EvalReport, Evaluation, eval};
pub use harden::{HardenSummary, Hardening, harden};
pub use lox::{LoxConfig, lox};
pub use plan::plan;
pub use redteam::{RedteamConfig, redteam};
pub use setup::{LoadedModel, StreamFile};
