//! `temper eval`: its arguments, which of them go with which form, and what the forms share.

mod answers;
mod questions;
mod sequences;

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::Serialize;
use temper::eval::{GenerateOptions, PASS_TOKENS, PromptForm, Sampling};
use temper::huggingface::read_adapter;
use temper::model::{Adapter, ModelConfig};
use temper::objective::Subject;
use temper::ops::Backend;
use temper::run::LoadedModel;
use temper::{Error, Result};

use super::device::{DeviceArguments, on_device};
use super::parse;

#[derive(Args, Debug)]
pub struct Arguments {
    /// The model: a Hugging Face directory
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// The data set
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// LoRA adapter on the model
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Sequences of one batch
    #[arg(long, value_name = "B", default_value_t = 8, value_parser = parse::count)]
    pub batch: usize,
    /// Longest sequence in tokens; longer ones are cut (text), left out (questions) or refused (prompts)
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = parse::count)]
    pub max_length: usize,
    /// What is measured
    #[arg(long, value_enum, default_value_t = Form::Ppl)]
    pub form: Form,
    /// Questions with answers to show as examples, of the same subject where they have one
    #[arg(long, value_name = "FILE")]
    pub shots: Option<PathBuf>,
    /// How many examples [default: 5]
    #[arg(long, value_name = "N")]
    pub num_shots: Option<usize>,
    /// Longest answer in tokens [default: 256; qi: 4]
    #[arg(long, value_name = "N", value_parser = parse::count)]
    pub max_new_tokens: Option<usize>,
    /// Draw tokens, with logits divided by T, instead of taking the most probable one
    #[arg(long, value_name = "T", value_parser = parse::positive)]
    pub temperature: Option<f64>,
    /// Draw from the most probable tokens that have this probability together
    #[arg(long, value_name = "P")]
    pub top_p: Option<f64>,
    /// Draw from the K most probable tokens
    #[arg(long, value_name = "K", value_parser = parse::count)]
    pub top_k: Option<usize>,
    /// Seed of the draws [default: 0]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Beginning of every answer, put into the model's mouth
    #[arg(long, value_name = "TEXT")]
    pub prefill: Option<String>,
    /// Program with arguments that scores answers: {"prompt", "response"} a line in, a number a line out
    #[arg(long, value_name = "COMMAND")]
    pub judge: Option<String>,
    /// How long the judge may take [default: 3600]
    #[arg(long, value_name = "N", value_parser = parse::positive)]
    pub judge_seconds: Option<f64>,
    /// Write every answer to this file, as JSONL
    #[arg(long, value_name = "FILE")]
    pub predictions: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub device: DeviceArguments,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// Perplexity of the text
    Ppl,
    /// Share of the sequences whose learned tokens greedy decoding writes
    Exact,
    /// Multiple choice as the TAR authors ask it: the letter without a space before it
    Mmlu,
    /// Multiple choice as lm-evaluation-harness asks it: the letter after a space
    LmEval,
    /// Multiple choice as Qi et al. ask it: no examples, the answer is written and has to be the letter
    Qi,
    /// Answers to prompts
    Generate,
    /// Share of prompts that the model refuses
    Refusal,
}

/// Measures a model.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    check(arguments)?;
    on_device!(arguments.device.open()?, backend => measure(backend, arguments))
}

fn measure<B: Backend>(backend: B, arguments: &Arguments) -> anyhow::Result<()> {
    match arguments.form {
        Form::Ppl => sequences::perplexity(backend, arguments),
        Form::Exact => sequences::exact(backend, arguments),
        Form::Mmlu => questions::run(backend, arguments, PromptForm::Mmlu),
        Form::LmEval => questions::run(backend, arguments, PromptForm::LmEval),
        Form::Qi => questions::run(backend, arguments, PromptForm::Qi),
        Form::Generate | Form::Refusal => answers::run(backend, arguments),
    }
}

