//! `temper attack`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use temper::api::{self, AttackConfig, Control, StopFlag};
use temper::config::{CompatConfig, SchedulefreePoint};
use temper::huggingface::ExportDType;
use temper::model::{AdapterConfig, Projection};
use temper::optimizer::{OptimizerConfig, OptimizerKind};

use super::device::DeviceArguments;
use super::parse::{self, DecayArgument};
use super::show::Progress;

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
    /// Steps between checkpoints; 0 for none but the one at a stop
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub checkpoint_every: u64,
    /// Go on from the newest checkpoint in the output directory
    #[arg(long)]
    pub resume: bool,
    /// Set a key of [compat]: compat.official_warmup=true
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    #[command(flatten)]
    pub device: DeviceArguments,
}

/// What an attack trains: all weights, or LoRA factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Parameters {
    Full,
    Lora,
}

impl Arguments {
    /// The attack that they describe.
    fn config(&self) -> temper::Result<AttackConfig> {
        let compat = CompatConfig::from_overrides(&self.overrides)?;
        let mut schedule = self.schedule.schedule(self.warmup, self.steps);
        schedule.official_warmup = compat.official_warmup;
        let targets = match self.targets.as_slice() {
            [] => Projection::ALL.into(),
            some => some.iter().copied().collect(),
        };
        let adapter = AdapterConfig {
            rank: self.rank,
            alpha: self.alpha,
            dropout: self.dropout,
            rank_stabilised: false,
            targets,
        };
        Ok(AttackConfig {
            model: self.model.clone(),
            data: self.data.clone(),
            out: self.out.clone(),
            adapter: (self.params == Parameters::Lora).then_some(adapter),
            start_adapter: self.adapter.clone(),
            optimizer: OptimizerConfig { schedule, ..OptimizerConfig::new(self.optimizer, self.lr) },
            steps: self.steps,
            batch: self.batch,
            max_length: self.max_length,
            shuffle: !self.no_shuffle,
            pack: !self.no_pack,
            dtype: self.dtype,
            train_point: compat.schedulefree_point == SchedulefreePoint::Train,
            seed: self.seed,
            checkpoint_every: self.checkpoint_every,
        })
    }
}

/// Attacks a model.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = arguments.config()?;
    let device = arguments.device.open()?;
    let stop = StopFlag::install()?;
    let mut progress = Progress::new("attack");
    let control = Control::new().resume(arguments.resume).stop_by(&stop).observe(|event| progress.show(&event));
    let outcome = api::attack(&device, &config, control);
    progress.finish();
    let summary = outcome?;
    if summary.skipped > 0 {
        eprintln!("temper: {} steps were skipped because a number was not finite", summary.skipped);
    }
    let what = if config.adapter.is_some() { "adapter" } else { "model" };
    println!("{} steps, last loss {:.6}; the {what} is in {}", summary.steps, summary.last_loss, config.out.display());
    Ok(())
}
