//! The rows of `temper bench step`: whole training steps, as the nested loop runs them, on a model with random weights.

use std::sync::Arc;
use std::time::Instant;

use super::count::{self, Pass};
use super::data::Data;
use super::ledger::StepLedger;
use super::report::{StepRow, StepSpec, StepTimes};
use super::{BatchShape, Bench, Options, by_library, tar};
use crate::backend::cuda::{Cuda, Ledger, ProductShape};
use crate::error::{Error, Result};
use crate::model::{
    AdapterConfig, Batch, GradientDestinations, Gradients, Model, ModelConfig, ModelLayout, Parameters, Recompute,
};
use crate::objective::{EntropyOver, Evaluator, LossBatch, LossPass, LossTape, Subject};
use crate::ops::{self, Backend, DType, Matrix, MatrixMut, Tensor};
use crate::optimizer::{OptimizerConfig, OptimizerKind};
use crate::training::{AnyTrainer, MemorySettings, Moments, Trainer};

/// Fewest steps that are timed: one of an 8B model takes about as long as all samples of a kernel.
const FEWEST_STEPS: usize = 5;
/// Batches that the steps take in turn.
const BATCHES: usize = 2;

pub(super) fn run(bench: &mut Bench) -> Result<()> {
    for kind in kinds(bench)? {
        if !bench.wants(&kind.name) {
            continue;
        }
        match by_library(&bench.cuda, || measure(bench, &kind)) {
            Ok(row) => {
                bench.report.steps.push(row);
                (bench.observe)(&bench.report);
            }
            Err(error) => bench.not_run(&kind.name, &with_remedy(error)),
        }
    }
    Ok(())
}

/// What each step tells the device once it repeats itself.
pub(super) fn ledgers(bench: &mut Bench) -> Result<Vec<StepLedger>> {
    let mut ledgers = Vec::new();
    for kind in kinds(bench)?.into_iter().filter(|kind| bench.wants(&kind.name)).collect::<Vec<_>>() {
        let counted = Step::new(bench.stage(), &kind).and_then(|mut step| {
            step.run(0)?;
            bench.cuda.counted(|| step.run(1))
        });
        match counted {
            Ok((_, ledger)) => ledgers.push(step_ledger(bench.options, &kind, ledger.unwrap_or_default())),
            Err(error) => bench.not_run(&kind.name, &error),
        }
    }
    Ok(ledgers)
}

fn step_ledger(options: &Options, kind: &Kind, ledger: Ledger) -> StepLedger {
    let model = &options.shapes.model;
    StepLedger {
        name: kind.name.clone(),
        layers: model.num_hidden_layers,
        sequences: kind.batch.sequences,
        tokens: kind.batch.tokens(),
        useful_flop: flop(model, options, kind),
        executed_flop: ledger.executed_flop(),
        bytes: ledger.bytes(),
        hidden_bytes: ledger.hidden_bytes(),
        ledger,
    }
}

fn with_remedy(error: Error) -> Error {
    match error {
        Error::Memory { what, needed, available, .. } => {
            Error::Memory { what, needed, available, remedy: "run fewer `layers`".into() }
        }
        other => other,
    }
}

/// What a step trains.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Trains {
    /// The factors of an adapter.
    Adapter,
    /// All weights.
    Weights,
    /// Nothing: the gradient is added to the meta-gradient.
    MetaGradient,
}

/// A step, and the memory that it runs in.
#[derive(Clone)]
struct Kind {
    name: String,
    trains: Trains,
    batch: BatchShape,
    /// Tokens that the activations have room for: those of the run's largest batch.
    room: usize,
    memory: MemorySettings,
}

