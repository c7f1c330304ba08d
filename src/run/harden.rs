//! `temper harden`: the nested loop from a run file to a model directory.

use std::path::Path;
use std::time::Instant;

use super::safeguard;
use super::settings::settings;
use super::signals::StopFlag;
use super::{Event, LoadedModel, Observer, RunDirectory, export_dtype, open_stream};
use crate::checkpoint::{Snapshot, TensorData};
use crate::config::{RunConfig, SchedulefreePoint};
use crate::error::{Error, Result};
use crate::huggingface::{ExportDType, ModelDirectory, write_model};
use crate::ops::Backend;
use crate::plan::{Plan, Target, run_flop};
use crate::redteam::DefenderCost;
use crate::report::MetricsWriter;
use crate::tar::{Hardener, HardenerState, OuterReport, Streams};
use crate::training::MemorySettings;

/// What a finished run reports.
#[derive(Clone, Debug, serde::Serialize)]
pub struct HardenSummary {
    /// Outer steps done.
    pub steps: u64,
    /// Outer steps skipped because a number was not finite.
    pub skipped: u64,
    /// The last outer step's retain loss.
    pub retain_loss: f64,
}

/// What a checkpoint keeps besides tensors.
#[derive(serde::Serialize, serde::Deserialize)]
struct State {
    #[serde(flatten)]
    hardener: HardenerState,
    /// Seconds of training until then, the safeguard's with them.
    #[serde(default)]
    seconds: f64,
}

/// A run that has been set up.
struct Run<'a, B: Backend> {
    config: &'a RunConfig,
    directory: RunDirectory,
    source: ModelDirectory,
    dtype: ExportDType,
    hardener: Hardener<B>,
    metrics: MetricsWriter,
    /// Seconds of training, those of earlier processes too as far as their checkpoints know.
    seconds: f64,
}

/// Hardens `config.model` and writes the result to `out`.
///
/// # Errors
/// [`Error::Interrupted`] after `stop` was requested: the outer step under way is discarded and a checkpoint saved.
pub fn harden<B: Backend>(
    backend: B,
    config: &RunConfig,
    out: &Path,
    resume: bool,
    stop: &StopFlag,
    observe: &mut Observer,
) -> Result<HardenSummary> {
    let mut run = set_up(backend, config, out, resume, stop, observe)?;
    let steps = config.tar.outer_steps;
    observe(Event::Begin { from: run.hardener.steps_done(), steps })?;
    let mut summary = HardenSummary { steps: run.hardener.steps_done(), skipped: 0, retain_loss: f64::NAN };
    while run.hardener.steps_done() < steps {
        let report = run.outer_step(stop, observe)?;
        summary = HardenSummary {
            steps: run.hardener.steps_done(),
            skipped: summary.skipped + u64::from(report.skipped),
            retain_loss: report.retain_loss,
        };
        let every = config.checkpoint.every;
        if every > 0 && summary.steps.is_multiple_of(every) && summary.steps < steps {
            run.save(&run.hardener.state())?;
        }
    }
    run.publish()?;
    Ok(summary)
}

