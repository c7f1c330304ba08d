//! A model directory in the Hugging Face layout: configuration, sharded or single weight file, tokenizer files.

use std::path::{Path, PathBuf};

use super::{ModelConfig, ParameterLayout};
use crate::error::Result;

/// An opened model directory.
pub struct ModelDirectory {
    /// Where it is.
    pub path: PathBuf,
    /// Its `config.json`.
    pub config: ModelConfig,
}

impl ModelDirectory {
    /// Reads `config.json` and the weight index, and checks that every tensor of the layout is there with its shape.
    pub fn open(path: &Path) -> Result<Self> {
        let _ = path;
        todo!()
    }

    /// All weights as f32 in the order of [`ParameterLayout::for_model`].
    pub fn read_weights(&self) -> Result<Vec<f32>> {
        let _ = ParameterLayout::for_model(&self.config);
        todo!()
    }
}
