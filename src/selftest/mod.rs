//! The self-test: proves a device. Every kernel, at odd and at real shapes, with fresh random inputs, against formulas
//! that are evaluated here in f64 and share no code with a backend; then one outer step of the nested loop against the
//! CPU backend.
//!
//! To test a new kernel, add a case to the list at the top of its family's file in `cases/`, and its formula to
//! `reference`. A `Trial` does the rest: operands, poisoned outputs, the second run that must give the
//! same bits, samples of large outputs, and the row of the table.

mod cases;
mod compare;
mod nested;
mod reference;
mod trial;

use std::time::Instant;

use serde::Serialize;

use crate::backend::cuda::Cuda;
use crate::error::{Error, Result};
use crate::ops::{Backend, DType};
use cases::Case;
use trial::Trial;

pub use compare::{Comparison, compare};

/// What to test, and with which numbers.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Seed of all inputs.
    pub seed: u64,
    /// Also the shapes of Llama-3-8B: a minute or two on a GPU, days in the simulator.
    pub full: bool,
    /// Only the operations whose names contain this.
    pub only: String,
}

/// One comparison: a line of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The operation, and which of its outputs.
    pub operation: String,
    /// How the device keeps weights and activations: `bf16` or `f32`.
    pub dtype: &'static str,
    /// The shape.
    pub shape: String,
    /// ‖found − expected‖ / ‖expected‖; absent where there was nothing to compare.
    pub error: Option<f64>,
    /// Largest deviation of one element, relative to itself or to the root mean square, whichever is more.
    pub worst: Option<f64>,
    /// What `error` may be at most; `worst` may be ten times as much.
    pub bound: f64,
    /// Whether all is well.
    pub ok: bool,
    /// What is not.
    pub problem: Option<String>,
    /// Time of the case that this row belongs to, reference included.
    pub seconds: f64,
}

/// Runs all cases in both modes of the device, and gives each row to `show` as soon as it is known. A case that fails is a row
/// that says so; the others run nevertheless.
///
/// # Errors
/// [`Error::Config`] where no operation has such a name; else when the device cannot be put into one of the modes.
pub fn run(cuda: &Cuda, options: &Options, show: &mut dyn FnMut(&Row)) -> Result<Vec<Row>> {
    expect_any(options)?;
    let mut rows = Vec::new();
    let mut twice = Twice::default();
    for dtype in [DType::Bf16, DType::F32] {
        let cuda = cuda.with_compute_dtype(dtype)?;
        for (index, case) in cases::all(options.full).iter().enumerate() {
            if !case.operation.contains(&options.only) {
                continue;
            }
            let seed = options.seed.wrapping_add((index as u64) << 32);
            for (cuda, shape) in devices(&cuda, case) {
                for row in twice.run(&cuda, case, &shape, seed) {
                    show(&row);
                    rows.push(row);
                }
            }
        }
        if !nested::OPERATION.contains(&options.only) {
            continue;
        }
        for row in nested::rows(&cuda, options.seed, dtype.name()) {
            show(&row);
            rows.push(row);
        }
    }
    let row = twice.row();
    show(&row);
    rows.push(row);
    Ok(rows)
}

/// Fails where no operation is asked for: nothing would be proven.
fn expect_any(options: &Options) -> Result<()> {
    let cases = cases::all(options.full);
    let mut operations: Vec<&str> = cases.iter().map(|case| case.operation).chain([nested::OPERATION]).collect();
    if operations.iter().any(|operation| operation.contains(&options.only)) {
        return Ok(());
    }
    operations.sort_unstable();
    operations.dedup();
    let problem = format!("no operation has `{}` in its name", options.only);
    Err(Error::config("only", problem, format!("there are {}", operations.join(", "))))
}

/// The device in every way that a case runs on it, each with the shape's description.
fn devices(cuda: &Cuda, case: &Case) -> Vec<(Cuda, String)> {
    if !case.products {
        return vec![(cuda.clone(), case.shape.clone())];
    }
    let own = (cuda.clone().with_own_products(), format!("{}, own", case.shape));
    let library = cuda.driver().gemm_library().map(|_| (cuda.clone(), format!("{}, library", case.shape)));
    library.into_iter().chain([own]).collect()
}

/// How many launches of operations were repeated, and how many of them gave other bits.
#[derive(Default)]
struct Twice {
    launches: usize,
    unstable: usize,
}

impl Twice {
    /// The rows of a case, on the inputs of a seed.
    fn run(&mut self, cuda: &Cuda, case: &Case, shape: &str, seed: u64) -> Vec<Row> {
        let start = Instant::now();
        let mut trial = Trial::new(cuda, seed);
        cuda.driver().take_fallbacks();
        let result = (case.run)(&mut trial);
        let fallbacks = cuda.driver().take_fallbacks();
        let (mut findings, launches, unstable) = trial.finish();
        self.launches += launches;
        self.unstable += unstable;
        findings.extend(result.err().map(|error| Finding::failed("", error.to_string())));
        // Right, and several times slower than a model's products should be.
        let left = |product| Finding::failed("", format!("the library left to our own kernel: {product}"));
        findings.extend(fallbacks.into_iter().map(left));
        let dtype = cuda.compute_dtype().name();
        let seconds = start.elapsed().as_secs_f64();
        findings.into_iter().map(|finding| finding.row(case.operation, dtype, shape, seconds)).collect()
    }

    fn row(&self) -> Row {
        let problem = (self.unstable > 0).then(|| format!("{} operations gave other bits", self.unstable));
        Row {
            operation: "same bits in two runs".into(),
            dtype: "both",
            shape: format!("{} operations", self.launches),
            error: None,
            worst: None,
            bound: 0.0,
            ok: self.unstable == 0 && self.launches > 0,
            problem,
            seconds: 0.0,
        }
    }
}

/// What a case found out about one of its outputs.
pub(crate) struct Finding {
    /// Which output; empty where the operation has one.
    output: String,
    comparison: Option<Comparison>,
    bound: f64,
    problem: Option<String>,
}

impl Finding {
    fn compared(output: &str, comparison: Comparison, bound: f64) -> Self {
        let problem = comparison.problem(bound);
        Self { output: output.into(), comparison: Some(comparison), bound, problem }
    }

    fn failed(output: &str, problem: String) -> Self {
        Self { output: output.into(), comparison: None, bound: 0.0, problem: Some(problem) }
    }

    fn row(self, operation: &str, dtype: &'static str, shape: &str, seconds: f64) -> Row {
        let operation =
            if self.output.is_empty() { operation.to_string() } else { format!("{operation}: {}", self.output) };
        Row {
            operation,
            dtype,
            shape: shape.into(),
            error: self.comparison.as_ref().map(|c| c.error),
            worst: self.comparison.as_ref().map(|c| c.worst),
            bound: self.bound,
            ok: self.problem.is_none(),
            problem: self.problem,
            seconds,
        }
    }
}
