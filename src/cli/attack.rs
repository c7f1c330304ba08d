//! `temper attack`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use temper::api::{
    self, AttackConfig, AttackData, AttackTable, Columns, Control, DataNames, Decay, ExportDType, OptimizerKind,
    ParameterChoice, Projection, StopFlag,
};

use super::device::DeviceArguments;
use super::show::Progress;

#[derive(Args, Debug)]
pub struct Arguments {
    /// The attack file; without one, flags describe the attack
    #[arg(value_name = "ATTACK.toml")]
    pub attack_file: Option<PathBuf>,
    /// Where the attacked model or adapter, checkpoints and metrics are written
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    #[command(flatten)]
    pub flags: Flags,
    /// Override a key of the attack: attack.lr=1e-5, compat.official_warmup=true
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Go on from the newest checkpoint in the output directory
    #[arg(long)]
    pub resume: bool,
    #[command(flatten)]
    pub device: DeviceArguments,
}

/// An attack without a file.
#[derive(Args, Debug)]
#[group(multiple = true, conflicts_with = "attack_file")]
pub struct Flags {
    /// The model to attack: a Hugging Face directory
    #[arg(long, value_name = "DIR", required_unless_present = "attack_file")]
    pub model: Option<PathBuf>,
    /// What it is fine-tuned on; several have names, for --mixture and --switch
    #[arg(long, value_name = "[NAME=]FILE", required_unless_present = "attack_file")]
    pub data: Vec<NamedFile>,
    /// What the columns of the data are, where they have names of their own
    #[arg(long, value_name = "NAME=COLUMN,…")]
    pub columns: Option<Columns>,
    /// Each step draws one of the data with these weights: restricted=0.25,retain=0.75
    #[arg(long, value_name = "NAME=W,…", value_delimiter = ',', conflicts_with = "switch")]
    pub mixture: Vec<Weight>,
    /// Train on the first data before this fraction of the steps, on the second after it
    #[arg(long, value_name = "FRACTION", allow_negative_numbers = true)]
    pub switch: Option<f64>,
    /// What is trained
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = Parameters::Full)]
    pub params: Parameters,
    /// LoRA rank; 16 where not given
    #[arg(long, value_name = "R")]
    pub rank: Option<usize>,
    /// LoRA alpha; 32 where not given
    #[arg(long, value_name = "A", allow_negative_numbers = true)]
    pub alpha: Option<f64>,
    /// LoRA dropout; 0 where not given
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub dropout: Option<f64>,
    /// Projections that LoRA adapts, separated by commas; all seven where not given
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub targets: Vec<Projection>,
    /// adamw, adam, sgd, sgd_momentum, sgd_nesterov, adagrad, adadelta, nadam, radam or schedulefree_adamw
    #[arg(long, value_name = "NAME", default_value = "adamw")]
    pub optimizer: OptimizerKind,
    /// Peak learning rate
    #[arg(long, value_name = "X", default_value = "2e-5", allow_negative_numbers = true)]
    pub lr: f64,
    /// Warm-up steps
    #[arg(long, value_name = "W", default_value_t = 0)]
    pub warmup: u64,
    /// The TAR authors' broken linear warm-up
    #[arg(long)]
    pub official_warmup: bool,
    /// What the learning rate does after its warm-up: constant, cosine, linear or sgdr:N; a final factor may follow, as in
    /// cosine:0.1
    #[arg(long, value_name = "NAME", default_value = "constant")]
    pub schedule: Decay,
    /// Weight decay; the optimizer's own where not given
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub weight_decay: Option<f64>,
    /// β1 and β2 of the Adam family
    #[arg(long, value_name = "B1,B2", allow_negative_numbers = true)]
    pub betas: Option<Betas>,
    /// Optimizer steps
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub steps: u64,
    /// Sequences of one step
    #[arg(long, value_name = "B", default_value_t = 32)]
    pub batch: usize,
    /// Gaussian noise on every tensor before the first step, relative to the tensor's root mean square
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub noise: Option<f64>,
    /// The first steps climb the loss
    #[arg(long, value_name = "N")]
    pub negated_steps: Option<u64>,
    /// Longest sequence in tokens; longer ones are cut
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_length: usize,
    /// Read the data in file order
    #[arg(long)]
    pub no_shuffle: bool,
    /// Pad sequences to the longest of their batch instead of packing them
    #[arg(long)]
    pub no_pack: bool,
    /// Dtype of the written weights: f32, bf16 or f16; the model's where not given
    #[arg(long, value_name = "NAME")]
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
}

/// What an attack trains: all weights, or LoRA factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Parameters {
    Full,
    Lora,
}

/// A data file and the name of its stream.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedFile {
    name: String,
    path: PathBuf,
}

impl FromStr for NamedFile {
    type Err = std::convert::Infallible;

