//! `temper ckpt`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the checkpoints of an output directory
    Ls(DirectoryArguments),
    /// Check every checksum of a checkpoint, or of all in an output directory
    Verify(DirectoryArguments),
}

#[derive(Args, Debug)]
pub struct DirectoryArguments {
    /// The directory
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Runs a command on checkpoints.
pub fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Ls(arguments) | Command::Verify(arguments) => {
            let _ = arguments;
            todo!()
        }
    }
}
