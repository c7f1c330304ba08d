//! `temper doctor`.

use clap::Args;

#[derive(Args, Debug)]
pub struct Arguments {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Checks this machine.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let _ = arguments;
    todo!()
}
