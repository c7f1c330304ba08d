//! `temper plan`.

use std::path::PathBuf;

use clap::Args;

#[derive(Args, Debug)]
pub struct Arguments {
    /// The run file
    #[arg(value_name = "RUN.toml")]
    pub run_file: PathBuf,
    /// Plan for a GPU instead of this machine's CPU: h200, h100 or a100
    #[arg(long, value_name = "NAME")]
    pub gpu: Option<String>,
    /// Override a key of the run file
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Prints what a run will cost.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = temper::config::RunConfig::load(&arguments.run_file, &arguments.overrides)?;
    let _ = (config, &arguments.gpu, arguments.json);
    todo!()
}
