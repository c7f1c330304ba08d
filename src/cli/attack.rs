//! `temper attack`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use temper::model::{ExportDType, Projection};
use temper::optimizer::OptimizerKind;

use super::parse::{self, DecayArgument};

#[derive(Args, Debug)]
pub struct Arguments {
    /// The model to attack: a Hugging Face directory
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// What it is fine-tuned on
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// Where the attacked model or adapter, checkpoints and metrics are written
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// What is trained
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = Parameters::Full)]
    pub params: Parameters,
    /// LoRA rank
    #[arg(long, value_name = "R", default_value_t = 16, value_parser = parse::count)]
    pub rank: usize,
    /// LoRA alpha
    #[arg(long, value_name = "A", default_value_t = 32.0, allow_negative_numbers = true, value_parser = parse::positive)]
    pub alpha: f64,
    /// LoRA dropout
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true, value_parser = parse::dropout)]
    pub dropout: f64,
    /// Projections that LoRA adapts, separated by commas; all seven where not given
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = parse::projection)]
    pub targets: Vec<Projection>,
    /// adamw, adam, sgd_momentum, sgd_nesterov, adagrad, adadelta, nadam, radam or schedulefree_adamw
    #[arg(long, value_name = "NAME", default_value = "adamw", value_parser = parse::optimizer)]
    pub optimizer: OptimizerKind,
    /// Peak learning rate
    #[arg(long, value_name = "X", default_value = "2e-5", allow_negative_numbers = true, value_parser = parse::positive)]
    pub lr: f64,
    /// Warm-up steps
    #[arg(long, value_name = "W", default_value_t = 0)]
    pub warmup: u64,
    /// What the learning rate does after its warm-up: constant, cosine, linear or sgdr:N
    #[arg(long, value_name = "NAME", default_value = "constant", value_parser = parse::decay)]
    pub schedule: DecayArgument,
    /// Optimizer steps
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..))]
    pub steps: u64,
    /// Sequences of one step
    #[arg(long, value_name = "B", default_value_t = 32, value_parser = parse::count)]
    pub batch: usize,
    /// Longest sequence in tokens; longer ones are cut
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = parse::count)]
    pub max_length: usize,
    /// Read the data in file order
    #[arg(long)]
    pub no_shuffle: bool,
    /// Pad sequences to the longest of their batch instead of packing them
    #[arg(long)]
    pub no_pack: bool,
    /// Dtype of the written weights: f32, bf16 or f16; that of the model where not given
    #[arg(long, value_name = "NAME", value_parser = parse::dtype)]
    pub dtype: Option<ExportDType>,
    /// LoRA adapter to start from
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Seed of every random draw
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub seed: u64,
    /// Go on from the newest checkpoint in the output directory
    #[arg(long)]
    pub resume: bool,
    /// Set a key of [compat]: compat.official_warmup=true
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// What an attack trains: all weights, or LoRA factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Parameters {
    Full,
    Lora,
}

/// Attacks a model.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let _ = arguments;
    todo!()
}
