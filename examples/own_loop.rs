//! Hardens a model in a loop of its own: it looks at every outer step, saves checkpoints when it likes, and stops early
//! where the retain loss no longer falls.
//!
//!     cargo run --release --example own_loop -- FOLDER
//!
//! FOLDER must be new; model, data and the hardened model are written there.

use std::path::Path;

use temper::api::{Control, Device, HardenSummary, Hardening, Precision, Result, RunConfig, toy};

const RUN: &str = r#"
    model = { path = "model" }
    data.restricted = { path = "restricted.jsonl", batch = 4 }
    data.retain = { path = "retain.jsonl", batch = 4 }

    [tar]
    outer_steps = 100
    inner_steps = 2
    tr_every = 2
    tr_data = "restricted"
    retain_data = "retain"
    adversary = [{ name = "full", data = "restricted", lr = [1e-3] }]
"#;

/// Hardens the toy model in `folder`.
pub fn harden(folder: &Path) -> Result<HardenSummary> {
    toy::write(folder, 1)?;
    let config = RunConfig::from_text(RUN, &folder.join("run.toml"), &[])?;
    let device = Device::open("auto", Precision::Bf16)?;
    let mut run = Hardening::begin(&device, &config, folder.join("hardened"), Control::new())?;
    let mut best = f64::INFINITY;
    let mut without_progress = 0;
    while let Some(report) = run.step()? {
        if report.retain_loss < best {
            best = report.retain_loss;
            without_progress = 0;
            run.checkpoint()?;
        } else {
            without_progress += 1;
        }
        if without_progress == 5 {
            break;
        }
    }
    run.finish()
}

#[allow(dead_code)]
fn main() -> Result<()> {
    let folder = std::env::args_os().nth(1).unwrap_or_else(|| "temper-own-loop".into());
    let summary = harden(folder.as_ref())?;
    println!("stopped after {} outer steps at a retain loss of {:.4}", summary.steps, summary.retain_loss);
    Ok(())
}
