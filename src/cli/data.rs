//! `temper data inspect`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use temper::api::{Columns, DataFile};
use temper::data::inspect;

use super::print;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show a sample as the model sees it: rendered, tokenized, with the tokens that are trained on marked
    Inspect(InspectArguments),
}

#[derive(Args, Debug)]
pub struct InspectArguments {
    /// The model whose tokenizer and chat template are used: a Hugging Face directory
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// The data file, or a directory of them
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// What its columns are, where they have names of their own
    #[arg(long, value_name = "NAME=COLUMN,…")]
    pub columns: Option<Columns>,
    /// Which sample, counted from 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub index: usize,
    /// Longest sequence in tokens; what is beyond it is cut off, as in training
    #[arg(long, value_name = "TOKENS")]
    pub max_length: Option<usize>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Runs a command on data.
pub fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Inspect(arguments) => {
            let data =
                DataFile { path: arguments.data.clone(), columns: arguments.columns.clone().unwrap_or_default() };
            let max_length = arguments.max_length.unwrap_or(usize::MAX);
            let inspection = inspect(data, &arguments.model, arguments.index, max_length)?;
            if arguments.json { print::json(&inspection) } else { print::text(&inspection.to_string()) }
        }
    }
}
