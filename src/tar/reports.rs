//! What an outer step reports.

use super::TrajectoryReport;
use super::terms::TermLosses;

/// The name of the term that TAR keeps the model's abilities with.
pub const RETAIN: &str = "retain";
/// The name of TAR's tamper-resistance term.
pub const RESISTANCE: &str = "tr";

/// What an outer step reports.
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct OuterReport {
    /// Outer step, from 0.
    pub step: u64,
    /// Its simulated attacks.
    pub trajectories: Vec<TrajectoryReport>,
    /// Its terms, those at points before those at the base.
    pub terms: Vec<TermReport>,
    /// The loss of the term `retain`, which TAR has: its cross-entropy on the retain batch. NaN where there is none.
    pub retain_loss: f64,
    /// The mean distance of the term `retain` to the reference model's hidden states; 0 where it is not part of the loss.
    pub retain_distance: f64,
    /// Norm of the outer gradient, over the trained weights.
    pub gradient_norm: f64,
    /// Learning rate of the outer step.
    pub lr: f64,
    /// Whether the gradients taken at points were dropped at the lower bound.
    pub bounded: bool,
    /// Whether the step was skipped because a number was not finite.
    pub skipped: bool,
}

/// The loss of a term in an outer step.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct TermReport {
    /// Its name.
    pub name: String,
    /// The loss where its gradient was taken last, averaged over the visits of its place; NaN where none was taken.
    pub loss: f64,
    /// The same of the distance to the reference model's hidden states, where the loss has one.
    pub distance: Option<f64>,
}

impl OuterReport {
    /// The loss of each trajectory's last attack step, averaged; NaN where there was none.
    pub fn last_attack_loss(&self) -> f64 {
        mean(self.trajectories.iter().filter_map(|t| t.attack_losses.last()))
    }

    /// The last tamper-resistance loss of each trajectory, averaged; NaN where there was none.
    pub fn last_tr_loss(&self) -> f64 {
        mean(self.trajectories.iter().filter_map(|t| t.tr_losses.last()))
    }

    pub(super) fn retain_of(terms: &[TermReport]) -> (f64, f64) {
        match terms.iter().find(|term| term.name == RETAIN) {
            Some(term) => (term.loss, term.distance.unwrap_or(0.0)),
            None => (f64::NAN, 0.0),
        }
    }
}

/// The reports of the terms of one place from its visits.
pub(super) fn reports_of(visits: &[Vec<TermLosses>]) -> Vec<TermReport> {
    let Some(first) = visits.first() else { return Vec::new() };
    let report = |(index, term): (usize, &TermLosses)| TermReport {
        name: term.name.clone(),
        loss: mean(visits.iter().filter_map(|visit| visit[index].losses.last())),
        distance: term.distances.as_ref().map(|_| {
            mean(
                visits
                    .iter()
                    .filter_map(|visit| visit[index].distances.as_ref().and_then(|distances| distances.last())),
            )
        }),
    };
    first.iter().enumerate().map(report).collect()
}

fn mean<'a>(values: impl Iterator<Item = &'a f64>) -> f64 {
    let mut sum = 0.0;
    let mut count = 0;
    for value in values {
        sum += value;
        count += 1;
    }
    if count == 0 { f64::NAN } else { sum / f64::from(count) }
}
