//! Loading what a run works on.

use std::path::Path;
use std::sync::Arc;

use crate::data::{DataStream, RawRow, StreamOptions, rows};
use crate::error::{Error, Result};
use crate::eval::Question;
use crate::huggingface::{ExportDType, ModelDirectory};
use crate::model::{Model, ModelConfig, Parameters};
use crate::ops::Backend;

/// A model directory on a device.
pub struct LoadedModel<B: Backend> {
    /// The directory.
    pub directory: ModelDirectory,
    /// The architecture, for sequences as long as the caller asked.
    pub model: Arc<Model<B>>,
    /// The weights.
    pub weights: Parameters<B>,
}

impl<B: Backend> LoadedModel<B> {
    /// Loads `path` for sequences of up to `positions` tokens.
    pub fn open(backend: B, path: &Path, positions: usize) -> Result<Self> {
        let directory = ModelDirectory::open(path)?;
        let model = Arc::new(Model::new(backend, directory.config.clone(), positions)?);
        let weights = load_weights(&model, &directory, "weights")?;
        Ok(Self { directory, model, weights })
    }

    /// The weights of another directory of the same architecture.
    pub fn other_weights(&self, path: &Path, name: &str) -> Result<Parameters<B>> {
        let other = ModelDirectory::open(path)?;
        if !Self::same_shape(&other.config, &self.model.config) {
            let problem = "its architecture is not that of the model to harden";
            return Err(Error::input(
                path.join("config.json"),
                problem,
                "use the model that the safeguard started from",
            ));
        }
        load_weights(&self.model, &other, name)
    }

    /// Whether weights of one architecture fit the other.
    pub(super) fn same_shape(a: &ModelConfig, b: &ModelConfig) -> bool {
        let shape = |c: &ModelConfig| {
            let sizes = (c.vocab_size, c.hidden_size, c.intermediate_size, c.num_hidden_layers);
            (sizes, c.attention(), c.tie_word_embeddings)
        };
        shape(a) == shape(b)
    }
}

fn load_weights<B: Backend>(model: &Model<B>, directory: &ModelDirectory, name: &str) -> Result<Parameters<B>> {
    Parameters::from_host(&model.backend, name, model.layout(), &directory.read_weights()?)
}

/// How a file is read for a model: the longest sequences are cut to what the model was trained for.
pub fn open_stream(
    name: &str,
    path: &Path,
    model: &ModelDirectory,
    batch: usize,
    max_length: usize,
    (shuffle, pack): (bool, bool),
    seed: u64,
) -> Result<DataStream> {
    let config = &model.config;
    let options = StreamOptions {
        batch,
        max_length: max_length.min(config.max_position_embeddings),
        shuffle,
        pack,
        pad_token_id: config.pad_token_id.or_else(|| config.eos_token_ids.first().copied()).unwrap_or(0),
        vocab_size: config.vocab_size,
        seed,
    };
    DataStream::open(name, path, &model.path, options)
}

/// The dtype of written weights: as named, or that of the input.
pub fn export_dtype(named: Option<&str>, directory: &ModelDirectory) -> Result<ExportDType> {
    match named {
        None => Ok(directory.weights_dtype()),
        Some("f32") => Ok(ExportDType::F32),
        Some("bf16") => Ok(ExportDType::Bf16),
        Some("f16") => Ok(ExportDType::F16),
        Some(other) => Err(Error::config("model.dtype", format!("`{other}` is not a dtype"), "use f32, bf16 or f16")),
    }
}

/// The four-choice questions of a file.
pub fn read_questions(path: &Path) -> Result<Vec<Question>> {
    let read = |row: Result<RawRow>| {
        let (place, value) = row?.value()?;
        Question::from_json(&value).map_err(|problem| place.error(problem, "mend the row or remove it"))
    };
    let questions: Vec<Question> = rows(path)?.map(read).collect::<Result<_>>()?;
    if questions.is_empty() {
        return Err(Error::input(path, "there is no question", "give rows of question, choices and answer"));
    }
    Ok(questions)
}
