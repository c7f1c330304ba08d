//! `temper attack`: fine-tuning as an attacker does it, from files to files.

use std::collections::BTreeMap;
use std::path::Path;

use super::directory::FinishedModel;
use super::setup::expect_tuning;
use super::{Control, Event, LoadedModel, Measured, Phase, RunDirectory, StreamFile};
use crate::checkpoint::{Snapshot, Tensor};
use crate::config::{AttackConfig, SchedulefreePoint};
use crate::data::{Cursor, DataStream};
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::huggingface::{ExportDType, ModelDirectory, fill_adapter, read_adapter};
use crate::model::{Adapter, Model, Parameters, merge_adapter};
use crate::objective::{Evaluator, LossBatch};
use crate::ops::Backend;
use crate::optimizer::OptimizerProgress;
use crate::report::MetricsWriter;
use crate::training::{FineTune, FineTuneRun, GuardedTrainer, OpenStreams, StepReport, StreamDraws, Trainer, Work};

/// What a finished attack reports.
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
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

/// What to do about an attack that diverges.
const DIVERGED: &str = "lower attack.lr; the last finite weights are in the newest checkpoint";

/// What a checkpoint keeps besides tensors.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
struct State {
    step: u64,
    skipped_in_a_row: u64,
    cursors: Vec<Cursor>,
    optimizer: OptimizerProgress,
    /// Steps of the whole attack, as it was asked for.
    steps: u64,
    /// The device's measured choices.
    #[serde(default)]
    tuning: Option<Fingerprint>,
}

/// An attack under way: all that a checkpoint puts back.
struct Training<B: Backend> {
    evaluator: Evaluator<B>,
    weights: Parameters<B>,
    learner: GuardedTrainer<B>,
    streams: OpenStreams,
    batch: LossBatch<B>,
    steps: FineTuneRun<String>,
}

/// An attack with everything around it.
struct Run<'a, B: Backend> {
    config: &'a AttackConfig,
    directory: RunDirectory,
    source: ModelDirectory,
    training: Training<B>,
    metrics: MetricsWriter,
}

/// Attacks a model and writes the result to `out`: a model directory, or a PEFT adapter directory where LoRA was trained on
/// weights without noise.
///
/// # Errors
/// [`Error::Config`] where `config` does not pass [`AttackConfig::check`]; [`Error::Interrupted`] after a request to stop, with
/// a checkpoint saved; [`Error::NonFinite`] after three skipped steps in a row.
pub fn attack<B: Backend>(
    backend: B,
    config: &AttackConfig,
    out: &Path,
    mut control: Control,
) -> Result<AttackSummary> {
    config.check()?;
    let mut run = Run::set_up(backend, config, out, &mut control)?;
    let steps = run.training.steps.fine_tune().steps;
    let from = run.training.steps.steps_done();
    control.tell(Event::Begin { phase: Phase::Attack, from, steps });
    let mut summary = AttackSummary { steps: from, skipped: 0, first_loss: f64::NAN, last_loss: f64::NAN };
    while !run.training.steps.is_over() {
        if control.stop_requested() {
            run.save()?;
            let remedy = "run it again with `resume` to go on".into();
            return Err(Error::Interrupted { at: format!("after step {}", summary.steps), remedy });
        }
        let report = run.take_step(&mut control)?;
        summary = AttackSummary {
            steps: run.training.steps.steps_done(),
            skipped: summary.skipped + u64::from(report.skipped),
            first_loss: if summary.first_loss.is_nan() { report.loss } else { summary.first_loss },
            last_loss: report.loss,
        };
        let every = config.checkpoint.every;
        if every > 0 && summary.steps.is_multiple_of(every) && summary.steps < steps {
            run.save()?;
        }
    }
    run.publish(&mut control)?;
    Ok(summary)
}

impl<'a, B: Backend> Run<'a, B> {
    fn set_up(backend: B, config: &'a AttackConfig, out: &Path, control: &mut Control) -> Result<Self> {
        let source = ModelDirectory::open(&config.model.path)?;
        let (mut training, source) = Training::new(backend, config, source)?;
        let directory = RunDirectory::open(out, &config.resolved()?, config.config_hash()?, control.resumes())?;
        let checkpoint = if control.resumes() { directory.latest()? } else { None };
        let metrics = match checkpoint {
            None => {
                directory.keep_choices(&training.evaluator.model().backend)?;
                MetricsWriter::create(&directory.folder())?
            }
            Some((path, snapshot)) => {
                training.restore(&path, snapshot)?;
                control.tell(Event::Resumed { checkpoint: &path });
                MetricsWriter::append(&directory.folder(), "attack", training.steps.steps_done())?
            }
        };
        Ok(Self { config, directory, source, training, metrics })
    }

