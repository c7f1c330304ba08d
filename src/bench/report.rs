//! What a bench reports. The peers in `benches/peers/` print the same fields.

use serde::Serialize;

use super::timer::Timing;
use super::{BatchShape, Options, ShapesName, Spec};
use crate::backend::cuda::Cuda;
use crate::fingerprint::Fingerprint;
use crate::ops::Backend;
use crate::training::MemorySettings;

/// Everything that one bench measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Version of these fields.
    pub schema: u32,
    /// What was measured: "temper 0.1.0".
    pub engine: String,
    /// Digest of the GPU code inside this binary; empty where there is none.
    pub kernels_digest: String,
    /// The device.
    pub device: DeviceReport,
    /// Whether the device is a simulation on the CPU: then no figure here is a measurement of a GPU.
    pub simulated: bool,
    /// How weights and activations are stored: "bf16" or "f32".
    pub precision: String,
    /// The library that multiplies matrices; absent where our own kernels do.
    pub library: Option<String>,
    /// What tells the measured choices apart that the device followed; absent where it followed none.
    pub tuning: Option<Fingerprint>,
    /// The sizes.
    pub shapes: ShapesName,
    /// What the device does at best.
    pub rates: Rates,
    /// Kernels.
    pub rows: Vec<Row>,
    /// Training steps.
    pub steps: Vec<StepRow>,
    /// What was asked for and not measured.
    pub not_run: Vec<NotRun>,
}

/// A device, for people.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceReport {
    /// Its name.
    pub name: String,
    /// "9.0" for Hopper.
    pub compute_capability: String,
    /// Number of streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// CUDA version of the driver, where there is one.
    pub driver: Option<String>,
}

/// The rates that floors are computed with, measured in the same run.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Rates {
    /// Rows, columns and summands of the measured product.
    pub matmul_size: usize,
    /// 10¹² operations per second of that product as the backend multiplies: by the library where there is one.
    pub matmul_teraflops_per_second: f64,
    /// The same once more, after all rows.
    pub matmul_teraflops_per_second_at_end: f64,
    /// The same product by our own kernel.
    pub own_matmul_teraflops_per_second: f64,
    /// Bytes of the measured copy.
    pub copy_bytes: usize,
    /// 10⁹ bytes per second of a copy within the device, read and written bytes together.
    pub copy_gigabytes_per_second: f64,
}

impl Rates {
    fn arithmetic_milliseconds(&self, flop: f64) -> f64 {
        flop / (self.matmul_teraflops_per_second * 1e9)
    }

    fn memory_milliseconds(&self, bytes: f64) -> f64 {
        bytes / (self.copy_gigabytes_per_second * 1e6)
    }
}

/// One kernel family at one shape.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Family, then what distinguishes it: "linear_forward/qkv".
    pub name: String,
    /// Sizes, for people.
    pub shape: String,
    /// Number of repetitions that were timed.
    pub samples: usize,
    /// Median device time of a repetition.
    pub milliseconds: f64,
    /// The fastest repetition.
    pub fastest_milliseconds: f64,
    /// The slowest one.
    pub slowest_milliseconds: f64,
    /// Operations of matrix products; element-wise arithmetic is not counted.
    pub flop: f64,
    /// Bytes of all inputs and outputs, once.
    pub bytes: f64,
    /// The least time at this device's measured rates.
    pub floor_milliseconds: f64,
    /// Which of the two gives the floor: "arithmetic" or "memory".
    pub floor_by: &'static str,
    /// milliseconds / floor_milliseconds.
    pub ratio: f64,
    /// flop / time, in 10¹² per second.
    pub teraflops_per_second: f64,
    /// bytes / time, in 10⁹ per second.
    pub gigabytes_per_second: f64,
    /// Median time of the same products by the library, where the row has such a counterpart.
    pub library_milliseconds: Option<f64>,
    /// milliseconds / library_milliseconds: above 1 where the library is faster.
    pub factor_to_library: Option<f64>,
}

impl Row {
    pub(super) fn new(spec: Spec, timing: Timing, rates: Rates) -> Self {
        let arithmetic = rates.arithmetic_milliseconds(spec.work.flop);
        let memory = rates.memory_milliseconds(spec.work.bytes);
        let floor = arithmetic.max(memory);
        Self {
            name: spec.name,
            shape: spec.shape,
            samples: timing.samples,
            milliseconds: timing.median,
            fastest_milliseconds: timing.fastest,
            slowest_milliseconds: timing.slowest,
            flop: spec.work.flop,
            bytes: spec.work.bytes,
            floor_milliseconds: floor,
            floor_by: if arithmetic > memory { "arithmetic" } else { "memory" },
            ratio: timing.median / floor,
            teraflops_per_second: spec.work.flop / (timing.median * 1e9),
            gigabytes_per_second: spec.work.bytes / (timing.median * 1e6),
            library_milliseconds: spec.library_milliseconds,
            factor_to_library: spec.library_milliseconds.map(|library| timing.median / library),
        }
    }
}