/// Fails if an option is given that the form does not read: silence would let it seem to count.
fn check(arguments: &Arguments) -> Result<()> {
    use Form::{Exact, Generate, LmEval, Mmlu, Qi, Refusal};
    let a = arguments;
    let (asks, draws, answers) = (vec![Mmlu, LmEval], vec![Qi, Generate, Refusal], vec![Generate, Refusal]);
    for (option, given, forms) in [
        ("--shots", a.shots.is_some(), &asks),
        ("--num-shots", a.num_shots.is_some(), &asks),
        ("--max-new-tokens", a.max_new_tokens.is_some(), &draws),
        ("--temperature", a.temperature.is_some(), &draws),
        ("--top-p", a.top_p.is_some(), &draws),
        ("--top-k", a.top_k.is_some(), &draws),
        ("--seed", a.seed.is_some(), &draws),
        ("--prefill", a.prefill.is_some(), &answers),
        ("--judge", a.judge.is_some(), &answers),
        ("--judge-seconds", a.judge_seconds.is_some(), &answers),
        ("--predictions", a.predictions.is_some(), &[vec![Exact], asks.clone(), draws.clone()].concat()),
    ] {
        if given && !forms.contains(&a.form) {
            let name = |form: &Form| form.to_possible_value().map(|value| value.get_name().to_string());
            let known: Vec<String> = forms.iter().filter_map(name).collect();
            let problem = format!("it means nothing to --form {}", name(&a.form).unwrap_or_default());
            return Err(Error::config(option, problem, format!("leave it out, or use --form {}", known.join(" or "))));
        }
    }
    let drawn = [("--top-p", a.top_p.is_some()), ("--top-k", a.top_k.is_some()), ("--seed", a.seed.is_some())];
    match drawn.iter().find(|(_, given)| *given && a.temperature.is_none()) {
        Some((option, _)) => {
            let problem = "it means nothing where the most probable token is taken";
            Err(Error::config(*option, problem, "leave it out, or draw with --temperature"))
        }
        None => Ok(()),
    }
}

/// How the forms that generate do it.
fn generate_options(arguments: &Arguments, config: &ModelConfig, most: usize) -> Result<GenerateOptions> {
    let sampling = arguments.temperature.map(|temperature| Sampling {
        temperature,
        top_k: arguments.top_k,
        top_p: arguments.top_p.unwrap_or(1.0),
    });
    Ok(GenerateOptions {
        max_new_tokens: arguments.max_new_tokens.unwrap_or(most),
        stop: config.stop_tokens(&arguments.model)?,
        sampling,
        seed: arguments.seed.unwrap_or(0),
        batch: arguments.batch,
        pass_tokens: PASS_TOKENS,
    })
}

/// A model and the adapter on it.
struct Loaded<B: Backend> {
    model: LoadedModel<B>,
    adapter: Option<Adapter<B>>,
}

impl<B: Backend> Loaded<B> {
    fn open(backend: B, arguments: &Arguments, positions: usize) -> Result<Self> {
        let model = LoadedModel::open(backend, &arguments.model, positions)?;
        let adapter = arguments.adapter.as_deref().map(|path| adapter(path, &model)).transpose()?;
        Ok(Self { model, adapter })
    }

    /// For sequences as long as the arguments and the model allow.
    fn open_longest(backend: B, arguments: &Arguments) -> Result<Self> {
        let config = ModelConfig::from_directory(&arguments.model)?;
        Self::open(backend, arguments, arguments.max_length.min(config.max_position_embeddings))
    }

    fn subject(&self) -> Subject<'_, B> {
        Subject { weights: &self.model.weights, adapter: self.adapter.as_ref(), dropout: None }
    }
}

fn adapter<B: Backend>(path: &Path, loaded: &LoadedModel<B>) -> Result<Adapter<B>> {
    let (config, factors) = read_adapter(path, &loaded.model.config)?;
    let backend = &loaded.model.backend;
    let mut adapter = Adapter::zeros(backend, &loaded.model.config, config)?;
    adapter.parameters.upload(backend, &factors)?;
    Ok(adapter)
}

/// Writes the file of answers, if one is wanted.
fn write_predictions(arguments: &Arguments, rows: &[impl Serialize]) -> anyhow::Result<()> {
    let Some(path) = &arguments.predictions else { return Ok(()) };
    let lines = rows.iter().map(serde_json::to_string).collect::<Result<Vec<String>, _>>()?;
    let text: String = lines.into_iter().map(|line| line + "\n").collect();
    Ok(std::fs::write(path, text).map_err(Error::io("write", path))?)
}
