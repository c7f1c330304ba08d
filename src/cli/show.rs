//! Long runs show their progress on stderr: a progress bar on a terminal, a plain line now and then elsewhere.

use std::borrow::Cow;
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use temper::api::{AttackResult, Event, Goal, Outcome, Phase, Plan};
use temper::report::units;

/// Plain lines are at least this far apart.
const PAUSE: Duration = Duration::from_secs(5);

/// Progress of one run.
pub struct Progress {
    title: String,
    bar: Option<ProgressBar>,
    steps: u64,
    last: Option<Instant>,
    numbers: String,
}

impl Progress {
    /// Progress of something called `title`; the number of steps comes with [`Event::Begin`].
    pub fn new(title: &str) -> Self {
        let on_terminal = std::io::stderr().is_terminal();
        let bar = on_terminal.then(|| {
            let bar = ProgressBar::no_length();
            let style = ProgressStyle::with_template("{prefix:24} {bar:24} {pos}/{len} {msg} {eta_precise}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(title.to_string());
            bar
        });
        Self { title: title.to_string(), bar, steps: 0, last: None, numbers: String::new() }
    }

    /// Shows an event. The user stops a run by a signal, so the answer is always to go on.
    pub fn show(&mut self, event: &Event) -> ControlFlow<()> {
        match event {
            Event::Begin { phase, from, steps, .. } => self.begin(*phase, *from, *steps),
            Event::Part { name, number, of, .. } => self.note(&format!("{number} of {of}: {name}")),
            Event::InnerStep { step, of, .. } => {
                if let Some(bar) = &self.bar {
                    bar.set_message(format!("{} · attack {}/{of}", self.numbers, step + 1));
                }
            }
            Event::Step { step, measured, .. } => self.step(*step, &measured.numbers()),
            Event::Resumed { checkpoint, .. } => self.note(&format!("resumed from {}", checkpoint.display())),
            Event::DataRead { name, file, rows, .. } => self.note(&format!("{name}: {rows} rows of {file}")),
            Event::WiderDType { asked, written, .. } => self.note(&format!(
                "training took weights beyond the range of {}: the model is written in {}",
                asked.name(),
                written.name()
            )),
            Event::Memory(plan) => self.note(&memory(plan)),
            Event::AttacksKept(count) => self.note(&format!("{count} attacks were finished before")),
            Event::AttackOver { result, goal, .. } => self.note(&attack(result, goal)),
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn begin(&mut self, phase: Phase, from: u64, steps: u64) {
        if phase == Phase::Safeguard {
            self.note(&format!("safeguard: {steps} steps"));
        }
        self.steps = steps;
        if let Some(bar) = &self.bar {
            bar.set_length(steps);
            bar.set_position(from);
            bar.reset_eta();
        }
    }

    fn step(&mut self, step: u64, numbers: &[(Cow<str>, f64)]) {
        let shown: Vec<String> = numbers.iter().map(|(name, value)| format!("{name} {}", short(*value))).collect();
        self.numbers = shown.join(" ");
        match &self.bar {
            Some(bar) => {
                bar.set_message(self.numbers.clone());
                bar.set_position(step);
            }
            None if self.last.is_none_or(|last| last.elapsed() >= PAUSE) || step == self.steps => {
                eprintln!("{}: step {step}/{}  {}", self.title, self.steps, self.numbers);
                self.last = Some(Instant::now());
            }
            None => {}
        }
    }

    fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{}: {text}", self.title),
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn memory(plan: &Plan) -> String {
    let needed = units::bytes(plan.device_bytes);
    let available = units::bytes(plan.available_bytes.unwrap_or_default());
    format!("memory: {needed} of {available} on the device; {}", plan.memory)
}

fn attack(result: &AttackResult, goal: &Goal) -> String {
    match &result.outcome {
        Outcome::Failed { error, .. } => format!("{}: failed: {error}", result.id),
        Outcome::Skipped { reason } => format!("{}: not run: {reason}", result.id),
        Outcome::Done { curve, breach, .. } => {
            let best = goal.best(curve).or(curve.first());
            let restricted = units::percent(best.map_or(0.0, |point| point.scores.restricted));
            let utility = units::percent(best.map_or(0.0, |point| point.scores.utility));
            let end = match breach {
                Some(cost) => format!("breached {}", units::after_steps(cost.steps)),
                None => "not breached".into(),
            };
            format!("{}: restricted {restricted} at utility {utility}, {end}", result.id)
        }
    }
}

/// A number with the digits that matter: learning rates are far below one.
fn short(value: f64) -> String {
    if value == 0.0 || value.abs() >= 0.01 { format!("{value:.4}") } else { format!("{value:.2e}") }
}
