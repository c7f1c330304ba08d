//! `temper plan`.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use temper::api::{self, Plan, PlannedDevice, RunConfig, TuningPin};
use temper::plan::{Gpu, Place, available_memory};
use temper::report::units;

use super::print;

#[derive(Args, Debug)]
pub struct Arguments {
    /// The run file
    #[arg(value_name = "RUN.toml")]
    pub run_file: PathBuf,
    /// Plan for a GPU instead of this machine's CPU: h200, h100 or a100
    #[arg(long, value_name = "NAME")]
    pub gpu: Option<String>,
    /// Override a key of the run file
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Prints what a run will cost. The plan of a run that does not fit is printed too, and then the error.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let target = match &arguments.gpu {
        Some(name) => PlannedDevice::Gpu(Gpu::find(name)?),
        None => PlannedDevice::Cpu { available: available_memory() },
    };
    let config = RunConfig::load(&arguments.run_file, &arguments.overrides)?;
    if let Some(TuningPin::File(path)) = &config.tuning
        && !path.exists()
    {
        let missing = path.display();
        eprintln!("temper: tuning: there is no {missing}: the run needs it, and `temper tune RUN.toml` writes it");
    }
    let plan = api::plan(&config, target)?;
    if arguments.json {
        print::json(&plan)?;
    } else {
        print::text(&describe(&plan, config.outer_steps())?)?;
    }
    Ok(plan.ensure_fits()?)
}

fn describe(plan: &Plan, outer_steps: u64) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    writeln!(text, "Plan for {}: {} parameters\n", plan.device, plan.parameters)?;
    let on_cpu = plan.published_peak_flops.is_none();
    let buffers = plan.buffers.iter().map(|buffer| {
        let place = match buffer.place {
            Place::Device if on_cpu => "main",
            Place::Device => "device",
            Place::Host => "host",
        };
        [buffer.name.clone(), place.into(), print::bytes(buffer.bytes), buffer.choice.clone()]
    });
    text += &print::table(["buffer", "where", "size", "how"], buffers);
    let available = plan.available_bytes.map_or("an unknown amount".to_string(), print::bytes);
    writeln!(
        text,
        "\n{} memory: {} of {available} available",
        if on_cpu { "main" } else { "device" },
        print::bytes(plan.device_bytes)
    )?;
    if plan.safeguard_bytes > 0 {
        writeln!(text, "device memory of the safeguard, before: {}", print::bytes(plan.safeguard_bytes))?;
    }
    if plan.host_bytes > 0 {
        writeln!(text, "host memory: {}", print::bytes(plan.host_bytes))?;
    }
    writeln!(text, "largest batch: {} tokens", plan.largest_batch_tokens)?;
    for (stream, reason) in &plan.unread {
        writeln!(text, "data.{stream}: counted as max_length, as it could not be read: {reason}")?;
    }
    writeln!(text, "attacks: {}\n", plan.memory)?;
    let work = plan.work.iter().map(|work| {
        [work.name.clone(), format!("{:.1}", work.passes), format!("{:.0}", work.tokens), print::flop(work.flop)]
    });
    text += &print::table(["work of an outer step", "passes", "tokens", "arithmetic"], work);
    let total = (print::flop(plan.flop_per_outer_step), print::flop(plan.flop));
    writeln!(text, "\nan outer step: {}, expected over the draws of adversaries", total.0)?;
    writeln!(text, "the run of {outer_steps} outer steps: {}", total.1)?;
    if let Some(peak) = plan.published_peak_flops {
        let floor = units::duration(plan.flop_per_outer_step / peak);
        let peak = peak / 1e12;
        writeln!(
            text,
            "floor: {floor} an outer step at the published peak of {peak:.0} TFLOP/s, which no run reaches"
        )?;
        writeln!(text, "memory and peak are the published specification; nothing here was measured")?;
    }
    Ok(text)
}