/// Steps on long sequences with all activations kept; a full attack with less memory (moments in bf16 where weights are,
/// stepped within the backward pass, norms and silu(gate)·up computed again); and the two steps of TAR as a run of `preset
/// = "bio"` takes them on this device.
fn kinds(bench: &Bench) -> Result<Vec<Kind>> {
    let shapes = &bench.options.shapes;
    let long = |name: &str, trains, sequences| {
        let batch = BatchShape { sequences, ..shapes.batch() };
        Kind { name: name.into(), trains, batch, room: batch.tokens(), memory: MemorySettings::default() }
    };
    let states = if bench.cuda_dtype() == DType::Bf16 { Moments::Bf16 } else { Moments::F32 };
    let lean = MemorySettings { states, step_in_backward: true, recompute: Recompute::Cheap };
    let memory = tar::planned_memory(&bench.cuda, shapes)?;
    let in_tar = |stem: &str, trains, batch: BatchShape| {
        let room = shapes.attack.tokens().max(shapes.tamper_resistance.tokens());
        Kind { name: format!("{stem}/{batch}"), trains, batch, room, memory }
    };
    let full_attack = long("full_attack_step", Trains::Weights, shapes.full_step_sequences);
    Ok(vec![
        long("lora_attack_step", Trains::Adapter, shapes.sequences),
        full_attack.clone(),
        Kind { name: "full_attack_step/lean".into(), memory: lean, ..full_attack },
        in_tar("full_attack_step", Trains::Weights, shapes.attack),
        long("tr_gradient", Trains::MetaGradient, shapes.sequences),
        in_tar("tr_gradient", Trains::MetaGradient, shapes.tamper_resistance),
    ])
}

/// What steps are made of.
#[derive(Clone, Copy)]
pub(super) struct Stage<'a> {
    pub cuda: &'a Cuda,
    pub model: &'a ModelConfig,
    /// r of an adapter.
    pub rank: usize,
    pub data: &'a Data,
}

impl Bench<'_> {
    /// What its steps are made of.
    fn stage(&self) -> Stage<'_> {
        let shapes = &self.options.shapes;
        Stage { cuda: &self.cuda, model: &shapes.model, rank: shapes.rank, data: &self.data }
    }
}

impl Stage<'_> {
    /// The products that a step asks the device's library for, on sequences of full length.
    pub fn products(&self, trains: Trains, batch: BatchShape) -> Result<Vec<ProductShape>> {
        let memory = MemorySettings::default();
        let kind = Kind { name: "a step".into(), trains, batch, room: batch.tokens(), memory };
        self.cuda.products_of(|cuda| {
            Step::new(Stage { cuda, ..*self }, &kind)?.run(0)?;
            cuda.driver().synchronize()
        })
    }
}

/// Everything that a step works on.
struct Step {
    name: String,
    evaluator: Evaluator<Cuda>,
    weights: Parameters<Cuda>,
    trainer: Option<AnyTrainer<Cuda>>,
    meta_gradient: Option<Gradients<Cuda>>,
    batches: Vec<Batch>,
    /// The batch of the present step: as in a trajectory, all go through one memory, so that steps are recorded.
    batch: LossBatch<Cuda>,
    tape: LossTape<Cuda>,
}

impl Step {
    fn new(stage: Stage, kind: &Kind) -> Result<Self> {
        let cuda = stage.cuda;
        let memory = kind.memory;
        let model = Arc::new(Model::new(cuda.clone(), stage.model.clone(), kind.batch.length)?);
        let weights = random_weights(stage, model.layout())?;
        let optimizer = OptimizerConfig::new(OptimizerKind::AdamW, 2e-6);
        let mut trainer = None;
        let mut meta_gradient = None;
        match kind.trains {
            Trains::Adapter => {
                let adapter = AdapterConfig::new(stage.rank);
                trainer = Some(AnyTrainer::Whole(Trainer::started(&model, Some(&adapter), optimizer, 1)?));
            }
            Trains::Weights => {
                trainer = Some(AnyTrainer::full(cuda, model.layout(), optimizer, memory)?);
            }
            Trains::MetaGradient => meta_gradient = Some(Gradients::zeros(cuda, "meta-gradient", model.layout())?),
        }
        let adapters: Vec<_> = trainer.iter().filter_map(AnyTrainer::adapter).collect();
        let evaluator = Evaluator::recomputing(Arc::clone(&model), kind.room, &adapters, memory.recompute)?;
        let batches = (0..BATCHES).map(|_| batch(stage, kind.batch)).collect();
        let batch = LossBatch::with_room(&model, kind.batch.tokens())?;
        let tape = LossTape::new(cuda, 1)?;
        Ok(Self { name: kind.name.clone(), evaluator, weights, trainer, meta_gradient, batches, batch, tape })
    }

