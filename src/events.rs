//! What a run tells whoever started it, while it runs.

use std::borrow::Cow;
use std::path::Path;

use serde_json::Value;

use crate::huggingface::ExportDType;
use crate::plan::Plan;
use crate::redteam::{AttackResult, Goal};
use crate::safeguard::Losses;
use crate::tar::{OuterReport, TrajectoryReport};
use crate::training::StepReport;

/// Something that happened in a run.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A phase begins. A red-team run that searches begins again whenever it has proposed more attacks.
    #[non_exhaustive]
    Begin {
        /// The phase.
        phase: Phase<'a>,
        /// Steps done before; not 0 after a resume.
        from: u64,
        /// Steps in all.
        steps: u64,
    },
    /// A part of a comparison begins.
    #[non_exhaustive]
    Part {
        /// The defence, its seed, and what is done.
        name: &'a str,
        /// Its number, from 1. Parts that were finished before count.
        number: usize,
        /// The number of all parts.
        of: usize,
    },
    /// A simulated attack is about to take an inner step.
    #[non_exhaustive]
    InnerStep {
        /// The inner step, from 0.
        step: u64,
        /// The most inner steps that an attack of the run has, K.
        of: u64,
    },
    /// A step is done.
    #[non_exhaustive]
    Step {
        /// Steps done, from 1.
        step: u64,
        /// What was measured.
        measured: Measured<'a>,
    },
    /// A phase of several is over.
    End,
    /// The run goes on from a checkpoint.
    #[non_exhaustive]
    Resumed {
        /// The checkpoint's folder.
        checkpoint: &'a Path,
    },
    /// The data of a measurement, or of the attacker, has been read.
    #[non_exhaustive]
    DataRead {
        /// What it is for: `restricted`, `utility`, `[data] retain`, …
        name: &'a str,
        /// The file, as it was given.
        file: &'a str,
        /// Rows that were read.
        rows: usize,
    },
    /// Training took weights beyond the range of the dtype that was asked for, and the model is written in a wider one.
    #[non_exhaustive]
    WiderDType {
        /// The dtype that was asked for.
        asked: ExportDType,
        /// The dtype that is written.
        written: ExportDType,
    },
    /// The memory settings with which the run fits its GPU have been chosen.
    Memory(&'a Plan),
    /// A red-team run takes over the results of so many attacks that an earlier process finished.
    AttacksKept(usize),
    /// An attack of a red-team run is over.
    #[non_exhaustive]
    AttackOver {
        /// The result.
        result: &'a AttackResult,
        /// The bounds that decide whether the model is breached.
        goal: &'a Goal,
    },
}

/// A part of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase<'a> {
    /// The demonstration's model learns its facts.
    Pretrain,
    /// The plain safeguard is trained.
    Safeguard,
    /// The nested loop of TAR.
    Harden,
    /// One attack on one model.
    Attack,
    /// The demonstration's attack of this name on the model with the plain safeguard.
    AttackUnlearned(&'a str),
    /// The demonstration's attack of this name on the hardened model.
    AttackHardened(&'a str),
    /// The attacks of a suite.
    Suite,
}

/// What a step measured.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Measured<'a> {
    /// A step of pre-training, with its mean cross-entropy in nats.
    Pretrain {
        /// The loss.
        loss: f64,
    },
    /// A step of the plain safeguard.
    Safeguard(Losses),
    /// An outer step of TAR.
    Outer(&'a OuterReport),
    /// A step of an attack.
    Attack(StepReport),
    /// A step of an attack of the demonstration.
    DemoAttack {
        /// Mean cross-entropy, in nats.
        loss: f64,
        /// The restricted accuracy when it was measured last, 0 to 1.
        restricted: f64,
    },
    /// A step of one of the attacks of a suite.
    Suite {
        /// Attacks that are over.
        finished: usize,
        /// The step's loss, in nats.
        loss: f64,
    },
}

impl Measured<'_> {
    /// The numbers by the names that the metrics stream of the run gives them; a term's are `NAME_loss` and, where it compares
    /// hidden states with the reference model's, `NAME_distance`.
    pub fn numbers(&self) -> Vec<(Cow<'static, str>, f64)> {
        let named = |numbers: Vec<(&'static str, f64)>| numbers.into_iter().map(|(name, value)| (name.into(), value));
        let numbers = match *self {
            Self::Pretrain { loss } => vec![("loss", loss)],
            Self::Safeguard(losses) => vec![("removal_loss", losses.removal), ("retain_loss", losses.retain)],
            Self::Outer(report) => {
                let mut all = Vec::new();
                if !report.trajectories.is_empty() {
                    all.extend(named(vec![("attack_loss", report.last_attack_loss())]));
                }
                for term in &report.terms {
                    all.push((format!("{}_loss", term.name).into(), term.loss));
                    all.extend(term.distance.map(|distance| (format!("{}_distance", term.name).into(), distance)));
                }
                all.extend(named(vec![("gradient_norm", report.gradient_norm), ("lr", report.lr)]));
                return all;
            }
            Self::Attack(report) => {
                vec![("loss", report.loss), ("gradient_norm", report.gradient_norm), ("lr", report.lr)]
            }
            Self::DemoAttack { loss, restricted } => vec![("loss", loss), ("restricted", restricted)],
            Self::Suite { finished, loss } => vec![("finished", finished as f64), ("loss", loss)],
        };
        named(numbers).collect()
    }

    /// The simulated attacks of an outer step as the metrics stream keeps them: the name of the adversary, what was drawn,
    /// and the losses that the attack ended with.
    pub(crate) fn attacks(&self) -> Vec<Value> {
        let Self::Outer(report) = self else { return Vec::new() };
        report.trajectories.iter().map(attack_record).collect()
    }

    /// The record of the metrics stream: the numbers, and what holds or not as 1 or 0.
    pub(crate) fn record(&self) -> Vec<(Cow<'static, str>, f64)> {
        let number = |flag: bool| f64::from(u8::from(flag));
        let mut record = self.numbers();
        match self {
            Self::Outer(report) => {
                record.extend([("skipped".into(), number(report.skipped)), ("bounded".into(), number(report.bounded))]);
            }
            Self::Attack(report) => record.push(("skipped".into(), number(report.skipped))),
            _ => {}
        }
        record
    }
}

fn attack_record(trajectory: &TrajectoryReport) -> Value {
    // A draw is a table of plain values, which JSON always has.
    let Ok(Value::Object(mut record)) = serde_json::to_value(&trajectory.draw) else { return Value::Null };
    record.retain(|_, value| !value.is_null());
    record.insert("adversary".into(), trajectory.adversary.as_str().into());
    record.insert("steps".into(), trajectory.attack_losses.len().into());
    record.insert("attack_loss".into(), trajectory.attack_losses.last().copied().into());
    record.insert("tr_loss".into(), trajectory.tr_losses.last().copied().into());
    Value::Object(record)
}
