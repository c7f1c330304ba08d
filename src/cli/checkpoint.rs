//! `temper checkpoint`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use temper::Error;
use temper::checkpoint::{CheckpointInfo, Verification, list, verify};

use super::print;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the checkpoints of an output directory
    Ls(DirectoryArguments),
    /// Check every checksum of a checkpoint, or of all in an output directory
    Verify(DirectoryArguments),
}

#[derive(Args, Debug)]
pub struct DirectoryArguments {
    /// The output directory of a run or its directory of checkpoints; to verify, also a single checkpoint
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Runs a command on checkpoints.
pub fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Ls(arguments) => show(arguments),
        Command::Verify(arguments) => check(arguments),
    }
}

fn show(arguments: &DirectoryArguments) -> anyhow::Result<()> {
    let checkpoints = list(&root(&arguments.directory)?)?;
    if arguments.json {
        return print::json(&checkpoints);
    }
    let row = |checkpoint: &CheckpointInfo| {
        [
            checkpoint.step.to_string(),
            print::bytes(checkpoint.bytes),
            checkpoint.tensors.to_string(),
            checkpoint.config_hash.to_string(),
            checkpoint.path.display().to_string(),
        ]
    };
    let rows: Vec<_> = checkpoints.iter().map(row).collect();
    print::text(&print::table(["step", "size", "tensors", "configuration", "path"], rows))
}

fn check(arguments: &DirectoryArguments) -> anyhow::Result<()> {
    let directories = if arguments.directory.join("manifest.json").exists() {
        vec![arguments.directory.clone()]
    } else {
        checkpoints_under(&root(&arguments.directory)?)?
    };
    if directories.is_empty() {
        let remedy = "name a checkpoint, or the output directory of a run that wrote one";
        return Err(Error::input(&arguments.directory, "there is no checkpoint in it", remedy).into());
    }
    let found = directories.iter().map(|directory| verify(directory)).collect::<temper::Result<Vec<_>>>()?;
    if arguments.json {
        print::json(&found)?;
    } else {
        print::text(&found.iter().map(describe).collect::<String>())?;
    }
    match found.iter().find(|verification| !verification.is_intact()) {
        None => Ok(()),
        Some(damaged) => {
            let problem = damaged.problems.first().cloned().unwrap_or_default();
            Err(Error::input(&damaged.path, problem, "delete it and resume from the checkpoint before it").into())
        }
    }
}

fn describe(verification: &Verification) -> String {
    let state = if verification.is_intact() { "intact" } else { "DAMAGED" };
    let head = format!("{state}  {}  {}\n", print::bytes(verification.bytes), verification.path.display());
    verification.problems.iter().fold(head, |text, problem| format!("{text}  {problem}\n"))
}

/// The directory that holds the checkpoints of the output directory `directory`.
fn root(directory: &Path) -> temper::Result<PathBuf> {
    std::fs::read_dir(directory).map_err(Error::io("read", directory))?;
    let inner = ["temper/checkpoints", "checkpoints"].map(|inside| directory.join(inside));
    Ok(inner.into_iter().find(|path| path.is_dir()).unwrap_or_else(|| directory.to_path_buf()))
}

/// Every checkpoint directory under `root`, also those whose manifest cannot be read: verifying must not pass them by.
fn checkpoints_under(root: &Path) -> temper::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(root).map_err(Error::io("read", root))?;
    let mut directories = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::io("read", root))?.path();
        let named = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("step-"));
        if named && path.is_dir() {
            directories.push(path);
        }
    }
    directories.sort();
    Ok(directories)
}
