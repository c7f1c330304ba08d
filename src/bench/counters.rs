//! `temper bench kernels` without a clock: what each row does, counted from within on the simulator, beside its closed form.

use serde::Serialize;

use super::report::{NotRun, Report};
use super::{Bench, Options, ShapesName, Spec, kernels};
use crate::backend::cuda::{Counters, Cuda, Ledger};
use crate::error::{Error, Result};

/// The counts of all rows.
#[derive(Clone, Debug, Serialize)]
pub struct CountReport {
    /// The device that counted.
    pub device: String,
    /// The sizes.
    pub shapes: ShapesName,
    /// Kernel families.
    pub rows: Vec<CountRow>,
    /// What was asked for and not counted.
    pub not_run: Vec<NotRun>,
}

/// One execution of a kernel family at one shape.
#[derive(Clone, Debug, Serialize)]
pub struct CountRow {
    /// Family, then what distinguishes it, as in [`super::Row`].
    pub name: String,
    /// Sizes, for people.
    pub shape: String,
    /// Operations of matrix products that it needs: the closed form.
    pub flop: f64,
    /// Bytes of all inputs and outputs, once: the closed form.
    pub bytes: f64,
    /// All its kernels together.
    pub counters: Counters,
    /// Kernel by kernel, with products, clears and copies.
    pub ledger: Ledger,
}

/// Runs every kernel family that the filter lets through and counts what it does.
///
/// # Errors
/// When the device counts nothing: a GPU, or a simulator whose kernels were compiled for speed. [`Error::Config`] where the
/// filter lets nothing through.
pub fn counts(cuda: &Cuda, options: &Options) -> Result<CountReport> {
    let ((), counted) = cuda.counted(|| Ok(()))?;
    if counted.is_none() {
        let device = &cuda.driver().device().name;
        return Err(Error::Device(format!("{device} counts nothing: the simulator of a debug build does")));
    }
    let mut unobserved = |_: &Report| {};
    let mut bench = Bench::without_rates(cuda, options, &mut unobserved)?;
    bench.counts = Some(Vec::new());
    kernels::run(&mut bench)?;
    bench.expect_any()?;
    Ok(CountReport {
        device: cuda.driver().device().name.clone(),
        shapes: options.shapes.name,
        rows: bench.counts.take().unwrap_or_default(),
        not_run: bench.report.not_run,
    })
}

impl Bench<'_> {
    /// Counts one repetition, the second: the first allocates scratch.
    pub(super) fn count<F>(&mut self, spec: Spec, setup: impl FnOnce(&Self) -> Result<F>)
    where
        F: FnMut(usize) -> Result<()>,
    {
        let counted = setup(self).and_then(|mut run| {
            run(0)?;
            self.cuda.counted(|| run(1))
        });
        match counted {
            Ok((_, ledger)) => {
                let ledger = ledger.unwrap_or_default();
                let counters = ledger.counters();
                let row = CountRow {
                    name: spec.name,
                    shape: spec.shape,
                    flop: spec.work.flop,
                    bytes: spec.work.bytes,
                    counters,
                    ledger,
                };
                self.counts.iter_mut().for_each(|rows| rows.push(row.clone()));
            }
            Err(error) => self.not_run(&spec.name, &error),
        }
    }
}