/// One kind of training step.
#[derive(Clone, Debug, Serialize)]
pub struct StepRow {
    /// "lora_attack_step", "full_attack_step" or "tr_gradient"; behind a `/`, what distinguishes it: "32x256" is the batch
    /// of a run of TAR.
    pub name: String,
    /// Layers of the model that ran.
    pub layers: usize,
    /// Its parameters.
    pub parameters: u64,
    /// Sequences of a batch.
    pub sequences: usize,
    /// Tokens of a batch.
    pub tokens: usize,
    /// What it trades for memory.
    pub memory: MemorySettings,
    /// Number of steps that were timed.
    pub samples: usize,
    /// Wall time of a step, the steps queued one behind the other as training queues them.
    pub milliseconds: f64,
    /// `milliseconds` / layers; embedding, head, loss and optimizer are in it.
    pub milliseconds_per_layer: f64,
    /// Median device time of a step whose launches were queued before the device reached them.
    pub device_milliseconds: f64,
    /// Time that the host needs to queue a step.
    pub host_milliseconds: f64,
    /// 1 − device time / wall time: the share of a step in which the device waits for the host.
    pub launch_gaps: f64,
    /// Operations of matrix products and of causal attention.
    pub flop: f64,
    /// flop / measured matmul rate.
    pub floor_milliseconds: f64,
    /// milliseconds / floor_milliseconds.
    pub ratio: f64,
    /// flop / wall time, in 10¹² per second.
    pub teraflops_per_second: f64,
    /// Share of the measured matmul rate that the step reaches.
    pub share_of_matmul_rate: f64,
    /// Tokens per second of wall time.
    pub tokens_per_second: f64,
    /// The loss of the last step: finite, or the step computed nothing.
    pub loss: f64,
}

/// What distinguishes a kind of step, and its counts.
pub(super) struct StepSpec {
    pub name: String,
    pub layers: usize,
    pub parameters: u64,
    pub batch: BatchShape,
    pub memory: MemorySettings,
    pub flop: f64,
}

/// What was measured of it.
pub(super) struct StepTimes {
    pub samples: usize,
    pub wall: f64,
    pub device: f64,
    pub host: f64,
    pub loss: f64,
}

impl StepRow {
    pub(super) fn new(spec: StepSpec, times: StepTimes, rates: Rates) -> Self {
        let floor = rates.arithmetic_milliseconds(spec.flop);
        Self {
            name: spec.name,
            layers: spec.layers,
            parameters: spec.parameters,
            sequences: spec.batch.sequences,
            tokens: spec.batch.tokens(),
            memory: spec.memory,
            samples: times.samples,
            milliseconds: times.wall,
            milliseconds_per_layer: times.wall / spec.layers as f64,
            device_milliseconds: times.device,
            host_milliseconds: times.host,
            launch_gaps: 1.0 - times.device / times.wall,
            flop: spec.flop,
            floor_milliseconds: floor,
            ratio: times.wall / floor,
            teraflops_per_second: spec.flop / (times.wall * 1e9),
            share_of_matmul_rate: floor / times.wall,
            tokens_per_second: spec.batch.tokens() as f64 / times.wall * 1e3,
            loss: times.loss,
        }
    }
}

/// A row without a figure.
#[derive(Clone, Debug, Serialize)]
pub struct NotRun {
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: String,
    /// Whether the device has too little memory for it; anything else is a defect.
    pub out_of_memory: bool,
}

impl Report {
    pub(super) fn new(cuda: &Cuda, options: &Options, rates: Rates) -> Self {
        let driver = cuda.driver();
        let info = cuda.driver().device();
        let (major, minor) = info.compute_capability;
        Self {
            schema: 1,
            engine: format!("temper {}", env!("CARGO_PKG_VERSION")),
            kernels_digest: Cuda::kernels_digest().into(),
            device: DeviceReport {
                name: info.name.clone(),
                compute_capability: format!("{major}.{minor}"),
                multiprocessors: info.multiprocessors,
                memory: info.memory,
                driver: if driver.is_simulated() { None } else { Cuda::driver_version() },
            },
            simulated: driver.is_simulated(),
            precision: cuda.compute_dtype().name().into(),
            library: driver.gemm_library(),
            tuning: cuda.tuning(),
            shapes: options.shapes.name,
            rates,
            rows: Vec::new(),
            steps: Vec::new(),
            not_run: Vec::new(),
        }
    }
}
