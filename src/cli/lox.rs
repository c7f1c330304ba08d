//! `temper lox`.

use std::path::PathBuf;

use clap::Args;
use temper::api::{self, Extrapolation, LoxConfig};
use temper::huggingface::ExportDType;

use super::print;

#[derive(Args, Debug)]
pub struct Arguments {
    /// The model that was aligned: a Hugging Face directory
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// The model that the alignment started from
    #[arg(long, value_name = "DIR")]
    pub base: PathBuf,
    /// Where the extrapolated model is written
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Singular vectors of each matrix's change that are followed
    #[arg(long, value_name = "N", default_value_t = Extrapolation::default().rank)]
    pub rank: usize,
    /// Factor on what they add; 0 changes nothing
    #[arg(long, value_name = "X", default_value_t = Extrapolation::default().coefficient)]
    pub coefficient: f64,
    /// Dtype of the written weights: f32, bf16 or f16; the aligned model's own where not given
    #[arg(long, value_name = "NAME")]
    pub dtype: Option<ExportDType>,
}

/// Extrapolates an alignment.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = LoxConfig {
        model: arguments.model.clone(),
        base: arguments.base.clone(),
        extrapolation: Extrapolation { rank: arguments.rank, coefficient: arguments.coefficient },
        dtype: arguments.dtype,
    };
    api::lox(&config, &arguments.out)?;
    print::text(&format!("{}\n", arguments.out.display()))
}