    /// Queues a step.
    fn run(&mut self, number: usize) -> Result<()> {
        let Self { name, evaluator, weights, trainer, meta_gradient, batches, batch, tape } = self;
        batch.refill(evaluator.model(), batches[number % batches.len()].clone())?;
        let backend = evaluator.model().backend.clone();
        let batch = &*batch;
        tape.clear(&backend)?;
        match (trainer, meta_gradient) {
            (Some(trainer), _) => trainer.cross_entropy_step(evaluator, weights, batch, 1.0, tape.slot(0)),
            (None, Some(meta_gradient)) => {
                let pass = LossPass {
                    subject: Subject::plain(weights),
                    batch,
                    scale: 1.0,
                    destinations: Some(GradientDestinations::of_weights(meta_gradient)),
                    loss: tape.slot(0),
                };
                evaluator.negative_entropy(pass, EntropyOver::Valid)
            }
            (None, None) => Err(Error::Defect(format!("{name}: nothing to train"))),
        }
    }
}

/// Weights as a fresh model has them: normal numbers of deviation 0.02, and norms of 1.
fn random_weights(stage: Stage, layout: &ModelLayout) -> Result<Parameters<Cuda>> {
    let Stage { cuda, data, .. } = stage;
    let mut weights = Parameters::zeros(cuda, "weights", layout)?;
    let (values, remainder) = weights.flat_mut();
    data.fill(values.buffer, 0, layout.len(), 0.02)?;
    if let Some(remainder) = remainder {
        data.fill(remainder.buffer, 0, layout.len(), 0.02)?;
    }
    let longest = stage.model.hidden_size;
    let mut ones = Tensor::zeros(cuda, "ones", 1, longest, cuda.compute_dtype())?;
    cuda.upload_f32(ones.buffer_mut(), 0, &vec![1.0; longest])?;
    for entry in layout.entries().iter().filter(|entry| entry.shape.len() == 1) {
        let cols = entry.block.len();
        let from = Matrix { cols, ..ones.view() };
        let to = MatrixMut { buffer: &mut *values.buffer, offset: entry.block.offset, rows: 1, cols };
        cuda.run(ops::CopyValues { from, to })?;
    }
    Ok(weights)
}

/// Random tokens, all of them learned.
fn batch(stage: Stage, shape: BatchShape) -> Batch {
    let mut batch = Batch::default();
    for _ in 0..shape.sequences {
        let tokens = stage.data.ids(shape.length, stage.model.vocab_size);
        batch.push(&tokens, &tokens, shape.length);
    }
    batch
}

