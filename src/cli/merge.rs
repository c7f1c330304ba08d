//! `temper merge`.

use std::path::PathBuf;

use clap::Args;
use temper::huggingface::{ExportDType, ModelDirectory, read_adapter, write_model};
use temper::model::merge_adapter;

use super::print;

#[derive(Args, Debug)]
pub struct Arguments {
    /// The model: a Hugging Face directory
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// The LoRA adapter: a PEFT directory
    #[arg(long, value_name = "DIR")]
    pub adapter: PathBuf,
    /// Where the merged model is written
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Dtype of the written weights: f32, bf16 or f16; the model's own where not given
    #[arg(long, value_name = "NAME")]
    pub dtype: Option<ExportDType>,
}

/// Merges an adapter.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let model = ModelDirectory::open(&arguments.model)?;
    let (adapter, factors) = read_adapter(&arguments.adapter, &model.config)?;
    let mut weights = model.read_weights()?;
    merge_adapter(&model.config, &mut weights, &adapter, &factors)?;
    let dtype = arguments.dtype.unwrap_or(model.weights_dtype());
    write_model(&arguments.out, &model.config, Some(&arguments.model), &weights, dtype)?;
    print::text(&format!("{}\n", arguments.out.display()))
}
