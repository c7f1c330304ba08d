//! The memory of a run on one GPU, buffer by buffer as `crate::tar` and `crate::objective` allocate them, and which
//! settings make it fit.
//!
//! The device keeps everything that the steps of a trajectory touch. Pinned main memory keeps everything that the outer
//! step alone touches (unattacked weights, outer optimizer, reference model) and is streamed once an outer step. A batch
//! goes through the model as a whole.

use super::memory::{Needs, Ways};
use super::{Buffer, Layout, Place, bytes_in};
use crate::backend::cuda::loss_head_bytes;
use crate::config::MemoryConfig;
use crate::error::{Error, Result};
use crate::model::Recompute;
use crate::ops::DType;
use crate::optimizer::SHIFT_WINDOW;
use crate::settings::suggestion;
use crate::tar::OUTER_WINDOW;
use crate::training::{MemorySettings, Moments};

/// A GPU's published specification.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gpu {
    /// Its name on the command line.
    pub name: &'static str,
    /// Bytes of memory.
    pub memory: u64,
    /// Dense bf16 peak, operations per second.
    pub peak_flops: f64,
}

/// Published specifications (NVIDIA data sheets, SXM variants).
const GPUS: [Gpu; 3] = [
    Gpu { name: "h200", memory: 141_000_000_000, peak_flops: 989e12 },
    Gpu { name: "h100", memory: 80_000_000_000, peak_flops: 989e12 },
    Gpu { name: "a100", memory: 80_000_000_000, peak_flops: 312e12 },
];

impl Gpu {
    /// The GPU called `name`.
    pub fn find(name: &str) -> Result<&'static Self> {
        let found = GPUS.iter().find(|gpu| gpu.name.eq_ignore_ascii_case(name));
        found.ok_or_else(|| {
            let remedy = suggestion(name, GPUS.iter().map(|gpu| gpu.name));
            Error::config("gpu", format!("`{name}` is not a GPU that temper knows"), remedy)
        })
    }

    /// All of them.
    pub(super) fn all() -> &'static [Self] {
        &GPUS
    }
}

/// CUDA context, kernels' small scratch and the workspaces of the matrix library: an allowance, not a measurement.
const ALLOWANCE: u64 = 1_500_000_000;

/// A device to lay a run out on.
#[derive(Clone, Copy)]
pub(super) struct Capacity {
    /// Bytes of its memory.
    pub memory: u64,
    /// The dtype of weights and activations.
    pub compute: DType,
}

/// The first settings that fit, or the ones that need least if none does, with their buffers.
pub(super) fn fit(needs: &Needs, pins: &MemoryConfig, capacity: Capacity) -> Result<Layout> {
    let bf16_moments = capacity.compute == DType::Bf16;
    if pins.states() == Some(Moments::Bf16) && !bf16_moments {
        let remedy = "use \"f32\", or `precision` bf16";
        return Err(Error::config("memory.states", "bf16 moments go with bf16 weights, and these are f32", remedy));
    }
    let device_bytes = |layout: &Layout| bytes_in(Place::Device, &layout.buffers);
    let choices = choices(needs, pins, bf16_moments);
    let layouts: Vec<Layout> = choices.into_iter().map(|choice| lay_out(needs, choice, capacity.compute)).collect();
    if let Some(layout) = layouts.iter().find(|layout| device_bytes(layout) <= capacity.memory) {
        let settings = with_kept_layers(needs, layout.settings, capacity, device_bytes(layout));
        return Ok(lay_out(needs, settings, capacity.compute));
    }
    // There is at least one layout: whatever is pinned, f32 moments or the pinned ones go with it.
    Ok(layouts.into_iter().min_by_key(device_bytes).unwrap_or_default())
}

/// A choice in which layers run again, with as many kept layers as there is room for. Kept layers gain speed and nothing
/// else, so that a twentieth of the memory stays free.
fn with_kept_layers(needs: &Needs, choice: MemorySettings, capacity: Capacity, total: u64) -> MemorySettings {
    let Recompute::Layers { .. } = choice.recompute else { return choice };
    let bytes = |kept| needs.activation_bytes(capacity.compute, Recompute::Layers { kept });
    let room = (capacity.memory - capacity.memory / 20).saturating_sub(total);
    let kept = (room / (bytes(1) - bytes(0)).max(1)).min(needs.model.num_hidden_layers as u64 - 1);
    MemorySettings { recompute: Recompute::Layers { kept: kept as usize }, ..choice }
}

/// The choices from the best to the last resort:
///
/// 1. f32 moments, every activation kept;
/// 2. f32 moments, norms and silu(gate)·up computed again, which costs passes over memory;
/// 3. bf16 moments, every activation kept;
/// 4. bf16 moments, norms and silu(gate)·up computed again;
/// 5. f32 moments, whole layers run forward again, which costs matrix products;
/// 6. bf16 moments, whole layers run forward again.
///
/// Attacks of all weights step within the backward pass in every case, because it costs next to nothing.
fn choices(needs: &Needs, pins: &MemoryConfig, bf16_moments: bool) -> Vec<MemorySettings> {
    let full = !needs.full_optimizers.is_empty();
    let step_in_backward = pins.step_in_backward.unwrap_or(full);
    let order = [
        (Moments::F32, Recompute::Nothing),
        (Moments::F32, Recompute::Cheap),
        (Moments::Bf16, Recompute::Nothing),
        (Moments::Bf16, Recompute::Cheap),
        (Moments::F32, Recompute::Layers { kept: 0 }),
        (Moments::Bf16, Recompute::Layers { kept: 0 }),
    ];
    let possible = |(states, recompute): &(Moments, Recompute)| {
        let automatic = *states == Moments::F32 || (full && bf16_moments);
        pins.states().map_or(automatic, |pinned| pinned == *states)
            && pins.recompute().is_none_or(|pinned| pinned == *recompute)
    };
    let settings = |(states, recompute)| MemorySettings { states, step_in_backward, recompute };
    order.into_iter().filter(possible).map(settings).collect()
}

