//! `temper harden`: the nested loop from a run file to a model directory.

use std::path::Path;
use std::time::Instant;

use super::directory::FinishedModel;
use super::safeguard;
use super::setup::expect_tuning;
use super::{Control, Event, LoadedModel, Measured, Phase, RunDirectory, streams};
use crate::checkpoint::{Snapshot, Tensor};
use crate::config::{RunConfig, SchedulefreePoint, settings};
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::huggingface::{ExportDType, ModelDirectory};
use crate::ops::Backend;
use crate::plan::DefenderCost;
use crate::plan::{Plan, PlannedDevice, run_flop};
use crate::report::MetricsWriter;
use crate::safeguard::disturb;
use crate::tar::{Hardener, HardenerState, HardenerTensors, InnerStep, OuterReport, Streams};
use crate::training::MemorySettings;

/// The report of a finished run.
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct HardenSummary {
    /// Outer steps done.
    pub steps: u64,
    /// Outer steps that this process skipped because a number was not finite.
    pub skipped: u64,
    /// The last outer step's retain loss; NaN where this process took no step.
    pub retain_loss: f64,
}

/// The part of a checkpoint that is not tensors.
#[derive(serde::Serialize, serde::Deserialize)]
struct State {
    #[serde(flatten)]
    hardener: HardenerState,
    /// Seconds of training until then, the safeguard's with them.
    #[serde(default)]
    seconds: f64,
    /// The device's measured choices until then.
    #[serde(default)]
    tuning: Option<Fingerprint>,
}

/// A run that has been set up, for whoever owns the loop: take steps, write checkpoints, finish.
pub struct Hardening<'a, B: Backend> {
    config: RunConfig,
    control: Control<'a>,
    directory: RunDirectory,
    source: ModelDirectory,
    /// What the defences cost that the model came with.
    earlier: Option<DefenderCost>,
    dtype: ExportDType,
    hardener: Hardener<B>,
    metrics: MetricsWriter,
    /// Seconds of training; earlier processes count as far as their checkpoints know.
    seconds: f64,
    summary: HardenSummary,
}

/// Hardens `config.model` and writes the result to `out`, with checkpoints as the configuration asks for them.
///
/// # Errors
/// [`Error::Interrupted`] after a request to stop: the outer step under way is discarded and a checkpoint saved.
pub fn harden<B: Backend>(backend: B, config: &RunConfig, out: &Path, control: Control) -> Result<HardenSummary> {
    let mut run = Hardening::begin(backend, config, out, control)?;
    let every = config.checkpoint.every;
    while let Some(report) = run.step()? {
        let done = report.step + 1;
        if every > 0 && done.is_multiple_of(every) && done < config.outer_steps() {
            run.checkpoint()?;
        }
    }
    run.finish()
}

/// The memory settings of simulated attacks. Those that the run file leaves open are chosen so that the run fits the device.
///
/// # Errors
/// [`Error::Memory`] where nothing fits a device with memory of its own.
fn memory<B: Backend>(
    backend: &B,
    config: &RunConfig,
    source: &ModelDirectory,
    streams: &Streams,
    control: &mut Control,
) -> Result<MemorySettings> {
    let Some(memory) = backend.device_memory() else { return Ok(config.memory.settings(MemorySettings::default())) };
    let target = PlannedDevice::Device { memory, compute: backend.compute_dtype() };
    let plan = Plan::new(&streams::as_read(config, streams), &source.config, target)?;
    plan.ensure_fits()?;
    control.tell(Event::Memory(&plan));
    Ok(plan.memory)
}

