//! `temper bench step` without a device: the ledger of each kind of step at any size, from a dry run.

use serde::Serialize;

use super::report::{NotRun, Report};
use super::{Bench, Options, ShapesName, steps};
use crate::backend::cuda::{Cuda, Ledger};
use crate::error::Result;
use crate::ops::DType;

/// Random numbers that a dry run draws: their values go nowhere.
const POOL: usize = (1 << 20) - 3;

/// The ledgers of all kinds of steps.
#[derive(Clone, Debug, Serialize)]
pub struct LedgerReport {
    /// The device that was imagined.
    pub device: String,
    /// The sizes.
    pub shapes: ShapesName,
    /// Steps.
    pub steps: Vec<StepLedger>,
    /// What was asked for and not counted.
    pub not_run: Vec<NotRun>,
}

/// Everything that one step, after the first, tells the device.
#[derive(Clone, Debug, Serialize)]
pub struct StepLedger {
    /// As in [`super::StepRow`].
    pub name: String,
    /// Layers of the model.
    pub layers: usize,
    /// Sequences of a batch.
    pub sequences: usize,
    /// Tokens of a batch.
    pub tokens: usize,
    /// Operations of matrix products and of causal attention that the step needs.
    pub useful_flop: f64,
    /// Operations that its products and kernels execute.
    pub executed_flop: f64,
    /// Bytes that the step moves.
    pub bytes: f64,
    /// Of these, bytes that fit beside the arithmetic of the same product or kernel.
    pub hidden_bytes: f64,
    /// Where all of it comes from.
    pub ledger: Ledger,
}

/// Counts the steps that the filter lets through, in bf16 on an H200 of which only the sizes matter.
///
/// # Errors
/// When the memory settings of a run cannot be planned. [`Error::Config`](crate::Error::Config) where the filter lets nothing
/// through.
pub fn ledgers(options: &Options) -> Result<LedgerReport> {
    let cuda = Cuda::dry(DType::Bf16)?;
    let mut dry = options.clone();
    dry.shapes.pool_elements = dry.shapes.pool_elements.min(POOL);
    let mut unobserved = |_: &Report| {};
    let mut bench = Bench::without_rates(&cuda, &dry, &mut unobserved)?;
    let steps = steps::ledgers(&mut bench)?;
    bench.expect_any()?;
    let device = cuda.driver().device().name.clone();
    Ok(LedgerReport { device, shapes: options.shapes.name, steps, not_run: bench.report.not_run })
}