fn lay_out(needs: &Needs, choice: MemorySettings, compute: DType) -> Layout {
    let mut buffers = Vec::new();
    let mut add = |place: Place, name: &str, bytes: u64, choice: &str| {
        if bytes > 0 {
            buffers.push(Buffer { name: name.into(), place, bytes, choice: choice.into() });
        }
    };
    let parameters = needs.parameters;
    let element = compute.bytes() as u64;
    let stored = compute.name();
    add(Place::Device, "attacked weights", element * parameters, stored);
    if compute == DType::Bf16 {
        add(Place::Device, "remainders of the weights", 2 * parameters, "16 bits; together with the bf16 an exact f32");
    }
    add(Place::Device, "meta-gradient", 4 * parameters, "f32, accumulated by the weight-gradient products");
    if !needs.full_optimizers.is_empty() {
        if choice.step_in_backward {
            let bytes = 4 * needs.part_gradients;
            add(Place::Device, "attack gradient", bytes, "f32, a part, stepped within backward");
        } else {
            add(Place::Device, "attack gradient", 4 * parameters, "f32, of all weights");
        }
        let moments = if choice.states == Moments::F32 { "moments in f32" } else { "moments in bf16" };
        add(Place::Device, "attack optimizer", needs.states_bytes(choice.states) * parameters, moments);
    }
    for (factors, states) in &needs.adapters {
        add(Place::Device, "attack LoRA", factors * 4 * (2 + states), "f32 or its equal; factors, gradient and states");
    }
    let tokens = needs.largest_batch;
    let how = match choice.recompute {
        Recompute::Nothing => "every one kept",
        Recompute::Cheap => "norms and silu(gate)·up computed again",
        Recompute::Layers { .. } => "layers' inputs and some whole layers; the others run forward again",
    };
    let activations = needs.activation_bytes(compute, choice.recompute);
    add(Place::Device, "activations", activations, &format!("{stored}, {how}, {tokens} tokens"));
    let states = needs.hidden_states * needs.hidden_states_bytes(compute);
    add(Place::Device, "reference hidden states", states, &format!("{stored}, for losses that compare with them"));
    let teachers = needs.teachers * needs.teacher_bytes(compute);
    add(Place::Device, "teacher", teachers, &format!("{stored}, its last hidden states and its head"));
    let Ways { gradients, windows, masks, .. } = needs.ways;
    let moved = 4 * windows * parameters.min(SHIFT_WINDOW as u64);
    add(Place::Device, "gradients of steps", 4 * gradients * parameters, "f32, to points at one step along them");
    add(Place::Device, "windows of points", moved, "f32, through which weights move");
    add(Place::Device, "masked and accumulated gradient", 8 * masks * parameters, "f32, of a mask of signs");
    let vocabulary = needs.model.vocab_size;
    let d = needs.model.hidden_size;
    let heads = if needs.teachers > 0 { 2 } else { 1 };
    let logits = loss_head_bytes(tokens as usize, vocabulary, d, compute, heads);
    add(Place::Device, "logits of the loss head", logits as u64, "f32, of a chunk of tokens");
    let window = 4 * needs.outer_states * parameters.min(OUTER_WINDOW as u64);
    add(Place::Device, "window of the outer optimizer", window, "f32 states pass through it once an outer step");
    add(Place::Device, "context and workspaces", ALLOWANCE, "allowance, not measured");
    add_host(needs, element, &mut add);
    Layout { settings: choice, buffers }
}

/// Bytes on the device while a safeguard is trained, before the nested loop: the weights, the reference model (with the
/// remainders that it does not need), the whole gradient, f32 states, directions or hidden states of the reference, and
/// what a pass needs. 0 without one.
pub(super) fn safeguard_bytes(needs: &Needs, choice: MemorySettings, compute: DType) -> u64 {
    let Some(states) = needs.safeguard_states else { return 0 };
    let vocabulary = needs.model.vocab_size;
    let d = needs.model.hidden_size;
    let tokens = needs.largest_batch;
    let directions = 4 * (vocabulary * d) as u64;
    4 * needs.parameters * (3 + states)
        + needs.plain_activation_bytes(compute, choice.recompute)
        + needs.hidden_states_bytes(compute).max(directions)
        + loss_head_bytes(tokens as usize, vocabulary, d, compute, 1) as u64
        + ALLOWANCE
}

fn add_host(needs: &Needs, element: u64, add: &mut impl FnMut(Place, &str, u64, &str)) {
    let parameters = needs.parameters;
    let states = needs.outer_states;
    let Ways { vectors, edits, .. } = needs.ways;
    add(Place::Host, "frozen attack", 4 * vectors * parameters, "f32, what the last attack changed");
    add(Place::Host, "weights at points", 4 * edits * parameters, "f32, a copy that is edited");
    add(Place::Host, "unattacked weights", 4 * parameters, "f32, pinned");
    add(Place::Host, "persistent adversaries", 4 * needs.ways.adversaries * parameters, "f32, pinned");
    add(Place::Host, "outer optimizer", 4 * states * parameters, "f32 states, pinned, touched once an outer step");
    add(Place::Host, "reference weights", element * parameters, "as the device reads them, pinned");
    add(
        Place::Host,
        "checkpoint",
        4 * (1 + states + vectors) * parameters,
        "copy of weights and outer states while it is written",
    );
}