    fn take_step(&mut self, control: &mut Control) -> Result<StepReport> {
        let report = self.training.step()?;
        let step = self.training.steps.steps_done();
        let measured = Measured::Attack(report);
        self.metrics.record("attack", step, &measured.record())?;
        control.tell(Event::Step { step, measured });
        Ok(report)
    }

    fn save(&self) -> Result<()> {
        let state = self.training.state();
        let json = serde_json::to_value(&state).map_err(Error::encode(self.directory.checkpoints()))?;
        self.directory.save(state.step, json, self.training.tensors()?, self.config.checkpoint.keep)
    }

    fn publish(&self, control: &mut Control) -> Result<()> {
        let Training { evaluator, weights, learner, steps, .. } = &self.training;
        let backend = &evaluator.model().backend;
        let trainer = learner.trainer();
        let trained = trainer.trained(weights);
        let values = match self.config.compat.schedulefree_point {
            SchedulefreePoint::Train => trained.download(backend)?,
            SchedulefreePoint::Average => trainer.optimizer().average_point(backend, trained)?,
        };
        let model = &self.source.config;
        let Some(adapter) = trainer.adapter() else { return self.publish_model(&values, control) };
        if writes_model(self.config, steps.fine_tune()) {
            // The factors mean nothing without the weights that they were trained on.
            let mut whole = weights.download(backend)?;
            merge_adapter(model, &mut whole, &adapter.config, &values)?;
            return self.publish_model(&whole, control);
        }
        let base = &self.config.model.path;
        self.directory.publish("adapter_config.json", |path| fill_adapter(path, model, &adapter.config, &values, base))
    }

    fn publish_model(&self, weights: &[f32], control: &mut Control) -> Result<()> {
        let dtype = written_dtype(self.config, &self.source);
        self.directory.publish_model(FinishedModel { source: &self.source, weights, dtype }, control)
    }
}

/// Whether an attack ends with a whole model; otherwise it ends with an adapter.
fn writes_model(config: &AttackConfig, fine_tune: &FineTune<String>) -> bool {
    (fine_tune.adapter.is_none() && config.model.adapter.is_none()) || fine_tune.noise > 0.0
}

/// The dtype of the model at the end.
fn written_dtype(config: &AttackConfig, source: &ModelDirectory) -> ExportDType {
    config.model.dtype.unwrap_or_else(|| source.weights_dtype())
}

impl<B: Backend> Training<B> {
    /// The attack before its first step, and the directory of its model.
    fn new(backend: B, config: &AttackConfig, source: ModelDirectory) -> Result<(Self, ModelDirectory)> {
        let fine_tune = config.fine_tune()?;
        let data = open_data(config, &fine_tune.source.streams(), &source)?;
        let streams = OpenStreams::new(&fine_tune, config.seed, |name| {
            data.get(name).ok_or_else(|| Error::config("attack.data", format!("no stream `{name}`"), "add its table"))
        })?;
        let longest = data.values().map(DataStream::longest).max().unwrap_or(1);
        let written = if writes_model(config, &fine_tune) { written_dtype(config, &source) } else { ExportDType::F32 };
        let LoadedModel { directory, model, mut weights } = LoadedModel::to_write(backend, source, longest, written)?;
        fine_tune.disturb(&model, &mut weights, config.seed)?;
        let trainer = trainer(config, &model, &fine_tune)?;
        let capacity = streams.max_batch_tokens();
        let training = Self {
            evaluator: Evaluator::new(model.clone(), capacity, &Vec::from_iter(trainer.adapter()))?,
            weights,
            learner: GuardedTrainer::new(&model.backend, trainer, DIVERGED)?,
            streams,
            batch: LossBatch::with_room(&model, capacity)?,
            steps: FineTuneRun::new(fine_tune, StreamDraws::OfStep { seed: config.seed }),
        };
        Ok((training, directory))
    }

    fn step(&mut self) -> Result<StepReport> {
        let Self { evaluator, weights, learner, streams, batch, steps } = self;
        let work = Work { evaluator, weights, batch };
        steps.step(learner, work, |step, model, batch| streams.refill(step, model, batch))
    }

