//! Runs as users start them: from files to files, with checkpoints, stop signals and metrics around the methods of
//! `crate::tar` and `crate::training`.
//!
//! A run's output directory becomes the model (or adapter) directory; its folder `temper` holds what the run itself
//! keeps: the resolved configuration, the metrics stream and the checkpoints.

mod attack;
mod defence;
mod directory;
mod harden;
mod redteam;
mod safeguard;
mod settings;
mod setup;
pub mod signals;

pub use attack::{AttackConfig, AttackSummary, attack};
pub use directory::RunDirectory;
pub use harden::{HardenSummary, harden};
pub use redteam::{Jobs, RedteamConfig, redteam};
pub use setup::{LoadedModel, export_dtype, open_stream, read_questions};

use crate::error::Result;

/// What a run tells whoever started it. An error of the receiver ends the run.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// It begins, at step `from` of `steps`.
    Begin {
        /// Steps done before (not 0 after a resume).
        from: u64,
        /// Steps in all.
        steps: u64,
    },
    /// An inner step of an outer step is about to begin.
    Inner {
        /// Inner step, from 0.
        step: u64,
        /// K.
        of: u64,
    },
    /// A step is done.
    Step {
        /// Steps done, from 1.
        step: u64,
        /// What was measured, by name.
        values: &'a [(&'a str, f64)],
    },
    /// Something worth a line.
    Note(&'a str),
}

/// Receives a run's events.
pub type Observer<'a> = dyn FnMut(Event) -> Result<()> + 'a;
