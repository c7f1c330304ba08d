//! `temper eval`: measures a model directory on a data file.

mod answers;
mod config;
mod questions;
mod sequences;

use std::path::Path;

use serde::Serialize;

pub use answers::{Answer, Answers};
pub use config::{EvalConfig, EvalForm};

use super::LoadedModel;
use crate::error::{Error, Result};
use crate::eval::{ChoiceReport, ExactMatch, GenerateOptions, PASS_TOKENS, Perplexity, PromptForm, Sampling};
use crate::huggingface::{ModelDirectory, read_adapter};
use crate::model::Adapter;
use crate::objective::Subject;
use crate::ops::Backend;

/// A measurement that was taken.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Evaluation {
    /// Rows of the data that were read: sequences, questions or prompts, those that were left out among them.
    pub rows_read: usize,
    /// The result.
    #[serde(flatten)]
    pub report: EvalReport,
}

/// The result of a measurement; its variant follows from the form.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum EvalReport {
    /// Of [`EvalForm::Perplexity`].
    Perplexity(Perplexity),
    /// Of [`EvalForm::Exact`].
    Exact(ExactMatch),
    /// Of the forms that ask four-choice questions.
    Choice(ChoiceReport),
    /// Of [`EvalForm::Generate`] and [`EvalForm::Refusal`].
    Answers(Answers),
}

/// Measures the model of `config`, and writes its predictions where the configuration wants them.
///
/// # Errors
/// [`Error::Config`] for an option that the form does not read, [`Error::Input`] for files that cannot be used,
/// [`Error::NonFinite`] where the model's numbers are not.
pub fn eval<B: Backend>(backend: B, config: &EvalConfig) -> Result<Evaluation> {
    config.check()?;
    match config.form {
        EvalForm::Perplexity => sequences::perplexity(backend, config),
        EvalForm::Exact => sequences::exact(backend, config),
        EvalForm::Mmlu => questions::ask(backend, config, PromptForm::Mmlu),
        EvalForm::LmEval => questions::ask(backend, config, PromptForm::LmEval),
        EvalForm::Qi => questions::ask(backend, config, PromptForm::Qi),
        EvalForm::Generate | EvalForm::Refusal => answers::answer(backend, config),
    }
}

/// A model and the adapter on it.
struct Loaded<B: Backend> {
    base: LoadedModel<B>,
    adapter: Option<Adapter<B>>,
}

impl<B: Backend> Loaded<B> {
    fn new(backend: B, directory: ModelDirectory, config: &EvalConfig, positions: usize) -> Result<Self> {
        let base = LoadedModel::new(backend, directory, positions)?;
        let adapter = match &config.adapter {
            Some(path) => Some(adapter(path, &base)?),
            None => None,
        };
        Ok(Self { base, adapter })
    }

    /// For sequences as long as the configuration and the model allow.
    fn longest(backend: B, config: &EvalConfig) -> Result<Self> {
        let directory = ModelDirectory::open(&config.model)?;
        let positions = config.max_length.min(directory.config.max_position_embeddings);
        Self::new(backend, directory, config, positions)
    }

    fn subject(&self) -> Subject<'_, B> {
        Subject { weights: &self.base.weights, adapter: self.adapter.as_ref(), dropout: None }
    }

    /// The options of generation; `max_new_tokens` counts where the configuration says nothing.
    fn generate_options(&self, config: &EvalConfig, max_new_tokens: usize) -> Result<GenerateOptions> {
        let sampling = config.temperature.map(|temperature| Sampling {
            temperature,
            top_k: config.top_k,
            top_p: config.top_p.unwrap_or(1.0),
        });
        Ok(GenerateOptions {
            max_new_tokens: config.max_new_tokens.unwrap_or(max_new_tokens),
            stop: self.base.model.config.stop_tokens(&config.model)?,
            sampling,
            seed: config.seed.unwrap_or(0),
            batch: config.batch,
            pass_tokens: PASS_TOKENS,
        })
    }
}

fn adapter<B: Backend>(path: &Path, base: &LoadedModel<B>) -> Result<Adapter<B>> {
    let backend = &base.model.backend;
    let (shape, factors) = read_adapter(path, &base.model.config)?;
    let mut adapter = Adapter::zeros(backend, &base.model.config, shape)?;
    adapter.parameters.upload(backend, &factors)?;
    Ok(adapter)
}

/// Writes the file of predictions, if one is wanted: a JSON object a line.
fn write_predictions(config: &EvalConfig, rows: &[impl Serialize]) -> Result<()> {
    let Some(path) = &config.predictions else { return Ok(()) };
    let mut text = String::new();
    for row in rows {
        text += &serde_json::to_string(row).map_err(Error::encode(path))?;
        text.push('\n');
    }
    std::fs::write(path, text).map_err(Error::io("write", path))
}
