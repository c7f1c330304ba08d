//! `temper attack`: fine-tuning as an attacker does it, from files to files.

use std::path::{Path, PathBuf};

use super::{Control, Event, LoadedModel, Measured, Phase, RunDirectory, StreamFile};
use crate::checkpoint::Tensor;
use crate::data::{Cursor, DataStream};
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::huggingface::{ExportDType, ModelDirectory, fill_adapter, fill_model, read_adapter};
use crate::model::{Adapter, AdapterConfig};
use crate::objective::{Evaluator, LossBatch};
use crate::ops::Backend;
use crate::optimizer::{OptimizerConfig, OptimizerProgress};
use crate::report::MetricsWriter;
use crate::training::{GuardedSteps, Trainer};

/// An attack as a user asks for it.
#[derive(Clone, Debug)]
pub struct AttackConfig {
    /// The model.
    pub model: PathBuf,
    /// The data.
    pub data: PathBuf,
    /// Output directory: a model directory, or a PEFT adapter directory for LoRA.
    pub out: PathBuf,
    /// LoRA, or all weights where absent.
    pub adapter: Option<AdapterConfig>,
    /// LoRA adapter to start from; its own configuration counts.
    pub start_adapter: Option<PathBuf>,
    /// The optimizer.
    pub optimizer: OptimizerConfig,
    /// Steps.
    pub steps: u64,
    /// Sequences of one step.
    pub batch: usize,
    /// Longest sequence.
    pub max_length: usize,
    /// Whether each pass over the data has its own random order.
    pub shuffle: bool,
    /// Whether sequences are packed.
    pub pack: bool,
    /// Dtype of the written model; that of the input where absent.
    pub dtype: Option<ExportDType>,
    /// Whether the training point of a schedule-free optimizer is written, instead of the average.
    pub train_point: bool,
    /// Seed of the data's order, of the adapter's initialisation and of its dropout.
    pub seed: u64,
    /// Steps between checkpoints; 0 for none but the one at a stop.
    pub checkpoint_every: u64,
}

impl AttackConfig {
    /// The settings as text: kept beside the result, and hashed to tell runs apart.
    fn resolved(&self) -> String {
        let lines = format!("temper attack\n{self:#?}");
        lines.lines().map(|line| format!("# {line}\n")).collect()
    }
}

/// What a finished attack reports.
#[derive(Clone, Debug, serde::Serialize)]
pub struct AttackSummary {
    /// Steps taken.
    pub steps: u64,
    /// Steps skipped because a number was not finite.
    pub skipped: u64,
    /// Loss of the first step of this process, before its update.
    pub first_loss: f64,
    /// Loss of the last step, before its update.
    pub last_loss: f64,
}

/// Checkpoints kept.
const KEEP: usize = 2;
/// What to do about an attack that diverges.
const DIVERGED: &str = "lower `lr`; the last finite weights are in the newest checkpoint";

#[derive(Clone, Copy, serde::Serialize, serde::Deserialize)]
struct State {
    step: u64,
    skipped_in_a_row: u64,
    cursor: Cursor,
    optimizer: OptimizerProgress,
}

struct Run<'a, B: Backend> {
    config: &'a AttackConfig,
    directory: RunDirectory,
    source: ModelDirectory,
    evaluator: Evaluator<B>,
    weights: crate::model::Parameters<B>,
    trainer: Trainer<B>,
    stream: DataStream,
    batch: LossBatch<B>,
    steps: GuardedSteps<B>,
    metrics: Option<MetricsWriter>,
    step: u64,
}

/// Attacks a model and writes the result to `config.out`.
///
/// # Errors
/// [`Error::Interrupted`] after a request to stop, with a checkpoint saved; [`Error::NonFinite`] after three skipped
/// steps in a row.
pub fn attack<B: Backend>(backend: B, config: &AttackConfig, mut control: Control) -> Result<AttackSummary> {
    let mut run = Run::set_up(backend, config, &mut control)?;
    control.tell(Event::Begin { phase: Phase::Attack, from: run.step, steps: config.steps });
    let mut summary = AttackSummary { steps: run.step, skipped: 0, first_loss: f64::NAN, last_loss: f64::NAN };
    while run.step < config.steps {
        if control.stop_requested() {
            run.save()?;
            let remedy = "run it again with `resume` to go on".into();
            return Err(Error::Interrupted { at: format!("after step {}", run.step), remedy });
        }
        let (loss, skipped) = run.take_step(&mut control)?;
        let first_loss = if summary.first_loss.is_nan() { loss } else { summary.first_loss };
        summary = AttackSummary {
            steps: run.step,
            skipped: summary.skipped + u64::from(skipped),
            first_loss,
            last_loss: loss,
        };
        let every = config.checkpoint_every;
        if every > 0 && run.step.is_multiple_of(every) && run.step < config.steps {
            run.save()?;
        }
    }
    run.publish()?;
    Ok(summary)
}

