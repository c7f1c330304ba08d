//! `temper harden`.

use std::path::PathBuf;

use clap::Args;
use temper::api::{self, Control, RunConfig, StopFlag};

use super::device::DeviceArguments;
use super::show::Progress;

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
    #[command(flatten)]
    pub device: DeviceArguments,
}

/// Hardens a model.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut config = RunConfig::load(&arguments.run_file, &arguments.overrides)?;
    let device = arguments.device.open_for_run(config.tuning.as_ref(), &arguments.out, arguments.resume)?;
    if arguments.device.tuning.is_some() {
        config.tuning.clone_from(&arguments.device.tuning);
    }
    let stop = StopFlag::install()?;
    let mut progress = Progress::new("harden");
    let control = Control::new().resume(arguments.resume).stop_by(&stop).observe(|event| progress.show(&event));
    let outcome = api::harden(&device, &config, &arguments.out, control);
    progress.finish();
    let summary = outcome?;
    if summary.skipped > 0 {
        eprintln!("temper: {} outer steps were skipped because a number was not finite", summary.skipped);
    }
    println!("{} outer steps; the hardened model is in {}", summary.steps, arguments.out.display());
    Ok(())
}
