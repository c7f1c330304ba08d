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

/// Everything that a run needs to go on as if it had never stopped.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Outer steps taken.
    pub step: u64,
    /// [`hash_config`] of the run's resolved configuration.
    pub config_hash: u64,
    /// The run's scalars: optimizer progress, data cursors. Finite numbers come back bit for bit.
    pub state: serde_json::Value,
    /// The run's tensors with their names, all different. Every bit comes back, that of NaNs too.
    pub tensors: Vec<(String, TensorData)>,
}

/// The values of one tensor, flat.
#[derive(Clone, Debug, PartialEq)]
pub enum TensorData {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 32-bit unsigned integers.
    U32(Vec<u32>),
}

impl TensorData {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::U32(values) => values.len(),
        }
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Snapshot {
    /// Fails unless the snapshot, loaded from `dir`, is of a run whose configuration has `config_hash`.
    pub fn expect_config(&self, dir: &Path, config_hash: u64) -> Result<()> {
        if self.config_hash == config_hash {
            return Ok(());
        }
        let problem = format!(
            "the checkpoint was written with another configuration (hash {:016x}, this run's is {config_hash:016x})",
            self.config_hash
        );
        Err(Error::input(dir, problem, "resume with the configuration that the run started with, or start a new run"))
    }

    /// Takes the tensor `name` out; `dir` is the checkpoint that an error names.
    pub fn take(&mut self, dir: &Path, name: &str) -> Result<TensorData> {
        match self.tensors.iter().position(|(found, _)| found == name) {
            Some(index) => Ok(self.tensors.swap_remove(index).1),
            None => Err(Error::input(
                dir,
                format!("the checkpoint has no tensor `{name}`"),
                "it was written by another kind of run; start a new run",
            )),
        }
    }

    /// Takes the f32 tensor `name` of `len` elements out; `dir` is the checkpoint that an error names.
    pub fn take_f32(&mut self, dir: &Path, name: &str, len: usize) -> Result<Vec<f32>> {
        let problem = match self.take(dir, name)? {
            TensorData::F32(values) if values.len() == len => return Ok(values),
            TensorData::F32(values) => format!("tensor `{name}` has {} elements, expected {len}", values.len()),
            TensorData::U32(_) => format!("tensor `{name}` holds integers, expected f32"),
        };
        Err(Error::input(dir, problem, "it was written for another model or another kind of run; start a new run"))
    }
}

/// The 64-bit FNV-1a hash of a configuration's text. It tells runs apart; it is no protection against forgery.
pub fn hash_config(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The directory of a checkpoint of `step`.
pub(crate) fn directory(root: &Path, step: u64) -> PathBuf {
    root.join(format!("step-{step:08}"))
}
