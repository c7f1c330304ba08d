//! Times of kernels and of training steps on a CUDA device, each beside the least time that the same device allows.
//!
//! A report first measures the device itself: the rate of a large matrix product and the bandwidth of a large copy, in
//! the same run. Then every row has the median of its device times, its arithmetic and its bytes, and the *floor*: the
//! longer of arithmetic / measured rate and bytes / measured bandwidth. `ratio` is time / floor. On the simulator the
//! same code runs and the figures are marked: they say nothing about a GPU.

mod count;
mod counters;
mod data;
mod kernels;
mod ledger;
mod rates;
mod report;
mod shapes;
mod steps;
mod tar;
mod timer;
mod tune;

pub use counters::{CountReport, CountRow, counts};
pub use ledger::{LedgerReport, StepLedger, ledgers};
pub use report::{DeviceReport, NotRun, Rates, Report, Row, StepRow};
pub use shapes::{BatchShape, Shapes, ShapesName};
pub use steps::Trains;
pub use timer::Effort;
pub use tune::{Tuned, Tuner, Workload};

use std::cell::RefCell;
use std::collections::BTreeSet;

use data::Data;
use rates::RateMeter;

use crate::backend::cuda::Cuda;
use crate::error::{Error, Result};
use crate::ops::DType;

/// What to measure, and how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// The sizes.
    pub shapes: Shapes,
    /// How often each row is repeated.
    pub effort: Effort,
    /// Only rows whose name contains this.
    pub filter: Option<String>,
}

impl Options {
    /// The sizes called `name`, with the effort that suits `cuda`.
    pub fn new(cuda: &Cuda, name: ShapesName) -> Self {
        let effort = if cuda.driver().is_simulated() { Effort::simulated() } else { Effort::measured() };
        Self { shapes: Shapes::named(name), effort, filter: None }
    }
}

/// Measures every kernel family. `observe` sees the report whenever it has another row, its last one.
///
/// # Errors
/// When the device's own rates cannot be measured; [`Error::Config`] where the filter lets nothing through. A row that fails is
/// reported in [`Report::not_run`].
pub fn kernels(cuda: &Cuda, options: &Options, observe: &mut dyn FnMut(&Report)) -> Result<Report> {
    let mut bench = Bench::new(cuda, options, observe)?;
    kernels::run(&mut bench)?;
    bench.expect_any()?;
    bench.finish()
}

/// Measures whole training steps of a model with random weights; `observe` as in [`kernels()`].
///
/// # Errors
/// As [`kernels()`].
pub fn steps(cuda: &Cuda, options: &Options, observe: &mut dyn FnMut(&Report)) -> Result<Report> {
    let mut bench = Bench::new(cuda, options, observe)?;
    steps::run(&mut bench)?;
    bench.expect_any()?;
    bench.finish()
}

/// Does `work`. A product of it that the device's library leaves to our own kernel is an error: everything here has the
/// shapes of a model, whose products would be several times slower.
fn by_library<R>(cuda: &Cuda, work: impl FnOnce() -> Result<R>) -> Result<R> {
    cuda.driver().take_fallbacks();
    let done = work()?;
    let fallbacks = cuda.driver().take_fallbacks();
    if fallbacks.is_empty() {
        return Ok(done);
    }
    Err(Error::Device(format!("the library left to our own kernel: {}", fallbacks.join("; "))))
}

/// Arithmetic and bytes that cannot be avoided.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Work {
    /// Operations of matrix products; a multiply and an add are two.
    flop: f64,
    /// Each input read once, each output written once.
    bytes: f64,
}

/// A row before it is measured.
struct Spec {
    name: String,
    shape: String,
    work: Work,
    /// Milliseconds of the same products by the device's library.
    library_milliseconds: Option<f64>,
}

impl Spec {
    fn new(name: impl Into<String>, shape: impl Into<String>, work: Work) -> Self {
        Self { name: name.into(), shape: shape.into(), work, library_milliseconds: None }
    }
}

/// A bench under way.
struct Bench<'a> {
    cuda: Cuda,
    options: &'a Options,
    data: Data,
    meter: RateMeter,
    rates: Rates,
    report: Report,
    observe: &'a mut dyn FnMut(&Report),
    /// Rows that are counted instead of timed.
    counts: Option<Vec<CountRow>>,
    /// The names that the filter was asked about.
    offered: RefCell<Vec<String>>,
}

