//! Looks for the setting that makes a run fit.

use super::{Gpu, Plan, PlannedDevice};
use crate::config::{DataConfig, MemoryConfig, ParameterChoice, RunConfig};
use crate::model::ModelConfig;

/// The change to make, in the words of the run file: the first of a few, alone or together, with which the run fits.
pub(super) fn find(run: &RunConfig, model: &ModelConfig, device: PlannedDevice) -> String {
    let fits = |run: &RunConfig| Plan::without_remedy(run, model, device).is_ok_and(|plan| plan.fits());
    let lora = with_lora(run);
    let plain = with_lora(&without_representations(run));
    let automatic = RunConfig { memory: MemoryConfig::default(), ..run.clone() };
    if automatic.memory != run.memory && fits(&automatic) {
        return "remove the table [memory], so that what fits is chosen".into();
    }
    let safe = RunConfig { safeguard: None, ..run.clone() };
    if run.safeguard.is_some() && fits(&safe) {
        return "leave the table [safeguard] out, and start from a model that has had its plain safeguard".into();
    }
    for (start, words) in [
        (run.clone(), ""),
        (lora, "set params = \"lora\" for every [[tar.adversary]]"),
        (plain, "set params = \"lora\" for every [[tar.adversary]] and tar.retain_representations = false"),
    ] {
        if fits(&start) {
            return words.to_string();
        }
        if let Some(smaller) = with_smaller_batches(&start, &fits) {
            return if words.is_empty() { smaller } else { format!("{words}, and {smaller}") };
        }
    }
    match device {
        PlannedDevice::Gpu(gpu) => larger_gpu(run, model, gpu.memory),
        PlannedDevice::Device { memory, .. } => larger_gpu(run, model, memory),
        PlannedDevice::Cpu { .. } => {
            "no setting of the run file makes it fit: use a smaller model or more memory".into()
        }
    }
}

fn larger_gpu(run: &RunConfig, model: &ModelConfig, memory: u64) -> String {
    let fits = |gpu| Plan::without_remedy(run, model, PlannedDevice::Gpu(gpu)).is_ok_and(|plan| plan.fits());
    match Gpu::all().iter().find(|other| other.memory > memory && fits(other)) {
        Some(other) => format!("no setting of the run file makes it fit: plan for `gpu` {}", other.name),
        None => "no setting of the run file makes it fit one GPU: use a smaller model".into(),
    }
}

fn with_lora(run: &RunConfig) -> RunConfig {
    let mut changed = run.clone();
    for adversary in &mut changed.tar.adversary {
        adversary.params = ParameterChoice::Lora;
    }
    changed
}

fn without_representations(run: &RunConfig) -> RunConfig {
    let mut changed = run.clone();
    changed.tar.retain_representations = false;
    changed
}

/// Halves the largest batches until the run fits.
fn with_smaller_batches(run: &RunConfig, fits: &impl Fn(&RunConfig) -> bool) -> Option<String> {
    let size = |data: &DataConfig| data.batch * data.max_length;
    let mut limit = run.data.values().map(size).max()? / 2;
    while limit > 0 {
        let mut changed = run.clone();
        let mut words = Vec::new();
        for (name, data) in &mut changed.data {
            if size(data) > limit {
                data.batch = limit / data.max_length;
                words.push(format!("data.{name}.batch = {}", data.batch));
            }
        }
        if changed.data.values().any(|data| data.batch == 0) {
            return None;
        }
        if fits(&changed) {
            return Some(format!("set {}", words.join(", ")));
        }
        limit /= 2;
    }
    None
}