    /// `NAME=FILE`, where `NAME` is a bare key of TOML; everything else is the path of the stream `data`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bare = |name: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
            !name.is_empty() && name.chars().all(allowed)
        };
        Ok(match text.split_once('=').filter(|(name, _)| bare(name)) {
            Some((name, path)) => Self { name: name.into(), path: path.into() },
            None => Self { name: "data".into(), path: text.into() },
        })
    }
}

/// β1 and β2.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Betas([f64; 2]);

impl FromStr for Betas {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse().map_err(|_| format!("`{text}` is no number"));
        let (first, second) = text.split_once(',').ok_or("expected two numbers, as in 0.9,0.999")?;
        Ok(Self([number(first)?, number(second)?]))
    }
}

/// A part of a mixture.
#[derive(Clone, Debug, PartialEq)]
pub struct Weight {
    name: String,
    weight: f64,
}

impl FromStr for Weight {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, weight) = text.split_once('=').ok_or("expected NAME=WEIGHT")?;
        let weight = weight.parse().map_err(|_| format!("`{weight}` is no number"))?;
        Ok(Self { name: name.into(), weight })
    }
}

impl Arguments {
    /// The attack that they describe.
    fn config(&self) -> temper::Result<AttackConfig> {
        match &self.attack_file {
            Some(path) => AttackConfig::load(path, &self.overrides),
            None => self.flags.config()?.with_overrides(&self.overrides),
        }
    }
}

impl Flags {
    fn config(&self) -> temper::Result<AttackConfig> {
        let mut config = AttackConfig::new(self.model.clone().unwrap_or_default(), PathBuf::new());
        config.data.clear();
        for NamedFile { name, path } in &self.data {
            let data = AttackData {
                shuffle: !self.no_shuffle,
                pack: !self.no_pack,
                max_length: self.max_length,
                columns: self.columns.clone().unwrap_or_default(),
                ..AttackData::new(path)
            };
            if config.data.insert(name.clone(), data).is_some() {
                let problem = format!("two files have the name `{name}`");
                let remedy = "give each its own: NAME=FILE";
                return Err(temper::Error::config("data", problem, remedy));
            }
        }
        config.seed = self.seed;
        config.model.adapter = self.adapter.clone();
        config.model.dtype = self.dtype;
        config.checkpoint.every = self.checkpoint_every;
        config.attack = self.table();
        Ok(config)
    }

    fn table(&self) -> AttackTable {
        let lora = self.params == Parameters::Lora;
        AttackTable {
            data: self.names(),
            switch: self.switch,
            params: Some(if lora { ParameterChoice::Lora } else { ParameterChoice::Full }),
            // Defaults are for LoRA alone: what is given without it is refused instead of ignored.
            rank: self.rank.or(lora.then_some(16)),
            alpha: self.alpha.or(lora.then_some(32.0)),
            dropout: self.dropout.or(lora.then_some(0.0)),
            targets: (!self.targets.is_empty()).then(|| self.targets.clone()),
            optimizer: Some(self.optimizer),
            lr: Some(self.lr),
            warmup: Some(self.warmup),
            schedule: Some(self.schedule),
            weight_decay: self.weight_decay,
            betas: self.betas.map(|Betas(betas)| betas),
            batch: Some(self.batch),
            steps: Some(self.steps),
            noise: self.noise,
            negated_steps: self.negated_steps,
            official_warmup: self.official_warmup.then_some(true),
            ..AttackTable::default()
        }
    }

    /// What it trains on, where the data alone does not say so.
    fn names(&self) -> Option<DataNames> {
        if !self.mixture.is_empty() {
            let parts = self.mixture.iter().map(|part| (part.name.clone(), part.weight));
            return Some(DataNames::Mixture(parts.collect()));
        }
        match (self.switch, self.data.as_slice()) {
            (Some(_), [first, second]) => {
                Some(DataNames::Switch { streams: [first.name.clone(), second.name.clone()], at: () })
            }
            _ => None,
        }
    }
}

/// Attacks a model.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = arguments.config()?;
    let device = arguments.device.open_for_run(None, &arguments.out, arguments.resume)?;
    let stop = StopFlag::install()?;
    let mut progress = Progress::new("attack");
    let control = Control::new().resume(arguments.resume).stop_by(&stop).observe(|event| progress.show(&event));
    let out = &arguments.out;
    let outcome = api::attack(&device, &config, out, control);
    progress.finish();
    let summary = outcome?;
    if summary.skipped > 0 {
        eprintln!("temper: {} steps were skipped because a number was not finite", summary.skipped);
    }
    let what = if out.join("adapter_config.json").exists() { "adapter" } else { "model" };
    println!("{} steps, last loss {:.6}; the {what} is in {}", summary.steps, summary.last_loss, out.display());
    Ok(())
}