impl<'a, B: Backend> Run<'a, B> {
    fn set_up(backend: B, config: &'a AttackConfig, control: &mut Control) -> Result<Self> {
        let source = ModelDirectory::open(&config.model)?;
        let file = StreamFile {
            name: "data",
            path: &config.data,
            batch: config.batch,
            max_length: config.max_length,
            shuffle: config.shuffle,
            pack: config.pack,
            seed: config.seed,
        };
        let stream = file.open(&source)?;
        let loaded = LoadedModel::new(backend, source, stream.longest())?;
        let trainer = trainer(config, &loaded)?;
        let adapters: Vec<&Adapter<B>> = trainer.adapter().into_iter().collect();
        let evaluator = Evaluator::new(loaded.model.clone(), stream.max_batch_tokens(), &adapters)?;
        let resolved = config.resolved();
        let directory = RunDirectory::open(&config.out, &resolved, Fingerprint::of(&resolved)?, control.resumes())?;
        let steps = GuardedSteps::new(&loaded.model.backend, DIVERGED)?;
        let mut run = Self {
            batch: LossBatch::with_room(&loaded.model, stream.max_batch_tokens())?,
            config,
            directory,
            source: loaded.directory,
            evaluator,
            weights: loaded.weights,
            trainer,
            stream,
            steps,
            metrics: None,
            step: 0,
        };
        let folder = run.directory.folder();
        run.metrics = Some(match control.resumes().then(|| run.directory.latest()).transpose()?.flatten() {
            None => MetricsWriter::create(&folder)?,
            Some((path, snapshot)) => {
                run.restore(&path, snapshot)?;
                control.tell(Event::Resumed { checkpoint: &path });
                MetricsWriter::append(&folder, "attack", run.step)?
            }
        });
        Ok(run)
    }

    /// One step; returns its loss and whether it was skipped.
    fn take_step(&mut self, control: &mut Control) -> Result<(f64, bool)> {
        self.batch.refill(self.evaluator.model(), self.stream.next_batch()?)?;
        let report =
            self.steps.step(&mut self.trainer, &mut self.evaluator, &mut self.weights, &self.batch, 1.0, self.step)?;
        self.step += 1;
        let measured = Measured::Attack(report);
        if let Some(metrics) = &mut self.metrics {
            metrics.record("attack", self.step, &measured.record())?;
        }
        control.tell(Event::Step { step: self.step, measured });
        Ok((report.loss, report.skipped))
    }

    /// The parameters that the attack trains, on the host.
    fn trained(&self) -> Result<Vec<f32>> {
        let backend = &self.evaluator.model().backend;
        match self.trainer.adapter() {
            Some(adapter) => adapter.parameters.download(backend),
            None => self.weights.download(backend),
        }
    }

    fn save(&self) -> Result<()> {
        let backend = &self.evaluator.model().backend;
        let mut tensors = vec![Tensor::new("trained", self.trained()?)];
        let optimizer = self.trainer.optimizer();
        for i in 0..optimizer.state_count() {
            tensors.push(Tensor::new(format!("optimizer state {i}"), optimizer.read_state(backend, i)?));
        }
        let state = State {
            step: self.step,
            skipped_in_a_row: self.steps.skipped_in_a_row(),
            cursor: self.stream.cursor(),
            optimizer: self.trainer.optimizer().progress(),
        };
        let json = serde_json::to_value(state).map_err(Error::encode(self.directory.checkpoints()))?;
        self.directory.save(self.step, json, tensors, KEEP)
    }

    fn restore(&mut self, path: &Path, mut snapshot: crate::checkpoint::Snapshot) -> Result<()> {
        let backend = self.evaluator.model().backend.clone();
        let state: State = serde_json::from_value(std::mem::take(&mut snapshot.state)).map_err(|error| {
            Error::input(path, format!("its state does not fit this program: {error}"), "start a new run")
        })?;
        let len = self.trainer.gradients()?.layout().len();
        let trained = snapshot.take(path, "trained", len)?;
        let states = (0..self.trainer.optimizer().state_count())
            .map(|i| snapshot.take(path, &format!("optimizer state {i}"), len))
            .collect::<Result<Vec<_>>>()?;
        match self.trainer.adapter_mut() {
            Some(adapter) => adapter.parameters.upload(&backend, &trained)?,
            None => self.weights.upload(&backend, &trained)?,
        }
        self.trainer.optimizer_mut().restore(&backend, state.optimizer, &states)?;
        self.stream.seek(state.cursor);
        self.steps.restore(state.skipped_in_a_row);
        self.step = state.step;
        Ok(())
    }

    fn publish(&self) -> Result<()> {
        let backend = &self.evaluator.model().backend;
        let trained = match self.trainer.adapter() {
            Some(adapter) => &adapter.parameters,
            None => &self.weights,
        };
        let values = match self.config.train_point {
            true => trained.download(backend)?,
            false => self.trainer.optimizer().average_point(backend, trained)?,
        };
        let (source, model) = (&self.source, &self.source.config);
        match self.trainer.adapter() {
            Some(adapter) => self.directory.publish("adapter_config.json", |path| {
                fill_adapter(path, model, &adapter.config, &values, &self.config.model)
            }),
            None => self.directory.publish("config.json", |path| {
                let dtype = self.config.dtype.unwrap_or_else(|| source.weights_dtype());
                fill_model(path, model, Some(&source.path), &values, dtype)
            }),
        }
    }
}

fn trainer<B: Backend>(config: &AttackConfig, loaded: &LoadedModel<B>) -> Result<Trainer<B>> {
    let (backend, model) = (&loaded.model.backend, &loaded.model.config);
    let optimizer = config.optimizer.clone();
    let Some(fresh) = &config.adapter else {
        if config.start_adapter.is_some() {
            let remedy = "train an adapter, or merge this one into the model first";
            return Err(Error::config("adapter", "a full-parameter attack trains no adapter", remedy));
        }
        return Trainer::full(backend, loaded.model.layout(), optimizer);
    };
    let adapter = match &config.start_adapter {
        None => {
            let mut adapter = Adapter::zeros(backend, model, fresh.clone())?;
            adapter.initialise(backend, config.seed, 0)?;
            adapter
        }
        Some(path) => {
            let (shape, factors) = read_adapter(path, model)?;
            let mut adapter = Adapter::zeros(backend, model, shape)?;
            adapter.parameters.upload(backend, &factors)?;
            adapter
        }
    };
    Trainer::lora(backend, adapter, optimizer, config.seed)
}
