//! `temper demo`: the demonstration's course, with what it leaves: models, metrics, a summary and a page for people, and
//! suites that go on from there.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::{Control, Event, Measured, Phase};
use crate::backend::cpu::Cpu;
use crate::demo::{AttackCurve, Course, Experiment, Facts, Outcome, write_handover};
use crate::error::{Error, Result};
use crate::huggingface::{ExportDType, write_model};
use crate::ops::Backend;
use crate::plan::DefenderCost;
use crate::report::{AttackRow, DemoSummary, MetricsWriter, Stages, write_demo_report};

/// A demonstration as a user asks for it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct DemoConfig {
    /// The output directory: new or empty.
    pub out: PathBuf,
    /// Seed of every random draw.
    pub seed: u64,
    /// A twentieth of the steps: to see that everything runs, not how well it works.
    pub quick: bool,
}

impl DemoConfig {
    /// The whole demonstration with seed 42, written to `out`.
    pub fn new(out: impl Into<PathBuf>) -> Self {
        Self { out: out.into(), seed: 42, quick: false }
    }

    fn course(&self) -> Course {
        if self.quick { Course::quick(self.seed) } else { Course::full(self.seed) }
    }
}

/// Trains, hardens and attacks a tiny model, and writes everything to `config.out`.
///
/// # Errors
/// [`Error::Config`] where the output directory holds something; [`Error::Interrupted`] after a request to stop: a
/// demonstration keeps no checkpoints.
pub fn demo<B: Backend>(backend: B, config: &DemoConfig, control: Control) -> Result<DemoSummary> {
    let start = Instant::now();
    let course = config.course();
    let device = backend.description();
    prepare(&config.out)?;
    let mut recorder = Recorder::new(control, MetricsWriter::create(&config.out)?);
    let outcome = Experiment::new(backend, course.clone())?.run(&mut |event| recorder.take(event))?;
    write_models(&config.out, &course, &outcome, &device, &recorder.watch)?;
    write_handover(&config.out, &Facts::new(course.seed), &course)?;
    let summary = summary(&course, &outcome, start.elapsed().as_secs_f64());
    summary.write(&config.out.join("summary.json"))?;
    write_demo_report(&config.out.join("report.html"), &course, &outcome, &summary)?;
    Ok(summary)
}

/// The output directory must be new or empty.
fn prepare(out: &Path) -> Result<()> {
    std::fs::create_dir_all(out).map_err(Error::io("create", out))?;
    let mut entries = std::fs::read_dir(out).map_err(Error::io("read", out))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => {
            let problem = format!("{} is not empty", out.display());
            Err(Error::config("out", problem, "choose another directory, or remove it"))
        }
    }
}

/// Seconds that the parts of the defence took.
#[derive(Default)]
struct Stopwatch {
    unlearn: f64,
    harden: f64,
}

/// Keeps the metrics stream and the time, tells the observer, and hears requests to stop.
struct Recorder<'a> {
    control: Control<'a>,
    metrics: MetricsWriter,
    watch: Stopwatch,
    phase: &'static str,
    begun: Instant,
}

impl<'a> Recorder<'a> {
    fn new(control: Control<'a>, metrics: MetricsWriter) -> Self {
        Self { control, metrics, watch: Stopwatch::default(), phase: "", begun: Instant::now() }
    }

    fn take(&mut self, event: Event) -> Result<()> {
        self.record(&event)?;
        self.control.tell(event);
        if self.control.stop_requested() {
            let remedy = "the demonstration keeps no checkpoints: run it again".into();
            return Err(Error::Interrupted { at: format!("during: {}", self.phase), remedy });
        }
        Ok(())
    }

    fn record(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Begin { phase, .. } => {
                self.phase = name(*phase);
                self.begun = Instant::now();
            }
            Event::Step { step, measured } => {
                self.metrics.record_with_attacks(self.phase, *step, &numbers(measured), measured.attacks())?;
            }
            Event::End => match self.phase {
                UNLEARN => self.watch.unlearn += self.begun.elapsed().as_secs_f64(),
                HARDEN => self.watch.harden += self.begun.elapsed().as_secs_f64(),
                _ => {}
            },
            _ => {}
        }
        Ok(())
    }
}

/// The phases of the defence in the metrics stream.
const UNLEARN: &str = "unlearn";
const HARDEN: &str = "harden";

/// A phase as the demonstration's metrics stream spells it.
fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Pretrain => "pre-train",
        Phase::Safeguard => UNLEARN,
        Phase::Harden => HARDEN,
        Phase::AttackUnlearned(_) => "attack unlearned",
        Phase::AttackHardened(_) => "attack hardened",
        Phase::Attack | Phase::Suite => "attack",
    }
}

/// A step's numbers by the names of the demonstration's metrics stream, which are shorter than other runs' names.
fn numbers(measured: &Measured) -> Vec<(Cow<'static, str>, f64)> {
    match measured {
        Measured::Safeguard(losses) => vec![("removal".into(), losses.removal), ("retain".into(), losses.retain)],
        Measured::Outer(report) => vec![
            ("attack".into(), report.last_attack_loss()),
            ("resistance".into(), report.last_tr_loss()),
            ("retain".into(), report.retain_loss + report.retain_distance),
        ],
        other => other.numbers(),
    }
}

/// Writes the three models, and with the two defended ones what their defence cost.
fn write_models(out: &Path, course: &Course, outcome: &Outcome, device: &str, watch: &Stopwatch) -> Result<()> {
    let model = Experiment::<Cpu>::model_config();
    let (unlearn, harden) = course.defence_flop(&model)?;
    let cost = |seconds, flop| DefenderCost { seconds, flop, device: device.into() };
    let models = [
        ("pretrained", &outcome.pretrained_weights, None),
        ("unlearned", &outcome.unlearned_weights, Some(cost(watch.unlearn, unlearn))),
        ("hardened", &outcome.hardened_weights, Some(cost(watch.unlearn + watch.harden, unlearn + harden))),
    ];
    for (name, weights, cost) in models {
        let directory = out.join(name);
        write_model(&directory, &model, None, weights, ExportDType::F32)?;
        if let Some(cost) = cost {
            cost.write(&directory)?;
        }
    }
    Ok(())
}

fn summary(course: &Course, outcome: &Outcome, seconds: f64) -> DemoSummary {
    let stages = |of: fn(&(f64, f64)) -> f64| Stages {
        pretrained: of(&outcome.pretrained),
        unlearned: of(&outcome.unlearned),
        hardened: of(&outcome.hardened),
    };
    let last = |curve: &AttackCurve| curve.restricted.last().copied().unwrap_or(f64::NAN);
    let attacks = course.attacks.iter().zip(&outcome.attacks);
    DemoSummary {
        seed: course.seed,
        seconds,
        benign: stages(|both| both.1),
        restricted: stages(|both| both.0),
        chance: Facts::chance(),
        attacks: attacks
            .map(|(attack, (unlearned, hardened))| AttackRow {
                name: attack.name.clone(),
                steps: attack.fine_tune.steps,
                unlearned_restricted: last(unlearned),
                hardened_restricted: last(hardened),
            })
            .collect(),
    }
}
