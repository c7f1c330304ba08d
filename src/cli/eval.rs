//! `temper eval`.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use temper::data::{RawRow, Tokenizer, rows};
use temper::eval::{ChoiceReport, PromptForm, Question, four_choice, perplexity};
use temper::model::{Adapter, read_adapter};
use temper::objective::{Evaluator, Subject};
use temper::ops::Backend;
use temper::run::{LoadedModel, open_stream};
use temper::{Error, Result};

use super::device::{DeviceArguments, on_device};
use super::{parse, print};

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
    /// Longest sequence in tokens; longer ones are cut (text) or left out (questions)
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = parse::count)]
    pub max_length: usize,
    /// What is measured
    #[arg(long, value_enum, default_value_t = Form::Ppl)]
    pub form: Form,
    /// Questions with answers to show as examples, of the same subject where they have one
    #[arg(long, value_name = "FILE")]
    pub shots: Option<PathBuf>,
    /// How many examples
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub num_shots: usize,
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
    /// Multiple choice as the TAR authors ask it: the letter without a space before it
    Mmlu,
    /// Multiple choice as lm-evaluation-harness asks it: the letter after a space
    LmEval,
}

/// Measures a model.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let form = match arguments.form {
        Form::Ppl => return on_device!(arguments.device.open()?, backend => measure_perplexity(backend, arguments)),
        Form::Mmlu => PromptForm::Mmlu,
        Form::LmEval => PromptForm::LmEval,
    };
    let report = on_device!(arguments.device.open()?, backend => ask(backend, arguments, form))?;
    if let Some(path) = &arguments.predictions {
        let lines: Vec<String> = report.predictions.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
        std::fs::write(path, lines.join("\n") + "\n").map_err(Error::io("write", path))?;
    }
    if arguments.json {
        return print::json(&report);
    }
    let subject = |(name, (accuracy, count)): (&String, &(f64, usize))| {
        let name = if name.is_empty() { "(no subject)" } else { name };
        [name.to_string(), format!("{:.4}", accuracy), count.to_string()]
    };
    let mut rows: Vec<[String; 3]> = report.subjects.iter().map(subject).collect();
    rows.push(["all".into(), format!("{:.4}", report.accuracy), report.questions.to_string()]);
    print::text(&print::table(["subject", "accuracy", "questions"], &rows))?;
    match report.too_long {
        0 => Ok(()),
        count => print::text(&format!("{count} questions are longer than --max-length and were not asked\n")),
    }
}

fn measure_perplexity<B: Backend>(backend: B, arguments: &Arguments) -> anyhow::Result<()> {
    let source = temper::model::ModelDirectory::open(&arguments.model)?;
    let (batch, length) = (arguments.batch, arguments.max_length);
    let stream = open_stream("data", &arguments.data, &source, batch, length, (false, true), 0)?;
    let loaded = LoadedModel::open(backend, &arguments.model, stream.longest())?;
    let adapter = adapter(arguments, &loaded)?;
    let adapters: Vec<&Adapter<B>> = adapter.iter().collect();
    let mut evaluator = Evaluator::new(loaded.model.clone(), stream.max_batch_tokens(), &adapters)?;
    let subject = Subject { weights: &loaded.weights, adapter: adapter.as_ref(), dropout: None };
    let measured = perplexity(&mut evaluator, subject, stream.all_batches()?)?;
    if arguments.json {
        return print::json(&measured);
    }
    let (loss, tokens) = (measured.loss, measured.tokens);
    print::text(&format!("loss {loss:.6}  perplexity {:.4}  tokens {tokens}\n", measured.perplexity))
}

fn adapter<B: Backend>(arguments: &Arguments, loaded: &LoadedModel<B>) -> Result<Option<Adapter<B>>> {
    let Some(path) = &arguments.adapter else { return Ok(None) };
    let (config, factors) = read_adapter(path, &loaded.model.config)?;
    let backend = &loaded.model.backend;
    let mut adapter = Adapter::zeros(backend, &loaded.model.config, config)?;
    adapter.parameters.upload(backend, &factors)?;
    Ok(Some(adapter))
}

fn ask<B: Backend>(backend: B, arguments: &Arguments, form: PromptForm) -> Result<ChoiceReport> {
    let config = temper::model::ModelConfig::from_directory(&arguments.model)?;
    let positions = arguments.max_length.min(config.max_position_embeddings);
    let loaded = LoadedModel::open(backend, &arguments.model, positions)?;
    let adapter = adapter(arguments, &loaded)?;
    let adapters: Vec<&Adapter<B>> = adapter.iter().collect();
    let mut evaluator = Evaluator::new(loaded.model.clone(), 4 * positions, &adapters)?;
    let questions = questions(&arguments.data)?;
    let examples = arguments.shots.as_deref().map(self::questions).transpose()?.unwrap_or_default();
    let shots = |index: usize| -> Vec<Question> {
        let same = |example: &&Question| example.subject == questions[index].subject;
        examples.iter().filter(same).take(arguments.num_shots).cloned().collect()
    };
    let tokenizer = Tokenizer::open(&arguments.model, config.vocab_size)?;
    let encode = |text: &str, start: bool| {
        let refuse = |problem| Error::input(&arguments.model, problem, "use the model's own tokenizer");
        Ok(tokenizer.encode(text, start).map_err(refuse)?.iter().map(|token| token.id).collect())
    };
    let subject = Subject { weights: &loaded.weights, adapter: adapter.as_ref(), dropout: None };
    four_choice(&mut evaluator, subject, &questions, &shots, form, &encode)
}

fn questions(path: &Path) -> Result<Vec<Question>> {
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
