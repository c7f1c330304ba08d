//! `temper bench`: kernels and training steps against what this device can do at best.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use temper::Error;
use temper::bench::{self, Options, Report, Row, Shapes, ShapesName, StepRow};
use temper::files::write_json;
use temper::report::units;

use super::bench_counts;
use super::device::DeviceArguments;
use super::print;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Measure every kernel beside its floor and, for matrix products, beside the library
    Kernels(KernelsArguments),
    /// Measure whole training steps of a model with random weights
    Step(StepArguments),
}

#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    pub device: DeviceArguments,
    /// The sizes: llama3-8b, or tiny to try the command
    #[arg(long, value_name = "NAME", value_enum, default_value_t = ShapesArgument::Llama3_8b)]
    pub shapes: ShapesArgument,
    /// Only rows whose name contains this
    #[arg(long, value_name = "NAME")]
    pub filter: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// A file for the report as JSON, written again with every row, so that a stop keeps those before
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct KernelsArguments {
    #[command(flatten)]
    pub common: Arguments,
    /// Count sectors, bytes, bank conflicts and products instead of time, on the simulator (sim, or sim:sm_90 for Hopper), beside
    /// the floor
    #[arg(long, conflicts_with = "out")]
    pub counters: bool,
}

#[derive(Args, Debug)]
pub struct StepArguments {
    #[command(flatten)]
    pub common: Arguments,
    /// Run a model of N layers instead of all of them, where memory is short; nothing is extrapolated
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub layers: Option<u16>,
    /// Add up launches, products, bytes, clears and copies of the steps in bf16, with no device at all
    #[arg(long, conflicts_with_all = ["device", "precision", "tuning", "out"])]
    pub ledger: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ShapesArgument {
    /// Llama 3 8B, 16,384 tokens a batch
    #[value(name = "llama3-8b")]
    Llama3_8b,
    /// A model that fits a simulator
    Tiny,
}

impl From<ShapesArgument> for ShapesName {
    fn from(argument: ShapesArgument) -> Self {
        match argument {
            ShapesArgument::Llama3_8b => Self::Llama3_8b,
            ShapesArgument::Tiny => Self::Tiny,
        }
    }
}

/// Measures, and prints. Fails if a row failed for another reason than too little memory.
pub fn run(command: &Command) -> anyhow::Result<()> {
    let arguments = match command {
        Command::Kernels(KernelsArguments { common, .. }) | Command::Step(StepArguments { common, .. }) => common,
    };
    if let Command::Step(step @ StepArguments { ledger: true, .. }) = command {
        return bench_counts::ledgers(arguments, step.layers);
    }
    let counters = matches!(command, Command::Kernels(KernelsArguments { counters: true, .. }));
    let cuda = if counters { bench_counts::simulator(&arguments.device)? } else { arguments.device.open_cuda()? };
    let mut options = Options::new(&cuda, arguments.shapes.into());
    options.filter.clone_from(&arguments.filter);
    if counters {
        return bench_counts::counters(&cuda, arguments, &options);
    }
    let mut kept = Ok(());
    let mut observe = |report: &Report| {
        let row = report.rows.last().map(|row| (&row.name, row.milliseconds));
        if let Some((name, time)) = report.steps.last().map(|row| (&row.name, row.milliseconds)).or(row) {
            eprintln!("temper: {name}: {}", milliseconds(time));
        }
        if let (Some(path), Ok(())) = (&arguments.out, &kept) {
            kept = write_json(path, report);
        }
    };
    let report = match command {
        Command::Kernels(_) => bench::kernels(&cuda, &options, &mut observe)?,
        Command::Step(step) => {
            limit_layers(&mut options.shapes, step.layers)?;
            bench::steps(&cuda, &options, &mut observe)?
        }
    };
    kept?;
    if let Some(path) = &arguments.out {
        write_json(path, &report)?;
    }
    if arguments.json {
        print::json(&report)?;
    } else {
        print::text(&describe(&report))?;
    }
    let failed: Vec<&str> = report.not_run.iter().filter(|n| !n.out_of_memory).map(|n| n.name.as_str()).collect();
    anyhow::ensure!(failed.is_empty(), "{} failed; the reasons are above", failed.join(", "));
    Ok(())
}

/// Makes the model shallower.
pub(super) fn limit_layers(shapes: &mut Shapes, layers: Option<u16>) -> temper::Result<()> {
    let all = shapes.model.num_hidden_layers;
    let wanted = layers.map_or(all, usize::from);
    if wanted > all {
        return Err(Error::config(
            "layers",
            format!("{wanted} are more than there are"),
            format!("the model has {all}"),
        ));
    }
    shapes.model.num_hidden_layers = wanted;
    Ok(())
}

fn describe(report: &Report) -> String {
    let device = &report.device;
    let rates = &report.rates;
    let library = report.library.as_deref().unwrap_or("none; our own products");
    let mut text = format!("{} on {}, {}; products: {library}\n", report.engine, device.name, report.precision);
    if report.simulated {
        text += "Simulated on a CPU: these figures are no measurement of a GPU.\n";
    }
    text += &format!(
        "this device: {:.4} TFLOP/s ({:.4} at the end; our own kernel {:.4}) for a product of {} × {} × {}; {:.1} GB/s for a copy\n\n",
        rates.matmul_teraflops_per_second,
        rates.matmul_teraflops_per_second_at_end,
        rates.own_matmul_teraflops_per_second,
        rates.matmul_size,
        rates.matmul_size,
        rates.matmul_size,
        rates.copy_gigabytes_per_second,
    );
    if !report.rows.is_empty() {
        text += &kernels_table(&report.rows);
    }
    if !report.steps.is_empty() {
        text += &steps_table(&report.steps);
    }
    for missing in &report.not_run {
        text += &format!("\nnot run: {}: {}\n", missing.name, missing.reason);
    }
    text
}

fn kernels_table(rows: &[Row]) -> String {
    let header = ["kernel", "time", "floor", "ratio", "floor by", "TFLOP/s", "GB/s", "to library", "shape"];
    let cells = rows.iter().map(|row| {
        [
            row.name.clone(),
            milliseconds(row.milliseconds),
            milliseconds(row.floor_milliseconds),
            format!("{:.2}", row.ratio),
            row.floor_by.to_string(),
            if row.flop > 0.0 { format!("{:.4}", row.teraflops_per_second) } else { "-".into() },
            format!("{:.1}", row.gigabytes_per_second),
            row.factor_to_library.map_or("-".into(), |factor| format!("{factor:.2}")),
            row.shape.clone(),
        ]
    });
    print::table(header, cells)
}

fn steps_table(rows: &[StepRow]) -> String {
    let header =
        ["step", "layers", "tokens", "time", "floor", "ratio", "of matmul", "tokens/s", "on device", "gaps", "host"];
    let cells = rows.iter().map(|row| {
        [
            row.name.clone(),
            row.layers.to_string(),
            row.tokens.to_string(),
            milliseconds(row.milliseconds),
            milliseconds(row.floor_milliseconds),
            format!("{:.2}", row.ratio),
            units::percent(row.share_of_matmul_rate),
            format!("{:.0}", row.tokens_per_second),
            milliseconds(row.device_milliseconds),
            units::percent(row.launch_gaps),
            milliseconds(row.host_milliseconds),
        ]
    });
    print::table(header, cells)
}

/// Milliseconds with four digits, in microseconds below one.
fn milliseconds(value: f64) -> String {
    match value {
        100.0.. => format!("{value:.1} ms"),
        1.0..100.0 => format!("{value:.3} ms"),
        _ => format!("{:.2} µs", 1e3 * value),
    }
}