/// Puts a checkpoint back; returns its state.
fn restore<B: Backend>(hardener: &mut Hardener<B>, path: &Path, mut snapshot: Snapshot) -> Result<State> {
    let state: State = serde_json::from_value(std::mem::take(&mut snapshot.state)).map_err(|error| {
        Error::input(path, format!("its state does not fit this program: {error}"), "start a new run")
    })?;
    expect_tuning(&hardener.model().backend, path, state.tuning)?;
    let len = hardener.weights().layout().len();
    let weights = snapshot.take(path, "weights", len)?;
    let optimizer = (0..hardener.outer_optimizer().state_count())
        .map(|i| snapshot.take(path, &format!("outer optimizer state {i}"), len))
        .collect::<Result<Vec<_>>>()?;
    let mut point = |(name, len): (&String, &usize)| Ok((name.clone(), snapshot.take(path, &of_point(name), *len)?));
    let points = state.hardener.points.iter().map(&mut point).collect::<Result<_>>()?;
    hardener.restore(&state.hardener, &HardenerTensors { weights, optimizer, points })?;
    Ok(state)
}

/// The name in a checkpoint of what a point keeps.
fn of_point(name: &str) -> String {
    format!("point {name}")
}

impl<'a, B: Backend> Hardening<'a, B> {
    /// Sets a run up: opens model and data, trains the safeguard that `config` asks for, or goes back to the newest
    /// checkpoint in `out` where `control` resumes.
    ///
    /// # Errors
    /// [`Error::Config`] and [`Error::Input`] for wrong settings and files; [`Error::Memory`] where the run does not fit;
    /// [`Error::Interrupted`] after a request to stop during the safeguard.
    pub fn begin(backend: B, config: &RunConfig, out: &Path, mut control: Control<'a>) -> Result<Self> {
        config.check()?;
        let source = ModelDirectory::open(&config.model.path)?;
        let dtype = config.model.dtype.unwrap_or_else(|| source.weights_dtype());
        let earlier = DefenderCost::read(&config.model.path)?;
        let mut streams = streams::open(config, &source)?;
        let memory = memory(&backend, config, &source, &streams, &mut control)?;
        let positions = streams.0.values().map(|stream| stream.longest()).max().unwrap_or(1);
        let mut loaded = LoadedModel::to_write(backend, source, positions, dtype)?;
        let reference = loaded.reference(config.model.reference.as_deref())?;
        let directory = RunDirectory::open(out, &config.resolved()?, config.config_hash()?, control.resumes())?;
        let checkpoint = if control.resumes() { directory.latest()? } else { None };
        let resumed = checkpoint.is_some();
        let mut seconds = 0.0;
        let mut metrics = None;
        if !resumed {
            directory.keep_choices(&loaded.model.backend)?;
            let mut begun = MetricsWriter::create(&directory.folder())?;
            let start = Instant::now();
            if let Some(table) = &config.safeguard {
                let tables = (config, table);
                let recompute = memory.recompute;
                safeguard::apply(&mut loaded, &reference, &mut streams, tables, recompute, &mut begun, &mut control)?;
            }
            if let Some(disturbance) = config.composition().start {
                let backend = &loaded.model.backend;
                let mut values = loaded.weights.download(backend)?;
                disturb(loaded.model.layout(), &mut values, disturbance, config.seed);
                loaded.weights.upload(backend, &values)?;
            }
            seconds = start.elapsed().as_secs_f64();
            if config.compat.skip_first_retain_batch {
                streams.skip_batch(&config.tar.retain_data)?;
            }
            metrics = Some(begun);
        }
        let LoadedModel { directory: source, model, weights } = loaded;
        let mut hardener = Hardener::new(model, weights, reference, streams, settings(config, memory)?)?;
        if let Some((path, snapshot)) = checkpoint {
            let state = restore(&mut hardener, &path, snapshot)?;
            seconds = state.seconds;
            control.tell(Event::Resumed { checkpoint: &path });
        }
        let metrics = match metrics {
            Some(begun) => begun,
            None => MetricsWriter::append(&directory.folder(), "harden", hardener.steps_done())?,
        };
        let steps = hardener.steps_done();
        let summary = HardenSummary { steps, skipped: 0, retain_loss: f64::NAN };
        let config = config.clone();
        let mut run = Self { config, control, directory, source, earlier, dtype, hardener, metrics, seconds, summary };
        if run.config.safeguard.is_some() && !resumed {
            // A run that is stopped later then resumes after the safeguard instead of training it again.
            run.checkpoint()?;
        }
        run.control.tell(Event::Begin { phase: Phase::Harden, from: steps, steps: run.config.outer_steps() });
        Ok(run)
    }

