//! The memory of a run on one GPU, as the design of the CUDA backend lays it out.
//!
//! What every step of a trajectory touches is on the device. What only the outer step touches (unattacked weights,
//! outer optimizer, reference model) waits in pinned main memory and is streamed once an outer step.

use super::memory::Needs;
use super::{Buffer, Place};
use crate::config::suggestion;
use crate::error::{Error, Result};

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
            Error::config("--gpu", format!("`{name}` is not a GPU that temper knows"), remedy)
        })
    }

    /// All of them.
    pub(super) fn all() -> &'static [Self] {
        &GPUS
    }

    pub(super) fn description(&self) -> String {
        format!(
            "one {}, bf16 with f32 accumulation, as designed (not written yet: optimizer steps within the backward pass, bf16 \
             states, recomputation)",
            self.name.to_uppercase()
        )
    }
}

/// A micro-batch at which the matrix products still run at full speed.
const FULL_SPEED_TOKENS: u64 = 8192;

/// Tokens whose logits are on the device at once.
const HEAD_CHUNK: u64 = 1024;

/// CUDA context, kernels' scratch and the workspaces of the matrix library: an allowance, not a measurement.
const ALLOWANCE: u64 = 1_500_000_000;

/// What can be traded for memory.
#[derive(Clone, Copy)]
struct Choice {
    /// Bytes of an element of the attack optimizer's states.
    state_bytes: u64,
    /// Tokens that go through the model at once.
    micro_batch: u64,
    /// Whether a layer keeps only its input and runs forward again in the backward pass.
    recompute: bool,
}

/// The first layout that fits `capacity`, or the smallest if none does: its micro-batch and its buffers.
pub(super) fn fit(needs: &Needs, capacity: u64) -> (u64, Vec<Buffer>) {
    let mut last = (0, Vec::new());
    for choice in choices(needs) {
        let buffers = layout(needs, choice);
        let total: u64 = buffers.iter().filter(|b| b.place == Place::Device).map(|b| b.bytes).sum();
        last = (choice.micro_batch, buffers);
        if total <= capacity {
            break;
        }
    }
    last
}

/// The choices from the best to the last resort: f32 states before bf16 ones as long as the micro-batch keeps the
/// device busy, then smaller micro-batches, then a second forward pass.
fn choices(needs: &Needs) -> Vec<Choice> {
    let halvings = |from: u64| std::iter::successors(Some(from), |tokens| Some(tokens / 2));
    let smallest = needs.longest_sequence.max(1);
    let sizes: Vec<u64> =
        halvings(needs.largest_batch.max(smallest)).take_while(|&tokens| tokens >= smallest).collect();
    let (fast, slow): (Vec<u64>, Vec<u64>) =
        sizes.iter().partition(|&&tokens| tokens >= FULL_SPEED_TOKENS || tokens == sizes[0]);
    let with = |state_bytes, recompute, sizes: &[u64]| -> Vec<Choice> {
        sizes.iter().map(|&micro_batch| Choice { state_bytes, micro_batch, recompute }).collect()
    };
    [with(4, false, &fast), with(2, false, &fast), with(2, false, &slow), with(2, true, &fast), with(2, true, &slow)]
        .concat()
}

fn layout(needs: &Needs, choice: Choice) -> Vec<Buffer> {
    let mut buffers = Vec::new();
    let mut add = |place: Place, name: &str, bytes: u64, choice: &str| {
        if bytes > 0 {
            buffers.push(Buffer { name: name.into(), place, bytes, choice: choice.into() });
        }
    };
    let parameters = needs.parameters;
    let full = !needs.full_optimizers.is_empty();
    add(Place::Device, "attacked weights", 2 * parameters, "bf16");
    if full {
        add(Place::Device, "remainders of the weights", 2 * parameters, "16 bits; together with the bf16 an exact f32");
        add(Place::Device, "gradient of one layer", 4 * needs.largest_part, "f32, stepped within the backward pass");
    }
    add(Place::Device, "meta-gradient", 4 * parameters, "f32, accumulated by the weight-gradient products");
    // Attacks follow one another, so that optimizers share their memory.
    let states = needs.full_optimizers.iter().map(|kind| kind.rule().states() as u64).max().unwrap_or(0);
    let dtype = if choice.state_bytes == 4 { "f32 states" } else { "bf16 states" };
    add(Place::Device, "attack optimizer", choice.state_bytes * states * parameters, dtype);
    let lora = needs.adapters.iter().map(|(factors, states)| factors * (4 * (2 + states) + 2)).max().unwrap_or(0);
    add(Place::Device, "attack LoRA", lora, "f32 factors, gradient and states, bf16 copy");
    add_activations(needs, choice, &mut add);
    add(
        Place::Device,
        "logits of the loss head",
        4 * HEAD_CHUNK * needs.model.vocab_size as u64,
        "f32, 1024 tokens at once",
    );
    add(Place::Device, "context and workspaces", ALLOWANCE, "allowance, not measured");
    add(Place::Host, "unattacked weights", 4 * parameters, "f32, pinned");
    add(
        Place::Host,
        "outer optimizer",
        4 * needs.outer_states * parameters,
        "f32 states, pinned, touched once an outer step",
    );
    if needs.representations {
        add(Place::Host, "reference weights", 2 * parameters, "bf16, pinned, streamed once an outer step");
    }
    buffers
}

fn add_activations(needs: &Needs, choice: Choice, add: &mut impl FnMut(Place, &str, u64, &str)) {
    let model = needs.model;
    let attention = model.attention();
    let (d, f) = (model.hidden_size as u64, model.intermediate_size as u64);
    let kept = 2 * d + (attention.qkv_cols() + attention.query_cols()) as u64 + 2 * f + needs.adapter_columns;
    let layers = model.num_hidden_layers as u64;
    let (columns, how) = if choice.recompute {
        (layers * d + kept, "bf16, layer inputs; layers run forward twice")
    } else {
        (layers * kept, "bf16, norms and silu(gate)·up recomputed")
    };
    let tokens = choice.micro_batch;
    add(Place::Device, "activations", 2 * tokens * columns, &format!("{how}, {tokens} tokens at once"));
}
