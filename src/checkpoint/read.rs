//! Finding, checking and loading checkpoints.

use std::path::{Path, PathBuf};

use super::Snapshot;
use crate::error::Result;

/// A checkpoint as its manifest describes it; its data was not read.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct CheckpointInfo {
    /// Its directory.
    pub path: PathBuf,
    /// Outer steps taken.
    pub step: u64,
    /// Hash of the run's configuration.
    pub config_hash: u64,
    /// Size of its data files.
    pub bytes: u64,
    /// Number of tensors.
    pub tensors: usize,
    /// The version of temper that wrote it.
    pub temper_version: String,
}

/// What [`verify`] found.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Verification {
    /// The checkpoint.
    pub path: PathBuf,
    /// Bytes that were read and checked.
    pub bytes: u64,
    /// One line for each bad file or tensor; none where the checkpoint is intact.
    pub problems: Vec<String>,
}

impl Verification {
    /// Whether every byte is as it was written.
    pub fn is_intact(&self) -> bool {
        self.problems.is_empty()
    }
}

/// The checkpoints under `root` whose manifest can be read, oldest first; a broken one is named in a warning. Empty where `root` does not exist.
pub fn list(root: &Path) -> Result<Vec<CheckpointInfo>> {
    let _ = root;
    todo!()
}

/// The newest checkpoint under `root` of which every byte verifies. A broken newer one is skipped with a warning.
pub fn latest(root: &Path) -> Result<Option<PathBuf>> {
    let _ = root;
    todo!()
}

/// Reads a checkpoint, every byte checked.
pub fn load(dir: &Path) -> Result<Snapshot> {
    let _ = dir;
    todo!()
}

/// Checks every byte of a checkpoint and names all that is wrong. An error only where the directory cannot be read.
pub fn verify(dir: &Path) -> Result<Verification> {
    let _ = dir;
    todo!()
}
