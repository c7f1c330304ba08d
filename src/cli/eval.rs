//! `temper eval`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

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
    /// Longest sequence in tokens; longer ones are cut
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = parse::count)]
    pub max_length: usize,
    /// What is measured
    #[arg(long, value_enum, default_value_t = Form::Ppl)]
    pub form: Form,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// Perplexity of the text
    Ppl,
    /// Multiple choice as the TAR authors ask it: five examples, the letter without a space
    Mmlu,
    /// Multiple choice as lm-evaluation-harness asks it: no example, the letter after a space
    LmEval,
}

/// Measures a model.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let _ = arguments;
    todo!()
}
