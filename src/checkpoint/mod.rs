//! Checkpoints of a run: written so that a crash at any moment leaves the new one or the old one, never a wrong one,
//! and read with every byte checked.
//!
//! A run's `checkpoints` directory (`root` below) holds directories `step-00000012` of three files: `state.json` (the
//! run's scalars), `tensors.safetensors`, and `manifest.json`, which is written last and holds the sizes and CRC-32C
//! checksums of the others, of each tensor, and of itself. One process writes to a root at a time.

#[cfg(test)]
mod crash;
mod manifest;
mod read;
mod write;

use std::path::{Path, PathBuf};

pub use read::{CheckpointInfo, Verification, latest, list, load, verify};
pub use write::save;

use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;

/// Everything that a run needs to go on as if it had never stopped.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Outer steps taken.
    pub step: u64,
    /// Fingerprint of the run's configuration.
    pub config_hash: Fingerprint,
    /// The run's scalars: optimizer progress, data cursors. Finite numbers come back bit for bit.
    pub state: serde_json::Value,
    /// The run's tensors. Every bit comes back, the payload of NaNs too.
    pub tensors: Vec<Tensor>,
}

/// A tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Its name, which no other tensor of the checkpoint has.
    pub name: String,
    /// Its values, flat.
    pub values: Vec<f32>,
}

impl Tensor {
    /// A tensor called `name`.
    pub fn new(name: impl Into<String>, values: Vec<f32>) -> Self {
        Self { name: name.into(), values }
    }
}

impl Snapshot {
    /// Fails unless the snapshot, loaded from `dir`, is of a run whose configuration has `config_hash`.
    pub fn expect_config(&self, dir: &Path, config_hash: Fingerprint) -> Result<()> {
        if self.config_hash == config_hash {
            return Ok(());
        }
        let problem = format!(
            "the checkpoint was written with another configuration (hash {}, this run's is {config_hash})",
            self.config_hash
        );
        Err(Error::input(dir, problem, "resume with the configuration that the run started with, or start a new run"))
    }

    /// Takes the values of the tensor `name`, which must have `len` elements, out of the snapshot. `dir` is the checkpoint
    /// that an error names.
    pub fn take(&mut self, dir: &Path, name: &str, len: usize) -> Result<Vec<f32>> {
        let Some(index) = self.tensors.iter().position(|tensor| tensor.name == name) else {
            let remedy = "it was written by another kind of run; start a new run";
            return Err(Error::input(dir, format!("the checkpoint has no tensor `{name}`"), remedy));
        };
        let values = self.tensors.swap_remove(index).values;
        if values.len() == len {
            return Ok(values);
        }
        let problem = format!("tensor `{name}` has {} elements, expected {len}", values.len());
        Err(Error::input(dir, problem, "it was written for another model or another kind of run; start a new run"))
    }
}

/// The directory of a checkpoint of `step`.
pub(crate) fn directory(root: &Path, step: u64) -> PathBuf {
    root.join(format!("step-{step:08}"))
}
