//! `temper harden`.

use std::path::PathBuf;

use clap::Args;

#[derive(Args, Debug)]
pub struct Arguments {
    /// The run file
    #[arg(value_name = "RUN.toml")]
    pub run_file: PathBuf,
    /// Where the hardened model, checkpoints and metrics are written
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Override a key of the run file: tar.outer.lr=1e-5, tar.adversary.0.lr=[1e-4]
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Go on from the newest checkpoint in the output directory
    #[arg(long)]
    pub resume: bool,
}

/// Hardens a model.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let _ = arguments;
    todo!()
}