    /// Takes the next outer step, with its record in the metrics stream; none where all of them are done.
    ///
    /// # Errors
    /// [`Error::Interrupted`] after a request to stop: the step is discarded and a checkpoint saved.
    /// [`Error::NonFinite`] at the third step in a row that had to be skipped.
    pub fn step(&mut self) -> Result<Option<OuterReport>> {
        if self.hardener.steps_done() >= self.config.outer_steps() {
            return Ok(None);
        }
        let before = self.hardener.state();
        let start = Instant::now();
        let control = &mut self.control;
        let go_on = |control: &Control| match control.stop_requested() {
            false => Ok(()),
            true => {
                let at = format!("in outer step {}", before.step);
                Err(Error::Interrupted { at, remedy: "run it again with `resume` to go on".into() })
            }
        };
        let outcome = go_on(control).and_then(|()| {
            self.hardener.outer_step(&mut |inner: InnerStep| {
                go_on(control)?;
                control.tell(Event::InnerStep { step: inner.step, of: inner.of });
                Ok(())
            })
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
        let done = report.step + 1;
        let measured = Measured::Outer(&report);
        self.metrics.record_with_attacks("harden", done, &measured.record(), measured.attacks())?;
        self.control.tell(Event::Step { step: done, measured });
        self.summary.steps = done;
        self.summary.skipped += u64::from(report.skipped);
        self.summary.retain_loss = report.retain_loss;
        Ok(Some(report))
    }

    /// Outer steps done, earlier processes' included.
    pub fn steps_done(&self) -> u64 {
        self.hardener.steps_done()
    }

    /// The weights as they are between two outer steps, in the order of the model's layout.
    pub fn weights(&self) -> Result<Vec<f32>> {
        self.hardener.weights().download(&self.hardener.model().backend)
    }

    /// Saves a checkpoint, from which a run that resumes goes on.
    pub fn checkpoint(&mut self) -> Result<()> {
        self.save(&self.hardener.state())
    }

    fn save(&self, state: &HardenerState) -> Result<()> {
        let backend = &self.hardener.model().backend;
        let HardenerTensors { weights, optimizer, points } = self.hardener.tensors()?;
        let lengths = points.iter().map(|(name, kept)| (name.clone(), kept.len())).collect();
        let states = (0..).zip(optimizer).map(|(i, state)| Tensor::new(format!("outer optimizer state {i}"), state));
        let of_points = points.into_iter().map(|(name, kept)| Tensor::new(of_point(&name), kept));
        let tensors = std::iter::once(Tensor::new("weights", weights)).chain(states).chain(of_points).collect();
        let hardener = HardenerState { points: lengths, ..state.clone() };
        let kept = State { hardener, seconds: self.seconds, tuning: backend.tuning() };
        let json = serde_json::to_value(kept).map_err(Error::encode(self.directory.checkpoints()))?;
        self.directory.save(state.step, json, tensors, self.config.checkpoint.keep)
    }

    /// Writes the hardened model, as it is after the steps taken, into the output directory.
    pub fn finish(mut self) -> Result<HardenSummary> {
        let train_point = self.config.compat.schedulefree_point == SchedulefreePoint::Train;
        let weights = self.hardener.final_weights(train_point)?;
        self.cost().write(self.directory.top())?;
        let model = FinishedModel { source: &self.source, weights: &weights, dtype: self.dtype };
        self.directory.publish_model(model, &mut self.control)?;
        Ok(self.summary)
    }

    /// The cost of the defence: its training, with the safeguard where this run trained one, and the defences before it
    /// whose cost is kept beside the model that the run started from.
    fn cost(&self) -> DefenderCost {
        let mut taken = streams::as_read(&self.config, self.hardener.streams());
        taken.set_outer_steps(self.hardener.steps_done());
        let flop = run_flop(&taken, &self.source.config);
        let own = DefenderCost { seconds: self.seconds, flop, device: self.hardener.model().backend.description() };
        match &self.earlier {
            Some(earlier) => own.after(earlier.clone()),
            None => own,
        }
    }
}