fn set_up<'a, B: Backend>(
    backend: B,
    config: &'a RunConfig,
    out: &Path,
    resume: bool,
    stop: &StopFlag,
    observe: &mut Observer,
) -> Result<Run<'a, B>> {
    let source = ModelDirectory::open(&config.model.path)?;
    let dtype = export_dtype(config.model.dtype.as_deref(), &source)?;
    let mut streams = streams(config, &source)?;
    let memory = memory(&backend, config, &source, &streams, observe)?;
    let positions = streams.0.values().map(|s| s.longest()).max().unwrap_or(1);
    let mut loaded = LoadedModel::open(backend, &config.model.path, positions)?;
    let reference = config.model.reference.as_ref().unwrap_or(&config.model.path);
    let reference = loaded.other_weights(reference, "reference weights")?;
    let directory = RunDirectory::open(out, &config.resolved()?, config.config_hash()?, resume)?;
    if let Some((path, snapshot)) = resume.then(|| directory.latest()).transpose()?.flatten() {
        let mut hardener = Hardener::new(loaded.model, loaded.weights, reference, streams, settings(config, memory)?)?;
        let State { hardener: HardenerState { step, .. }, seconds } = restore(&mut hardener, &path, snapshot)?;
        observe(Event::Note(&format!("resumed from {}", path.display())))?;
        let metrics = MetricsWriter::append(&directory.folder(), "harden", step)?;
        return Ok(Run { config, directory, source, dtype, hardener, metrics, seconds });
    }
    let mut metrics = MetricsWriter::create(&directory.folder())?;
    let start = Instant::now();
    if let Some(table) = &config.safeguard {
        let tables = (config, table);
        let recompute = memory.recompute;
        safeguard::apply(&mut loaded, &reference, &mut streams, tables, recompute, stop, &mut metrics, observe)?;
    }
    let seconds = start.elapsed().as_secs_f64();
    if config.compat.skip_first_retain_batch {
        streams.skip_batch(&config.tar.retain_data)?;
    }
    let hardener = Hardener::new(loaded.model, loaded.weights, reference, streams, settings(config, memory)?)?;
    let run = Run { config, directory, source, dtype, hardener, metrics, seconds };
    if config.safeguard.is_some() {
        // What the safeguard cost is not paid again by a run that is stopped later.
        run.save(&run.hardener.state())?;
    }
    Ok(run)
}

/// What attacks trade for memory: what the run file says, and what is left to choose so that the run fits the device.
///
/// # Errors
/// [`Error::Memory`] where nothing fits a device with memory of its own.
fn memory<B: Backend>(
    backend: &B,
    config: &RunConfig,
    source: &ModelDirectory,
    streams: &Streams,
    observe: &mut Observer,
) -> Result<MemorySettings> {
    let Some(memory) = backend.device_memory() else { return Ok(config.memory.settings(MemorySettings::default())) };
    let plan = Plan::new(
        &as_read(config, streams),
        &source.config,
        Target::Device { memory, compute: backend.compute_dtype() },
    )?;
    plan.ensure_fits()?;
    let gigabytes = |bytes: u64| bytes as f64 / 1e9;
    let (needed, all) = (gigabytes(plan.device_bytes), gigabytes(memory));
    observe(Event::Note(&format!("memory: {needed:.1} of {all:.1} GB on the device; {}", plan.memory)))?;
    Ok(plan.memory)
}

/// The run file with the lengths that the data has.
fn as_read(config: &RunConfig, streams: &Streams) -> RunConfig {
    let mut actual = config.clone();
    for (name, stream) in &streams.0 {
        if let Some(table) = actual.data.get_mut(name) {
            table.max_length = stream.longest();
        }
    }
    actual
}

/// Puts a checkpoint back; returns its state.
fn restore<B: Backend>(hardener: &mut Hardener<B>, path: &Path, mut snapshot: Snapshot) -> Result<State> {
    let state: State = serde_json::from_value(std::mem::take(&mut snapshot.state)).map_err(|error| {
        Error::input(path, format!("its state does not fit this program: {error}"), "start a new run")
    })?;
    let len = hardener.weights().layout().len();
    let weights = snapshot.take_f32(path, "weights", len)?;
    let states = (0..hardener.outer_optimizer().state_count())
        .map(|i| snapshot.take_f32(path, &format!("outer optimizer state {i}"), len))
        .collect::<Result<Vec<_>>>()?;
    hardener.restore(&state.hardener, &weights, &states)?;
    Ok(state)
}

