//! Loading what a run works on.

use std::path::Path;
use std::sync::Arc;

use crate::data::{DataFile, DataStream, PromptEncoder, RawText, StreamOptions, read_prompts};
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::huggingface::{ExportDType, ModelDirectory};
use crate::model::{Model, ModelConfig, Parameters};
use crate::ops::Backend;

/// Fails unless the device follows the measured choices that the run of the checkpoint at `path` began with: its steps would
/// have other bits. A run that is resumed by the functions of [`crate::api`] follows its own.
pub(super) fn expect_tuning<B: Backend>(backend: &B, path: &Path, began: Option<Fingerprint>) -> Result<()> {
    let here = backend.tuning();
    if here == began {
        return Ok(());
    }
    let name = |choices: Option<Fingerprint>| choices.map_or("none".to_string(), |fingerprint| fingerprint.to_string());
    let problem = format!(
        "its run began with the choices {} and this device follows {}, which gives other bits",
        name(began),
        name(here)
    );
    Err(Error::input(
        path,
        problem,
        "put the choices that the run kept back beside its checkpoints, or begin a new run",
    ))
}

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
    /// Puts the weights of `directory` on the device, for sequences of up to `positions` tokens.
    pub fn new(backend: B, directory: ModelDirectory, positions: usize) -> Result<Self> {
        Self::to_write(backend, directory, positions, ExportDType::F32)
    }

    /// As [`Self::new`], for a run that writes a model in `dtype` at its end.
    ///
    /// # Errors
    /// Where a weight is beyond the range of `dtype` before the first step.
    pub fn to_write(backend: B, directory: ModelDirectory, positions: usize, dtype: ExportDType) -> Result<Self> {
        let model = Arc::new(Model::new(backend, directory.config.clone(), positions)?);
        let weights = directory.read_weights()?;
        dtype.expect_range(model.layout(), &weights)?;
        let weights = Parameters::from_host(&model.backend, "weights", model.layout(), &weights)?;
        Ok(Self { directory, model, weights })
    }

    /// The frozen model of the retain loss: the weights of the directory at `path`, or a copy of the loaded ones where that
    /// is the same directory or none is named.
    pub(super) fn reference(&self, path: Option<&Path>) -> Result<Parameters<B>> {
        let backend = &self.model.backend;
        let layout = self.model.layout();
        let Some(path) = path.filter(|path| *path != self.directory.path) else {
            let mut copy = Parameters::zeros(backend, "reference weights", layout)?;
            copy.copy_from(backend, &self.weights)?;
            return Ok(copy);
        };
        let other = ModelDirectory::open(path)?;
        if !same_shape(&other.config, &self.model.config) {
            let problem = "its architecture is not that of the model to harden";
            let remedy = "use the model that the safeguard started from";
            return Err(Error::input(path.join("config.json"), problem, remedy));
        }
        Parameters::from_host(backend, "reference weights", layout, &other.read_weights()?)
    }
}

/// Whether weights of one architecture fit the other.
pub(super) fn same_shape(a: &ModelConfig, b: &ModelConfig) -> bool {
    let shape = |config: &ModelConfig| {
        let sizes = (config.vocab_size, config.hidden_size, config.intermediate_size, config.num_hidden_layers);
        let family = config.family.description();
        let tensors = (config.tie_word_embeddings, family.query_key_value_bias, family.head_norms);
        (sizes, config.attention(), tensors)
    };
    shape(a) == shape(b)
}

/// A data file, and how it is read for a model.
#[derive(Clone, Copy, Debug)]
pub struct StreamFile<'a> {
    /// The name of the stream, for messages.
    pub name: &'a str,
    /// The file, or a directory of them.
    pub data: &'a DataFile,
    /// Sequences of one batch.
    pub batch: usize,
    /// The longest sequence in tokens. The model's own limit counts where it is lower.
    pub max_length: usize,
    /// Whether each pass has its own random order; otherwise file order.
    pub shuffle: bool,
    /// Whether sequences lie one after another; otherwise they are padded to the longest of their batch.
    pub pack: bool,
    /// Seed of the order.
    pub seed: u64,
}

impl StreamFile<'_> {
    /// Opens the file and encodes its rows for `model`.
    pub fn open(&self, model: &ModelDirectory) -> Result<DataStream> {
        self.open_for(&model.path, &model.config)
    }

    /// As [`StreamFile::open`], for a model of this architecture whose tokenizer lies in `folder`.
    pub(super) fn open_for(&self, folder: &Path, config: &ModelConfig) -> Result<DataStream> {
        DataStream::open(self.name, self.data, folder, self.options(config))
    }

    /// Opens the file as a list of prompts, whatever stands behind them: each row is a prompt as `model` is given it, the
    /// generation prompt of its chat template included. Longer ones than sequences may be are left out, counted and
    /// announced: without its end a prompt is another.
    pub fn open_prompts(&self, model: &ModelDirectory, encoder: Option<&PromptEncoder>) -> Result<DataStream> {
        let options = self.options(&model.config);
        let prompts = read_prompts(self.data, encoder, "", RawText::Asked)?;
        let count = prompts.len();
        let fitting = prompts.into_iter().filter(|prompt| (2..=options.max_length).contains(&prompt.tokens.len()));
        // A row that is learned from its start is a prompt as a whole.
        let rows: Vec<_> = fitting.map(|prompt| (prompt.tokens.clone(), prompt.tokens)).collect();
        if rows.is_empty() {
            let problem = format!("none of its {count} prompts has 2 to {} tokens", options.max_length);
            return Err(Error::input(&self.data.path, problem, "give it prompts, or raise max_length"));
        }
        if rows.len() < count {
            let left_out = count - rows.len();
            tracing::warn!(
                "{}: {left_out} prompts of more than {} tokens were left out",
                self.name,
                options.max_length
            );
        }
        DataStream::from_samples(self.name, rows, options)
    }

    fn options(&self, config: &ModelConfig) -> StreamOptions {
        StreamOptions {
            batch: self.batch,
            max_length: self.max_length.min(config.max_position_embeddings),
            shuffle: self.shuffle,
            pack: self.pack,
            pad_token_id: config.pad_token_id.or_else(|| config.eos_token_ids.first().copied()).unwrap_or(0),
            vocab_size: config.vocab_size,
            seed: self.seed,
        }
    }
}