impl<'a> Bench<'a> {
    fn new(cuda: &Cuda, options: &'a Options, observe: &'a mut dyn FnMut(&Report)) -> Result<Self> {
        let mut bench = Self::without_rates(cuda, options, observe)?;
        bench.rates = by_library(cuda, || bench.meter.measure(cuda, options.effort))?;
        bench.report.rates = bench.rates;
        Ok(bench)
    }

    /// A bench of what needs no clock.
    fn without_rates(cuda: &Cuda, options: &'a Options, observe: &'a mut dyn FnMut(&Report)) -> Result<Self> {
        let data = Data::new(cuda, options.shapes.pool_elements);
        let meter = RateMeter::new(cuda, &data, &options.shapes)?;
        let rates = Rates::default();
        let report = Report::new(cuda, options, rates);
        Ok(Self {
            cuda: cuda.clone(),
            options,
            data,
            meter,
            rates,
            report,
            observe,
            counts: None,
            offered: RefCell::default(),
        })
    }

    /// Whether the filter lets a row of this name through.
    fn wants(&self, name: &str) -> bool {
        self.offered.borrow_mut().push(name.into());
        self.lets_through(name)
    }

    fn lets_through(&self, name: &str) -> bool {
        self.options.filter.as_ref().is_none_or(|part| name.contains(part.as_str()))
    }

    /// Fails where the filter let nothing through.
    fn expect_any(&self) -> Result<()> {
        let offered = self.offered.borrow();
        if offered.iter().any(|name| self.lets_through(name)) {
            return Ok(());
        }
        let families: BTreeSet<&str> = offered.iter().map(|name| name.split('/').next().unwrap_or(name)).collect();
        let problem = format!("no row has `{}` in its name", self.options.filter.as_deref().unwrap_or_default());
        Err(Error::config("filter", problem, format!("there are {}", Vec::from_iter(families).join(", "))))
    }

    /// Measures one row; its median in milliseconds. `setup` makes the operands, and what it returns runs the operation:
    /// it is given the number of the repetition, by which it chooses its set of operands.
    fn row<F>(&mut self, spec: Spec, setup: impl FnOnce(&Self) -> Result<F>) -> Option<f64>
    where
        F: FnMut(usize) -> Result<()>,
    {
        if !self.wants(&spec.name) {
            return None;
        }
        self.measure(spec, setup)
    }

    /// As [`Bench::row`], whatever the filter says.
    fn measure<F>(&mut self, spec: Spec, setup: impl FnOnce(&Self) -> Result<F>) -> Option<f64>
    where
        F: FnMut(usize) -> Result<()>,
    {
        if self.counts.is_some() {
            self.count(spec, setup);
            return None;
        }
        let timing = by_library(&self.cuda, || {
            setup(self).and_then(|mut run| timer::time(&self.cuda, self.options.effort, &mut run))
        });
        match timing {
            Ok(timing) => {
                let row = Row::new(spec, timing, self.rates);
                self.report.rows.push(row);
                (self.observe)(&self.report);
                Some(timing.median)
            }
            Err(error) => {
                self.not_run(&spec.name, &error);
                None
            }
        }
    }

    fn not_run(&mut self, name: &str, error: &Error) {
        let out_of_memory = matches!(error, Error::Memory { .. });
        self.report.not_run.push(NotRun { name: name.into(), reason: error.to_string(), out_of_memory });
    }

    /// Sets of operands of `bytes` bytes each that a row rotates through, so that no cache holds a set when its turn
    /// comes again.
    fn sets(&self, bytes: f64) -> usize {
        self.options.shapes.sets(bytes)
    }

    /// Bytes of a weight or an activation.
    fn element(&self) -> f64 {
        self.cuda_dtype().bytes() as f64
    }

    fn cuda_dtype(&self) -> DType {
        use crate::ops::Backend;
        self.cuda.compute_dtype()
    }

    /// The report, with the device's rate once more: a device that has become slower shows.
    fn finish(mut self) -> Result<Report> {
        let rate = self.meter.matmul_rate(&self.cuda, self.options.effort)?;
        self.report.rates.matmul_teraflops_per_second_at_end = rate;
        Ok(self.report)
    }
}