/// The streams that the method uses, of those that the run file names.
fn streams(config: &RunConfig, model: &ModelDirectory) -> Result<Streams> {
    let mut streams = Streams::default();
    for name in config.used_streams() {
        let Some(table) = config.data.get(name) else {
            let problem = "there is no such data stream";
            return Err(Error::config(format!("data.{name}"), problem, "add the table or mend the name"));
        };
        let order = (table.shuffle, table.pack);
        let stream = open_stream(name, &table.path, model, table.batch, table.max_length, order, config.seed)?;
        streams.0.insert(name.to_string(), stream);
    }
    Ok(streams)
}

impl<B: Backend> Run<'_, B> {
    /// One outer step with everything around it.
    fn outer_step(&mut self, stop: &StopFlag, observe: &mut Observer) -> Result<OuterReport> {
        let (before, start) = (self.hardener.state(), Instant::now());
        let inner_steps = self.config.tar.inner_steps;
        let outcome = self.hardener.outer_step(&mut |_, k| {
            if stop.requested() {
                let remedy = "run the same command with --resume to go on".into();
                return Err(Error::Interrupted { at: format!("in outer step {}", before.step), remedy });
            }
            observe(Event::Inner { step: k, of: inner_steps })
        });
        let report = match outcome {
            Err(error @ Error::Interrupted { .. }) => {
                // The weights are the unattacked ones again; the streams are put back by the state from before.
                self.save(&before)?;
                return Err(error);
            }
            other => other?,
        };
        self.seconds += start.elapsed().as_secs_f64();
        let values = measured(&report);
        self.metrics.record("harden", report.step + 1, &values)?;
        observe(Event::Step { step: report.step + 1, values: &values })?;
        Ok(report)
    }

    fn save(&self, state: &HardenerState) -> Result<()> {
        let backend = &self.hardener.model().backend;
        let mut tensors = vec![("weights".to_string(), TensorData::F32(self.hardener.weights().download(backend)?))];
        let outer = self.hardener.outer_optimizer();
        for i in 0..outer.state_count() {
            tensors.push((format!("outer optimizer state {i}"), TensorData::F32(outer.read_state(backend, i)?)));
        }
        let kept = State { hardener: state.clone(), seconds: self.seconds };
        let json = serde_json::to_value(kept).map_err(|error| Error::Device(format!("checkpoint state: {error}")))?;
        self.directory.save(state.step, json, tensors, self.config.checkpoint.keep)
    }

    fn publish(&self) -> Result<()> {
        let train_point = self.config.compat.schedulefree_point == SchedulefreePoint::Train;
        let weights = self.hardener.final_weights(train_point)?;
        let Self { source, dtype, .. } = self;
        self.cost().write(self.directory.top())?;
        self.directory
            .publish("config.json", |path| write_model(path, &source.config, Some(&source.path), &weights, *dtype))
    }

    /// What the defence cost: its training, with the safeguard where this run trained one.
    fn cost(&self) -> DefenderCost {
        let flop = run_flop(&as_read(self.config, self.hardener.streams()), &self.source.config);
        DefenderCost { seconds: self.seconds, flop, device: self.hardener.model().backend.description() }
    }
}

/// What the metrics stream and the progress line get of an outer step.
fn measured(report: &OuterReport) -> Vec<(&'static str, f64)> {
    let last = |losses: fn(&crate::tar::TrajectoryReport) -> &[f64]| {
        let all = report.trajectories.iter().filter_map(|t| losses(t).last().copied());
        let (sum, count) = all.fold((0.0, 0), |(sum, count), loss| (sum + loss, count + 1));
        if count == 0 { f64::NAN } else { sum / f64::from(count) }
    };
    vec![
        ("attack_loss", last(|t| &t.attack_losses)),
        ("tr_loss", last(|t| &t.tr_losses)),
        ("retain_loss", report.retain_loss),
        ("retain_distance", report.retain_distance),
        ("gradient_norm", report.gradient_norm),
        ("lr", report.lr),
        ("skipped", f64::from(u8::from(report.skipped))),
        ("bounded", f64::from(u8::from(report.bounded))),
    ]
}
