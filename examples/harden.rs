//! Hardens a model of a few thousand weights, watched by an observer, and prints what the last outer step measured.
//!
//!     cargo run --release --example harden -- FOLDER
//!
//! FOLDER must be new; model, data and the hardened model are written there. For your own model, write a run file like
//! `examples/harden.toml` and load it with `RunConfig::load`.

use std::ops::ControlFlow;
use std::path::Path;

use temper::api::{self, Control, Device, Event, HardenSummary, Measured, Precision, Result, RunConfig, toy};

const RUN: &str = r#"
    model = { path = "model" }
    data.restricted = { path = "restricted.jsonl", batch = 4 }
    data.retain = { path = "retain.jsonl", batch = 4 }

    [tar]
    outer_steps = 3
    inner_steps = 4
    tr_data = "restricted"
    retain_data = "retain"
    adversary = [{ name = "full", data = "restricted", lr = [1e-3] }]
"#;

/// Hardens the toy model in `folder`.
pub fn harden(folder: &Path) -> Result<HardenSummary> {
    toy::write(folder, 1)?;
    let config = RunConfig::from_text(RUN, &folder.join("run.toml"), &[])?;
    let device = Device::open("auto", Precision::Bf16)?;
    let control = Control::new().observe(|event| {
        if let Event::Step { step, measured: Measured::Outer(report), .. } = event {
            println!("outer step {step}: retain loss {:.4}", report.retain_loss);
        }
        ControlFlow::Continue(())
    });
    api::harden(&device, &config, folder.join("hardened"), control)
}

#[allow(dead_code)]
fn main() -> Result<()> {
    let folder = std::env::args_os().nth(1).unwrap_or_else(|| "temper-harden".into());
    let summary = harden(folder.as_ref())?;
    println!("{} outer steps, {} skipped", summary.steps, summary.skipped);
    Ok(())
}
