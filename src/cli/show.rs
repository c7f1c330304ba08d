//! What long runs show on stderr: a progress bar on a terminal, a plain line now and then elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use temper::run::Event;

/// Plain lines are at least this far apart.
const PAUSE: Duration = Duration::from_secs(5);

/// Progress of one run.
pub struct Progress {
    title: String,
    bar: Option<ProgressBar>,
    steps: u64,
    last: Option<Instant>,
    values: String,
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
        Self { title: title.to_string(), bar, steps: 0, last: None, values: String::new() }
    }

    /// Shows an event.
    pub fn show(&mut self, event: &Event) {
        match event {
            Event::Begin { from, steps } => {
                self.steps = *steps;
                if let Some(bar) = &self.bar {
                    bar.set_length(*steps);
                    bar.set_position(*from);
                    bar.reset_eta();
                }
            }
            Event::Inner { step, of } => {
                if let Some(bar) = &self.bar {
                    bar.set_message(format!("{} · attack {}/{of}", self.values, step + 1));
                }
            }
            Event::Step { step, values } => self.step(*step, values),
            Event::Note(text) => match &self.bar {
                Some(bar) => bar.println(*text),
                None => eprintln!("{}: {text}", self.title),
            },
        }
    }

    fn step(&mut self, step: u64, values: &[(&str, f64)]) {
        let shown = values.iter().filter(|(name, _)| !["skipped", "bounded"].contains(name));
        self.values = shown.map(|(name, value)| format!("{name} {}", short(*value))).collect::<Vec<_>>().join(" ");
        match &self.bar {
            Some(bar) => {
                bar.set_message(self.values.clone());
                bar.set_position(step);
            }
            None if self.last.is_none_or(|last| last.elapsed() >= PAUSE) || step == self.steps => {
                eprintln!("{}: step {step}/{}  {}", self.title, self.steps, self.values);
                self.last = Some(Instant::now());
            }
            None => {}
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A number with the digits that matter: learning rates are far below one.
fn short(value: f64) -> String {
    if value == 0.0 || value.abs() >= 0.01 { format!("{value:.4}") } else { format!("{value:.2e}") }
}