fn measure(bench: &Bench, kind: &Kind) -> Result<StepRow> {
    let shapes = &bench.options.shapes;
    let cuda = &bench.cuda;
    let mut step = Step::new(bench.stage(), kind)?;
    let effort = bench.options.effort;
    // The first step loads modules and allocates scratch, the second is recorded; the third gives an estimate.
    step.run(0)?;
    step.run(1)?;
    cuda.driver().synchronize()?;
    let (host, wall) = queued_and_finished(cuda, &mut step, 1)?;
    let fewest = effort.samples.0.min(FEWEST_STEPS);
    let samples = ((4.0 * effort.minimum_milliseconds / wall).ceil() as usize).clamp(fewest, effort.samples.1);
    let device = device_milliseconds(bench, &mut step, samples.min(10), host)?;
    let (host, wall) = queued_and_finished(cuda, &mut step, samples)?;
    let loss = step.tape.read_one(cuda, 0)?;
    if !loss.is_finite() {
        return Err(Error::Defect(format!("{}: the loss is {loss}", kind.name)));
    }
    let model = &shapes.model;
    let spec = StepSpec {
        name: kind.name.clone(),
        layers: model.num_hidden_layers,
        parameters: model.parameter_count(),
        batch: kind.batch,
        memory: kind.memory,
        flop: flop(model, bench.options, kind),
    };
    Ok(StepRow::new(spec, StepTimes { samples, wall, device, host, loss }, bench.rates))
}

/// Milliseconds of a step, of `count` steps in a row: until the host has queued it, and until the device has run it.
/// Starting from an idle device, the first step's launches are part of it, as they are in training.
fn queued_and_finished(cuda: &Cuda, step: &mut Step, count: usize) -> Result<(f64, f64)> {
    cuda.driver().synchronize()?;
    let start = Instant::now();
    let mut queued = 0.0;
    for number in 0..count {
        let before = Instant::now();
        step.run(number)?;
        queued += before.elapsed().as_secs_f64();
    }
    cuda.driver().synchronize()?;
    let milliseconds = |seconds: f64| 1e3 * seconds / count as f64;
    Ok((milliseconds(queued), milliseconds(start.elapsed().as_secs_f64())))
}

/// Median device time of a step that was queued while the device was busy with something else for at least as long as
/// the host needs for that: what is left between its kernels is the device's own.
fn device_milliseconds(bench: &Bench, step: &mut Step, samples: usize, host: f64) -> Result<f64> {
    let cuda = &bench.cuda;
    let driver = bench.cuda.driver();
    let size = bench.options.shapes.matmul_size;
    let x = bench.data.matrix("plug: x", size, size)?;
    let w = bench.data.matrix("plug: w", size, size)?;
    let mut y = Tensor::zeros(cuda, "plug: y", size, size, cuda.compute_dtype())?;
    let product = 2.0 * (size as f64).powi(3) / (bench.rates.matmul_teraflops_per_second * 1e9);
    // A host that waits for the device while it queues a step (a full queue) is not slower than the device.
    let products = ((2.0 * host / product).ceil() as usize).clamp(1, 1000);
    let mut times = Vec::with_capacity(samples);
    for number in 0..samples {
        for _ in 0..products {
            cuda.run(ops::LinearForward { x: x.view(), w: w.view(), y: y.view_mut() })?;
        }
        let start = driver.record_event()?;
        step.run(number)?;
        let end = driver.record_event()?;
        times.push(f64::from(driver.elapsed_milliseconds(start, end)?));
    }
    times.sort_by(f64::total_cmp);
    Ok((times[(samples - 1) / 2] + times[samples / 2]) / 2.0)
}

/// Operations of matrix products and of causal attention in one step.
fn flop(model: &ModelConfig, options: &Options, kind: &Kind) -> f64 {
    let shape = model.attention();
    let layers = model.num_hidden_layers as f64;
    let d = model.hidden_size as f64;
    let f = model.intermediate_size as f64;
    let layer = d * (shape.qkv_cols() + shape.query_cols()) as f64 + 3.0 * d * f;
    let BatchShape { sequences, length } = kind.batch;
    let adapter_weights = match kind.trains {
        Trains::Adapter => AdapterConfig::new(options.shapes.rank).parameter_count(model) as f64,
        _ => 0.0,
    };
    let pass = Pass {
        matmul_weights: layers * layer + d * model.vocab_size as f64,
        adapter_weights,
        attention_forward: layers * count::attention_forward(sequences, length, shape, 1.0).flop,
        tokens: kind.batch.tokens() as f64,
    };
    pass.step(kind.trains != Trains::Adapter)
}