    /// What a checkpoint keeps besides tensors.
    fn state(&self) -> State {
        State {
            step: self.steps.steps_done(),
            skipped_in_a_row: self.learner.guard().skipped_in_a_row(),
            cursors: self.streams.cursors(),
            optimizer: self.learner.trainer().optimizer().progress(),
            steps: self.steps.fine_tune().steps,
            tuning: self.evaluator.model().backend.tuning(),
        }
    }

    /// The tensors of a checkpoint: what is trained, and the optimizer's states.
    fn tensors(&self) -> Result<Vec<Tensor>> {
        let backend = &self.evaluator.model().backend;
        let trainer = self.learner.trainer();
        let optimizer = trainer.optimizer();
        let trained = trainer.trained(&self.weights).download(backend)?;
        let mut tensors = vec![Tensor::new("trained", trained)];
        for i in 0..optimizer.state_count() {
            tensors.push(Tensor::new(format!("optimizer state {i}"), optimizer.read_state(backend, i)?));
        }
        Ok(tensors)
    }

    /// Puts a checkpoint back.
    fn restore(&mut self, path: &Path, mut snapshot: Snapshot) -> Result<()> {
        let backend = self.evaluator.model().backend.clone();
        let state: State = serde_json::from_value(std::mem::take(&mut snapshot.state)).map_err(|error| {
            Error::input(path, format!("its state does not fit this program: {error}"), "start a new run")
        })?;
        self.check_steps(&state)?;
        expect_tuning(&backend, path, state.tuning)?;
        let trainer = self.learner.trainer_mut();
        let len = trainer.gradients().layout().len();
        let trained = snapshot.take(path, "trained", len)?;
        let states = (0..trainer.optimizer().state_count())
            .map(|i| snapshot.take(path, &format!("optimizer state {i}"), len))
            .collect::<Result<Vec<_>>>()?;
        trainer.trained_mut(&mut self.weights).upload(&backend, &trained)?;
        let optimizer = self.steps.fine_tune().optimizer_at(state.step);
        trainer.optimizer_mut().reset(&backend, optimizer)?;
        trainer.optimizer_mut().restore(&backend, state.optimizer, &states)?;
        self.learner.guard_mut().restore(state.skipped_in_a_row);
        self.streams.seek(&state.cursors);
        self.steps.resume(state.step);
        Ok(())
    }

    /// Fails where an attack of another number of steps would have come another way to where the checkpoint is.
    fn check_steps(&self, state: &State) -> Result<()> {
        let fine_tune = self.steps.fine_tune();
        let asked = fine_tune.steps;
        if asked < state.step {
            let problem = format!("is {asked}, and the checkpoint has {} steps", state.step);
            return Err(Error::config("attack.steps", problem, "ask for more, or start a new run"));
        }
        if asked != state.steps && fine_tune.depends_on_length() {
            let begun = state.steps;
            let problem = format!(
                "is {asked}, and the attack was begun with {begun}; its schedule or its switch depends on the number, so \
                 that {asked} steps are another attack from the start"
            );
            return Err(Error::config("attack.steps", problem, format!("resume it with {begun}, or start a new run")));
        }
        Ok(())
    }
}

/// The streams that the attack trains on, by their names.
fn open_data(config: &AttackConfig, names: &[&String], model: &ModelDirectory) -> Result<BTreeMap<String, DataStream>> {
    let mut opened = BTreeMap::new();
    for (name, table) in config.data.iter().filter(|(name, _)| names.contains(name)) {
        let data = table.file();
        let file = StreamFile {
            name,
            data: &data,
            batch: 1,
            max_length: table.max_length,
            shuffle: table.shuffle,
            pack: table.pack,
            seed: config.seed,
        };
        opened.insert(name.clone(), file.open(model)?);
    }
    Ok(opened)
}

/// What the attack trains: what a row of a suite trains, or the factors of an adapter's directory.
fn trainer<B: Backend>(config: &AttackConfig, model: &Model<B>, fine_tune: &FineTune<String>) -> Result<Trainer<B>> {
    let backend = &model.backend;
    let Some(path) = &config.model.adapter else { return fine_tune.trainer(model, config.seed) };
    let (shape, factors) = read_adapter(path, &model.config)?;
    let mut adapter = Adapter::zeros(backend, &model.config, shape)?;
    adapter.parameters.upload(backend, &factors)?;
    Trainer::lora(backend, adapter, fine_tune.optimizer_at(0), config.seed)
}
