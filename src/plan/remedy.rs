//! Looks for the setting that makes a run fit.

use super::{Gpu, Plan, PlannedDevice};
use crate::config::{AdversaryConfig, MemoryConfig, ParameterChoice, RunConfig};
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
    let by_lora = format!("set params = \"lora\" for every [[{}.adversary]]", table(run));
    let by_both = format!("{by_lora} and tar.retain_representations = false");
    for (start, words) in [(run.clone(), String::new()), (lora, by_lora), (plain, by_both)] {
        if fits(&start) {
            return words;
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

/// The table of the run's defence.
fn table(run: &RunConfig) -> &'static str {
    if run.defence.is_some() { "defence" } else { "tar" }
}

fn adversaries_mut(run: &mut RunConfig) -> &mut [AdversaryConfig] {
    match &mut run.defence {
        Some(defence) => &mut defence.adversary,
        None => &mut run.tar.adversary,
    }
}

fn with_lora(run: &RunConfig) -> RunConfig {
    let mut changed = run.clone();
    adversaries_mut(&mut changed).iter_mut().for_each(|adversary| adversary.params = ParameterChoice::Lora);
    changed
}

fn without_representations(run: &RunConfig) -> RunConfig {
    let mut changed = run.clone();
    changed.tar.retain_representations = false;
    changed
}

/// Halves the largest batches until the run fits.
fn with_smaller_batches(run: &RunConfig, fits: &impl Fn(&RunConfig) -> bool) -> Option<String> {
    let mut limit = largest_batch(run)? / 2;
    while limit > 0 {
        let mut changed = run.clone();
        let mut words = Vec::new();
        for (name, data) in &mut changed.data {
            if data.batch * data.max_length > limit {
                data.batch = limit / data.max_length;
                words.push(format!("data.{name}.batch = {}", data.batch));
            }
        }
        for (index, adversary) in adversaries_mut(&mut changed).iter_mut().enumerate() {
            let length = longest(run, adversary);
            if let Some(batch) = adversary.batch.as_mut().filter(|batch| **batch * length > limit) {
                *batch = limit / length;
                words.push(format!("{}.adversary.{index}.batch = {batch}", table(run)));
            }
        }
        let mut batches = changed.data.values().map(|data| data.batch);
        if batches.any(|batch| batch == 0) || adversaries_mut(&mut changed).iter().any(|a| a.batch == Some(0)) {
            return None;
        }
        if fits(&changed) {
            return Some(format!("set {}", words.join(", ")));
        }
        limit /= 2;
    }
    None
}

/// Tokens of the largest batch.
fn largest_batch(run: &RunConfig) -> Option<usize> {
    let defence = run.composition();
    let own = defence.adversary.iter().map(|adversary| adversary.batch.unwrap_or(0) * longest(run, adversary));
    run.data.values().map(|data| data.batch * data.max_length).chain(own).max()
}

/// The longest sequence that an adversary trains on.
fn longest(run: &RunConfig, adversary: &AdversaryConfig) -> usize {
    let streams = adversary.data.streams().into_iter().filter_map(|name| run.data.get(name));
    streams.map(|data| data.max_length).max().unwrap_or(1)
}
