//! The needs of a run, computed before it starts: memory, buffer by buffer, and arithmetic.
//!
//! - `arithmetic` counts floating-point operations.
//! - `memory` lists the buffers of the CPU backend, as the nested loop allocates them.
//! - `gpu` lists the buffers of a run on a GPU and chooses the settings that make it fit. A run takes these settings.
//! - `remedy` looks for the change of a run file that makes a run fit.
//! - `machine` asks for the memory of this machine.
//! - `defence` keeps what a finished run did cost, beside its model.
//!
//! Nothing is measured here: peaks of devices are their published specifications.

mod arithmetic;
mod defence;
mod gpu;
mod machine;
mod memory;
mod remedy;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::Serialize;

pub use arithmetic::Work;
pub(crate) use arithmetic::{Backward, Costs};
pub use defence::DefenderCost;
pub use gpu::Gpu;
pub use machine::available_memory;
pub(crate) use memory::attack_bytes;

use crate::config::RunConfig;
use crate::error::{Error, Result};
use crate::model::{ModelConfig, Recompute};
use crate::ops::DType;
use crate::training::MemorySettings;

/// The device that a plan is for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PlannedDevice {
    /// The CPU backend.
    Cpu {
        /// Bytes that a run may use, where the system says so; otherwise nothing is refused.
        available: Option<u64>,
    },
    /// A GPU by its published specification, with bf16 weights.
    Gpu(&'static Gpu),
    /// The device that a run is on.
    Device {
        /// Bytes of its own memory.
        memory: u64,
        /// The dtype of weights and activations.
        compute: DType,
    },
}

/// The facts about a device that a plan rests on.
struct DeviceFacts {
    /// The device, in words.
    name: String,
    /// Bytes of memory, where that is known.
    memory: Option<u64>,
    /// The dtype of weights and activations.
    compute: DType,
    /// Published dense bf16 peak, in operations per second.
    peak_flops: Option<f64>,
}

impl PlannedDevice {
    fn facts(self) -> DeviceFacts {
        match self {
            Self::Cpu { available } => DeviceFacts {
                name: format!("CPU, {} threads, f32", rayon::current_num_threads()),
                memory: available,
                compute: DType::F32,
                peak_flops: None,
            },
            Self::Gpu(gpu) => DeviceFacts {
                name: format!("one {}, bf16 with f32 accumulation", gpu.name.to_uppercase()),
                memory: Some(gpu.memory),
                compute: DType::Bf16,
                peak_flops: Some(gpu.peak_flops),
            },
            Self::Device { memory, compute } => {
                DeviceFacts { name: "this GPU".into(), memory: Some(memory), compute, peak_flops: None }
            }
        }
    }
}

/// The place of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// The memory that the arithmetic works on: the GPU's, or main memory for the CPU backend.
    Device,
    /// Main memory beside a GPU.
    Host,
}

/// A buffer, or a group of buffers of one purpose.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Buffer {
    /// Its content.
    pub name: String,
    /// Its place.
    pub place: Place,
    /// Its size.
    pub bytes: u64,
    /// Its dtype, and the choices that were made for it.
    pub choice: String,
}

/// A run laid out on a device: the settings of its attacks, and the buffers that go with them.
#[derive(Default)]
struct Layout {
    settings: MemorySettings,
    buffers: Vec<Buffer>,
}

fn bytes_in(place: Place, buffers: &[Buffer]) -> u64 {
    buffers.iter().filter(|buffer| buffer.place == place).map(|buffer| buffer.bytes).sum()
}

