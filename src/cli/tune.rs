//! `temper tune`: measures the ways that a device has to compute a model's steps, and keeps the fastest in a file.

use std::path::{Path, PathBuf};

use clap::Args;
use temper::Error;
use temper::backend::any::DeviceName;
use temper::bench::{ShapesName, Tuned, Tuner, Workload};
use temper::config::RunConfig;
use temper::huggingface::ModelDirectory;
use temper::tuning::{TuningPin, Unit, standard_path};

use super::bench::ShapesArgument;
use super::device::{DeviceArguments, Precision, parse};
use super::print;

#[derive(Args, Debug)]
pub struct Arguments {
    /// The run file whose steps are to be fast; else --model or --shapes says it
    #[arg(value_name = "RUN.toml", conflicts_with_all = ["model", "shapes"])]
    pub run_file: Option<PathBuf>,
    /// A model directory: the steps of TAR on it, with the batches of preset = "bio"
    #[arg(long, value_name = "DIR", conflicts_with = "shapes")]
    pub model: Option<PathBuf>,
    /// The sizes of `temper bench`: llama3-8b, or tiny to try the command [default: llama3-8b]
    #[arg(long, value_name = "NAME", value_enum)]
    pub shapes: Option<ShapesArgument>,
    /// The file of the choices [default: the one that the run file pins, else the device's in the user's cache, which every command follows]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Which GPU: auto or cuda for the first one, cuda:N for number N; for developers, a simulator: sim, sim:sm_90
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = parse)]
    pub device: DeviceName,
    /// How weights and activations are kept
    #[arg(long, value_name = "DTYPE", value_enum, default_value_t = Precision::Bf16)]
    pub precision: Precision,
    /// Print the file as JSON
    #[arg(long)]
    pub json: bool,
}

/// Measures what the file does not have yet. It is written after each shape, so a stop loses nothing.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let workload = workload(arguments)?;
    let device = DeviceArguments { device: arguments.device, precision: arguments.precision, tuning: None };
    let cuda = device.open_untuned()?;
    let pinned = pinned_file(arguments)?;
    let standard = || standard_path(&cuda.driver().device().name);
    let path = arguments.out.clone().or(pinned).or_else(standard).ok_or_else(|| {
        Error::config("out", "neither XDG_CACHE_HOME nor HOME says where the user's cache is", "name a file")
    })?;
    let mut tuner = Tuner::new(&cuda, &path)?;
    if let Some(reason) = tuner.begins_anew() {
        eprintln!("temper: {} begins anew: {reason}", path.display());
    }
    let unit = tuner.tuning().unit;
    if unit == Unit::FloorCycles {
        eprintln!("temper: simulated on a CPU: chosen by counters, which say nothing about the speed of a GPU");
    }
    let mut measured = 0;
    tuner.run(&workload, &mut |tuned| {
        measured += 1;
        eprintln!("temper: {}", line(tuned, unit));
    })?;
    let tuning = tuner.tuning();
    if arguments.json {
        return print::json(tuning);
    }
    let [products, kernels] = [tuning.products.len(), tuning.threads.len()];
    let text = format!("{products} products and {kernels} kernels in {}; {measured} measured now\n", path.display());
    print::text(&text)
}

fn workload(arguments: &Arguments) -> temper::Result<Workload> {
    if let Some(path) = &arguments.run_file {
        let run = RunConfig::load(path, &[])?;
        let model = ModelDirectory::open(&run.model.path)?.config;
        return Ok(Workload::of_run(&run, model));
    }
    if let Some(path) = &arguments.model {
        return Ok(Workload::of_model(ModelDirectory::open(path)?.config));
    }
    Ok(Workload::named(arguments.shapes.map_or(ShapesName::Llama3_8b, ShapesName::from)))
}

fn same(a: &Path, b: &Path) -> bool {
    std::path::absolute(a).ok() == std::path::absolute(b).ok()
}

/// The file that the run file pins, if it pins one: the run follows that one and no other.
fn pinned_file(arguments: &Arguments) -> temper::Result<Option<PathBuf>> {
    let Some(path) = &arguments.run_file else { return Ok(None) };
    match RunConfig::load(path, &[])?.tuning {
        Some(TuningPin::File(pinned)) if arguments.out.as_ref().is_some_and(|out| !same(out, &pinned)) => {
            eprintln!("temper: {} follows {}, and not the file that is written", path.display(), pinned.display());
            Ok(None)
        }
        Some(TuningPin::File(pinned)) => Ok(Some(pinned)),
        Some(TuningPin::Off) => {
            eprintln!("temper: {} has tuning = \"off\": it will follow none of these choices", path.display());
            Ok(None)
        }
        None => Ok(None),
    }
}

/// "8192x6144x4096 nt bf16 bf16: number 3 of 8, 0.5612 instead of 0.5901 ms".
fn line(tuned: &Tuned, unit: Unit) -> String {
    let unit = if unit == Unit::Milliseconds { "ms" } else { "cycles" };
    let first = tuned.first.map_or("a wrong result".to_string(), |first| format!("{first:.4}"));
    let Tuned { shape, candidates, chosen, best, .. } = tuned;
    let mut text = format!("{shape}: number {} of {candidates}, {best:.4} instead of {first} {unit}", chosen + 1);
    for refused in &tuned.refused {
        text += &format!("; refused {refused}");
    }
    text
}
