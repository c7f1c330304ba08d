//! What TAR runs on a device: the batches of `preset = "bio"` and the memory settings that its plan chooses.

use std::path::Path;

use super::Shapes;
use crate::backend::cuda::Cuda;
use crate::config::RunConfig;
use crate::error::Result;
use crate::ops::Backend;
use crate::plan::{Plan, PlannedDevice};
use crate::training::MemorySettings;

/// The streams of the preset: those that attacks train on, and the held-out and the retained data.
const STREAMS: [&str; 5] = ["forget", "camel", "adv_retain", "meta", "retain"];

/// A run of the preset with batches of these shapes. `adv_retain` and `retain` have batches as large as `meta`.
fn run(shapes: &Shapes) -> Result<RunConfig> {
    let mut text = String::from("preset = \"bio\"\nmodel.path = \"model\"\n");
    for name in STREAMS {
        let batch = if ["forget", "camel"].contains(&name) { shapes.attack } else { shapes.tamper_resistance };
        text += &format!("[data.{name}]\npath = \"{name}.jsonl\"\nbatch = {}\n", batch.sequences);
        text += &format!("max_length = {}\n", batch.length);
    }
    RunConfig::from_text(&text, Path::new("run.toml"), &[])
}

/// The memory settings with which such a run goes onto this device.
pub(super) fn planned_memory(cuda: &Cuda, shapes: &Shapes) -> Result<MemorySettings> {
    let device = PlannedDevice::Device { memory: cuda.driver().device().memory, compute: cuda.compute_dtype() };
    Ok(Plan::new(&run(shapes)?, &shapes.model, device)?.memory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::ShapesName;
    #[cfg(feature = "simulator")]
    use crate::{model::Recompute, ops::DType, training::Moments};

    /// The batches of Llama 3 8B are the preset's own: what `temper harden` reads, not what this module writes over it.
    #[test]
    fn the_batches_are_those_of_the_preset() {
        let streams: String = STREAMS.iter().map(|s| format!("data.{s}.path = \"{s}.jsonl\"\n")).collect();
        let text = format!("preset = \"bio\"\nmodel.path = \"model\"\n{streams}");
        let preset = RunConfig::from_text(&text, Path::new("run.toml"), &[]).expect("a run");
        let ours = run(&Shapes::named(ShapesName::Llama3_8b)).expect("a run");
        assert_eq!(ours, preset);
    }

    /// The settings are the plan's for the device at hand: 16 GB hold everything of a tiny model, and of an 8B model as
    /// little as can be.
    #[cfg(feature = "simulator")]
    #[test]
    fn the_memory_settings_are_the_plans() {
        let cuda = Cuda::simulated(DType::Bf16).expect("a simulated device");
        let planned = |name| planned_memory(&cuda, &Shapes::named(name)).expect("a plan");
        let step_in_backward = true;
        let all = MemorySettings { states: Moments::F32, step_in_backward, recompute: Recompute::Nothing };
        assert_eq!(planned(ShapesName::Tiny), all);
        let least = MemorySettings { states: Moments::Bf16, recompute: Recompute::Layers { kept: 0 }, ..all };
        assert_eq!(planned(ShapesName::Llama3_8b), least);
    }
}
