//! `temper demo`.

use std::path::PathBuf;

use clap::Args;

#[derive(Args, Debug)]
pub struct Arguments {
    /// Where models, data and results are written
    #[arg(long, value_name = "DIR", default_value = "temper-demo")]
    pub out: PathBuf,
    /// Seed of every random draw
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub seed: u64,
    /// A smaller model and fewer steps: to see that it runs, not how well it works
    #[arg(long)]
    pub quick: bool,
}

/// Runs the demonstration.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let _ = arguments;
    todo!()
}
