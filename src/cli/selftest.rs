//! `temper selftest`: proves the GPU of this machine, kernel by kernel, and says where it is wrong.

use std::time::Instant;

use clap::Args;
use serde::Serialize;
use temper::Error;
use temper::backend::any::DeviceName;
use temper::backend::cuda::Cuda;
use temper::ops::Backend;
use temper::selftest::{self, Options, Row};
use temper::tuning::TuningPin;

use super::device::{DeviceArguments, Precision, parse, pin};
use super::print;

#[derive(Args, Debug)]
pub struct Arguments {
    /// Which GPU: auto or cuda for the first one, cuda:N for number N; for developers, a simulator: sim, sim:sm_90
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = parse)]
    device: DeviceName,
    /// Measured choices to follow: a file of `temper tune`, or off [default: the user's own]
    #[arg(long, value_name = "FILE", value_parser = pin)]
    tuning: Option<TuningPin>,
    /// Seed of the inputs, to repeat a run; drawn anew, and printed, where absent
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Also the shapes of Llama-3-8B where they are left out otherwise (in the simulator of developers)
    #[arg(long)]
    full: bool,
    /// Only small shapes, for compute-sanitizer, which slows kernels down by tens of times
    #[arg(long, conflicts_with = "full")]
    small: bool,
    /// Only operations whose names contain this
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    only: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The document of `--json`.
#[derive(Serialize)]
struct Report<'a> {
    version: &'static str,
    /// Where the build was told it.
    commit: Option<&'static str>,
    device: Device,
    seed: u64,
    full: bool,
    ok: bool,
    failed: usize,
    seconds: f64,
    rows: &'a [Row],
}

#[derive(Serialize)]
struct Device {
    name: String,
    compute_capability: (u32, u32),
    multiprocessors: u32,
    shared_bytes_per_block: u32,
    memory: u64,
    matrix_products: Option<String>,
}

/// Runs the self-test. Fails if any row does.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    // Both precisions are tested.
    let device =
        DeviceArguments { device: arguments.device, precision: Precision::Bf16, tuning: arguments.tuning.clone() };
    let cuda = device.open_cuda().map_err(|error| explained(error, arguments.device))?;
    let options = Options {
        seed: arguments.seed.unwrap_or_else(fresh_seed),
        full: arguments.full || (!arguments.small && !matches!(arguments.device, DeviceName::Simulator(_))),
        only: arguments.only.clone(),
    };
    let start = Instant::now();
    eprintln!("temper: self-test of {}, seed {}", cuda.description(), options.seed);
    let mut broken = None;
    let mut header = line(["operation", "dtype", "shape", "rel. error", "bound", ""]);
    let rows = selftest::run(&cuda, &options, &mut |row| {
        if !arguments.json && broken.is_none() {
            broken = print::text(&(std::mem::take(&mut header) + &describe(row))).err();
        }
    })?;
    if let Some(error) = broken {
        return Err(error);
    }
    let failed = rows.iter().filter(|row| !row.ok).count();
    let seconds = start.elapsed().as_secs_f64();
    if arguments.json {
        print::json(&Report {
            version: env!("CARGO_PKG_VERSION"),
            commit: option_env!("TEMPER_COMMIT"),
            device: facts(&cuda),
            seed: options.seed,
            full: options.full,
            ok: failed == 0,
            failed,
            seconds,
            rows: &rows,
        })?;
    } else {
        print::text(&format!("{} of {} rows ok, {seconds:.1} s\n", rows.len() - failed, rows.len()))?;
    }
    anyhow::ensure!(
        failed == 0,
        "{failed} of {} rows failed; `temper selftest --seed {}` repeats them",
        rows.len(),
        options.seed
    );
    Ok(())
}

/// A machine without a GPU cannot be proven; developers of kernels have another way.
fn explained(error: Error, device: DeviceName) -> Error {
    match (device, error) {
        (DeviceName::Auto | DeviceName::Cuda(_), Error::NoDevice(problem)) => {
            Error::NoDevice(format!("{problem}; without a GPU, developers run the same kernels with `--device sim`"))
        }
        (_, error) => error,
    }
}

/// Not the generator of a run: nothing but the inputs of this test depends on it.
fn fresh_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |time| time.as_nanos() as u64 % 1_000_000_000)
}

fn facts(cuda: &Cuda) -> Device {
    let info = cuda.driver().device();
    Device {
        name: info.name.clone(),
        compute_capability: info.compute_capability,
        multiprocessors: info.multiprocessors,
        shared_bytes_per_block: info.shared_bytes_per_block,
        memory: info.memory,
        matrix_products: cuda.driver().gemm_library(),
    }
}

/// Rows are printed as they come, so columns have fixed widths.
fn line([operation, dtype, shape, error, bound, verdict]: [&str; 6]) -> String {
    format!("{operation:<44} {dtype:<5} {shape:<40} {error:>10} {bound:>8}  {verdict}").trim_end().to_string() + "\n"
}

fn describe(row: &Row) -> String {
    let error = row.error.map_or("-".into(), |error| format!("{error:.1e}"));
    let bound = if row.bound == 0.0 { "exact".into() } else { format!("{:.1e}", row.bound) };
    let verdict = if row.ok { "ok" } else { "FAIL" };
    let text = line([&row.operation, row.dtype, &row.shape, &error, &bound, verdict]);
    match &row.problem {
        None => text,
        Some(problem) => text + &problem.lines().map(|line| format!("     {line}\n")).collect::<String>(),
    }
}