/// The plan of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// The device, in words.
    pub device: String,
    /// Number of parameters of the model.
    pub parameters: u64,
    /// Tokens of the largest batch, every sequence at its longest.
    pub largest_batch_tokens: u64,
    /// The streams whose data was asked for and could not be read, and why: their sequences count as `max_length`.
    pub unread: BTreeMap<String, String>,
    /// The trade of attacks between memory, arithmetic and the precision of moments.
    pub memory: MemorySettings,
    /// The buffers.
    pub buffers: Vec<Buffer>,
    /// Bytes on a GPU while the run file's safeguard is trained, before all that; 0 without one.
    pub safeguard_bytes: u64,
    /// Bytes in the device's memory.
    pub device_bytes: u64,
    /// Bytes in main memory beside a GPU, most of them pinned.
    pub host_bytes: u64,
    /// Bytes that the device has, where that is known.
    pub available_bytes: Option<u64>,
    /// The arithmetic of one outer step.
    pub work: Vec<Work>,
    /// Floating-point operations of one outer step, expected over the draws of adversaries.
    pub flop_per_outer_step: f64,
    /// Floating-point operations of the plain safeguard that comes first; 0 where the run has none.
    pub safeguard_flop: f64,
    /// Floating-point operations of all outer steps.
    pub flop: f64,
    /// Published dense bf16 peak of a GPU, in operations per second.
    pub published_peak_flops: Option<f64>,
    /// The change that makes the run fit, where it does not.
    pub remedy: Option<String>,
}

/// Floating-point operations of the whole of `run`, its safeguard included, expected over the draws of adversaries; what is
/// computed twice to save memory counts once.
pub fn run_flop(run: &RunConfig, model: &ModelConfig) -> f64 {
    let work = arithmetic::outer_step(run, model, Recompute::Nothing, u64::MAX);
    let outer_step: f64 = work.iter().map(|work| work.flop).sum();
    run.outer_steps() as f64 * outer_step + arithmetic::safeguard(run, model)
}

impl Plan {
    /// The plan of `run` with a model of this architecture.
    pub fn new(run: &RunConfig, model: &ModelConfig, device: PlannedDevice) -> Result<Self> {
        let mut plan = Self::without_remedy(run, model, device)?;
        if !plan.fits() {
            plan.remedy = Some(remedy::find(run, model, device));
        }
        Ok(plan)
    }

    fn without_remedy(run: &RunConfig, model: &ModelConfig, device: PlannedDevice) -> Result<Self> {
        let needs = memory::Needs::new(run, model)?;
        let facts = device.facts();
        let compute = facts.compute;
        let on_gpu = |memory| gpu::fit(&needs, &run.memory, gpu::Capacity { memory, compute });
        let Layout { settings, buffers } = match device {
            PlannedDevice::Cpu { .. } => memory::on_cpu(&needs, &run.memory)?,
            PlannedDevice::Gpu(gpu) => on_gpu(gpu.memory)?,
            PlannedDevice::Device { memory, .. } => on_gpu(memory)?,
        };
        let safeguard_bytes = match device {
            PlannedDevice::Cpu { .. } => 0,
            _ => gpu::safeguard_bytes(&needs, settings, compute),
        };
        let work = arithmetic::outer_step(run, model, settings.recompute, needs.largest_batch);
        let flop_per_outer_step = work.iter().map(|w| w.flop).sum();
        Ok(Self {
            device: facts.name,
            parameters: needs.parameters,
            largest_batch_tokens: needs.largest_batch,
            unread: BTreeMap::new(),
            memory: settings,
            safeguard_bytes,
            device_bytes: bytes_in(Place::Device, &buffers),
            host_bytes: bytes_in(Place::Host, &buffers),
            available_bytes: facts.memory,
            buffers,
            flop_per_outer_step,
            safeguard_flop: arithmetic::safeguard(run, model),
            flop: flop_per_outer_step * run.outer_steps() as f64,
            work,
            published_peak_flops: facts.peak_flops,
            remedy: None,
        })
    }

    /// Whether the device has enough memory.
    pub fn fits(&self) -> bool {
        self.available_bytes.is_none_or(|available| self.needed_bytes() <= available)
    }

    /// Bytes that the device must have.
    pub fn needed_bytes(&self) -> u64 {
        self.device_bytes.max(self.safeguard_bytes)
    }

    /// [`Error::Memory`] for a run that does not fit, with the setting that would make it fit.
    pub fn ensure_fits(&self) -> Result<()> {
        match self.available_bytes {
            Some(available) if !self.fits() => Err(Error::Memory {
                what: format!("the run on {}", self.device),
                needed: self.needed_bytes(),
                available,
                remedy: self.remedy.clone().unwrap_or_default(),
            }),
            _ => Ok(()),
        }
    }
}
