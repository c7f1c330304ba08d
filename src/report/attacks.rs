//! What reports pick from the attacks of a red-team run: which belong together, the best point of each, words for settings.

use super::units;
use crate::redteam::{AttackKind, AttackResult, Cost, Goal, Outcome, Point, Results};

/// The runs of one attack with several seeds, or one trial of a search.
pub(super) struct Group<'a> {
    /// The first of them, whose name and settings speak for all.
    pub first: &'a AttackResult,
    /// All of them.
    pub runs: Vec<&'a AttackResult>,
}

/// The attacks in the order of the suite.
pub(super) fn groups(results: &Results) -> Vec<Group<'_>> {
    let mut groups: Vec<Group> = Vec::new();
    for attack in &results.attacks {
        let same = |group: &&mut Group| group.first.name == attack.name && group.first.trial == attack.trial;
        match groups.iter_mut().find(same) {
            Some(group) => group.runs.push(attack),
            None => groups.push(Group { first: attack, runs: vec![attack] }),
        }
    }
    groups
}

impl<'a> Group<'a> {
    /// The runs that came to their end, with their curves.
    pub fn curves(&self) -> impl Iterator<Item = (&'a AttackResult, &'a [Point])> {
        self.runs.iter().filter_map(|run| curve(run).map(|curve| (*run, curve)))
    }

    /// The worst point for the defender over all runs, see [`Goal::best`].
    pub fn best(&self, goal: &Goal) -> Option<(&'a AttackResult, &'a Point)> {
        let points = self.curves().filter_map(|(run, curve)| goal.best(curve).map(|point| (run, point)));
        points.fold(None, |kept: Option<(&AttackResult, &Point)>, (run, point)| match kept {
            Some((_, other)) if other.scores.restricted >= point.scores.restricted => kept,
            _ => Some((run, point)),
        })
    }

    /// The runs that breached the model, with the cost of each.
    pub fn breaches(&self) -> Vec<(&'a AttackResult, &'a Cost)> {
        let breach = |run: &&'a AttackResult| match &run.outcome {
            Outcome::Done { breach: Some(cost), .. } => Some((*run, cost)),
            _ => None,
        };
        self.runs.iter().filter_map(breach).collect()
    }
}

/// The measurements of an attack that came to its end.
pub(super) fn curve(attack: &AttackResult) -> Option<&[Point]> {
    match &attack.outcome {
        Outcome::Done { curve, .. } => Some(curve),
        _ => None,
    }
}

pub(super) fn kind(kind: AttackKind) -> &'static str {
    match kind {
        AttackKind::Full => "full fine-tuning",
        AttackKind::Lora => "LoRA",
        AttackKind::Abliteration => "abliteration",
        AttackKind::Prefill => "prefill",
        AttackKind::Quantization => "rounding",
        AttackKind::Merge => "merge",
    }
}

/// Whether attacks of a kind train at all.
pub(super) fn trains(kind: AttackKind) -> bool {
    matches!(kind, AttackKind::Full | AttackKind::Lora)
}

/// The settings that tell attacks apart, in a line.
pub(super) fn settings(attack: &AttackResult) -> String {
    const NAMED: [&str; 23] = [
        "lr",
        "steps",
        "batch",
        "optimizer",
        "schedule",
        "warmup",
        "rank",
        "data",
        "samples",
        "held_out",
        "opening",
        "switch",
        "kick_steps",
        "kick_lr",
        "noise",
        "negated_steps",
        "layer",
        "demonstrations",
        "text",
        "bits",
        "group",
        "symmetric",
        "coefficients",
    ];
    let bare = ["optimizer", "schedule"];
    let shown = NAMED.iter().filter_map(|name| attack.settings.get(*name).map(|value| (*name, value)));
    let words = shown.filter(|(_, value)| !value.is_null() && **value != 0 && **value != 0.0).map(|(name, value)| {
        if bare.contains(&name) {
            return units::setting(value);
        }
        // A setting stays on its line.
        format!("{name} {}", units::setting(value)).replace([' ', '_'], "\u{a0}")
    });
    words.collect::<Vec<_>>().join("\u{a0}· ")
}
