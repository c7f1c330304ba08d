//! What a defence is composed of: the points where gradients are taken, the terms whose gradients they are, and what is
//! trained with their sum. `docs/defences.md` has the formulas.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{Adversary, AttackLength, Curriculum, Draw, PoolSettings};
use crate::edits::Quantization;
use crate::error::Result;
use crate::model::{ModelLayout, Projection};
use crate::objective::TermLoss;
use crate::optimizer::OptimizerConfig;
use crate::settings::{at_least, fault, suggestion};
use crate::training::MemorySettings;

/// The place of the terms whose gradients are taken at the weights as they are.
pub const BASE: &str = "base";

/// A defence: what one outer step does.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Seed of every draw.
    pub seed: u64,
    /// The points that the step goes to, in this order, before it takes the gradients at the base.
    pub points: Vec<Point>,
    /// The terms, in the order in which their gradients are added.
    pub terms: Vec<Term>,
    /// How the gradients of the terms become the gradient of the step.
    pub combine: Combine,
    /// The weights that the step changes.
    pub trained: Trained,
    /// Stages that follow one another; one without an end where there is none.
    pub rounds: Vec<Round>,
    /// The gradients taken at points are dropped in a step whose Σ weight · loss at points is below this bound; absent:
    /// never.
    pub lower_bound: Option<f64>,
    /// The outer optimizer.
    pub outer: OptimizerConfig,
    /// What attacks trade for memory.
    pub memory: MemorySettings,
}

/// A stage of a run. It begins with a fresh outer optimizer, at the weights that a run which ends there would save.
#[derive(Clone, Debug)]
pub struct Round {
    /// Its outer steps.
    pub steps: u64,
    /// Its outer optimizer, of the same kind as the others'.
    pub outer: OptimizerConfig,
    /// The weights that it changes.
    pub trained: Trained,
    /// Its weights of some terms, by their names.
    pub weights: BTreeMap<String, f64>,
}

/// A named place beside the weights θ where gradients are taken.
#[derive(Clone, Debug)]
pub struct Point {
    /// Its name.
    pub name: String,
    /// The way from θ to it.
    pub displacement: Displacement,
}

/// The way from the weights θ to a point. It is undone, bit for bit, before the weights step.
#[derive(Clone, Debug)]
pub enum Displacement {
    /// Simulated fine-tuning attacks, with gradients along each (TAR).
    Attack(Attack),
    /// What a simulated attack changed some outer steps ago (Patcher).
    FrozenAttack(FrozenAttack),
    /// One normalised step along the gradient of a loss (Booster, CTRAP, SAM).
    Step(Step),
    /// Gaussian noise (randomised smoothing).
    Noise(Noise),
    /// The removal of the direction that tells two kinds of prompts apart (training against abliteration).
    Ablation(Ablation),
    /// Rounding of the projections to a few bits.
    Rounding(Quantization),
    /// An adversary that goes on learning from one outer step to the next (MUDMAN).
    Persistent(Persistent),
}

/// Simulated attacks from the same start, in each outer step anew.
#[derive(Clone, Debug)]
pub struct Attack {
    /// The attacks. A gradient of the point's terms is taken after every n-th step of one.
    pub simulation: Simulation,
    /// λ of the factor exp(λ(k − (K−1))) on the gradient after step k (from 0); the factor 1/K where absent.
    pub schedule_lambda: Option<f64>,
    /// Attacks in one outer step. A gradient is divided by their number.
    pub tasks: u64,
}

/// Simulated attacks: by whom, how long, and which are met again.
#[derive(Clone, Debug)]
pub struct Simulation {
    /// The length of attacks, where an adversary has none of its own.
    pub length: AttackLength,
    /// The adversaries that attacks are drawn from.
    pub adversaries: Vec<Adversary>,
    /// Scripted draws of the first attacks.
    pub script: Vec<Draw>,
    /// Whether attacks that brought much back are met again.
    pub pool: Option<PoolSettings>,
    /// Whether attacks begin short.
    pub curriculum: Option<Curriculum>,
}

/// θ + δ, where δ is what an attack of all weights changed when it was simulated last.
#[derive(Clone, Debug)]
pub struct FrozenAttack {
    /// The attacks. Their adversaries train all weights.
    pub simulation: Simulation,
    /// Outer steps that one attack serves.
    pub refresh: u64,
    /// The outer step that begins with the first attack; before it δ is 0.
    pub first: u64,
}

/// θ + ε, with independent Gaussian ε for each trained weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Noise {
    /// Standard deviation, relative to the root mean square of the weight's tensor.
    pub relative: f64,
    /// Draws in one outer step. A gradient is divided by their number.
    pub tasks: u64,
}

/// θ with the direction projected out of everything that writes to the residual stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Ablation {
    /// The stream of restricted prompts.
    pub restricted: String,
    /// The stream of harmless prompts.
    pub harmless: String,
    /// The depth of the hidden states that the direction is taken from, as a fraction of the layers.
    pub depth: f64,
    /// Batches of each stream that it is found with.
    pub batches: u64,
    /// Outer steps that one direction serves.
    pub refresh: u64,
}

/// θ ∓ size · g/‖g‖ with the gradient g of a loss at θ, over the trained weights. No step where g is 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The stream of the loss.
    pub data: String,
    /// The loss.
    pub loss: TermLoss,
    /// The length of the step.
    pub size: f64,
    /// Which way it goes.
    pub direction: Direction,
}

/// An adversary beside θ: in each outer step one step of plain SGD down the cross-entropy of its data, over the trained weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Persistent {
    /// The stream that it learns.
    pub data: String,
    /// Its learning rate.
    pub lr: f64,
    /// It starts from θ again at every n-th outer step, counted from 0.
    pub fork_every: u64,
}

/// The direction of a step along a gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// The loss falls: the step of an attack.
    #[default]
    Down,
    /// The loss rises: the step of sharpness-aware minimisation.
    Up,
}

/// A loss with its data, its factor and the place where its gradient is taken.
#[derive(Clone, Debug, PartialEq)]
pub struct Term {
    /// Its name, for reports.
    pub name: String,
    /// The loss.
    pub loss: TermLoss,
    /// The stream of its batches.
    pub data: String,
    /// The factor on its gradient; below 0 the loss is climbed.
    pub weight: f64,
    /// [`BASE`], or the name of a point.
    pub at: String,
}

/// How the gradients of the terms become the gradient of the step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Combine {
    /// Their sum.
    #[default]
    Sum,
    /// The accumulated gradient of the terms at the base, and of those at points what has its signs (MUDMAN).
    SignMask(SignMask),
}

/// A mask of signs; see `combine.rs` for the formula.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignMask {
    /// The share of the accumulated gradient that stays in each outer step.
    pub decay: f64,
    /// The L2 norm over the trained weights that the gradient at points gets before it is masked.
    pub norm: f64,
}

/// The weights that an outer step changes. Nothing else moves, by weight decay neither.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Trained {
    /// All of them.
    #[default]
    All,
    /// Some tensors of some layers.
    Part {
        /// The layers, from 0; all where absent.
        layers: Option<Vec<usize>>,
        /// The projections, with their biases; every tensor of the layers where absent.
        modules: Option<Vec<Projection>>,
    },
}

impl Settings {
    /// Fails where the loop could not run. Run files say more in their own checks; settings are built in code too.
    pub(super) fn check(&self) -> Result<()> {
        for point in &self.points {
            if point.name == BASE || self.points.iter().filter(|other| other.name == point.name).count() > 1 {
                let problem = format!("`{}` is the name of another place", point.name);
                return Err(fault("defence.point", problem, "give each point its own"));
            }
            match &point.displacement {
                Displacement::Attack(attack) => attack.check(&format!("defence.point.{}.attack", point.name))?,
                Displacement::FrozenAttack(frozen) => {
                    frozen.check(&format!("defence.point.{}.frozen_attack", point.name))?;
                }
                Displacement::Step(_) | Displacement::Rounding(_) => {}
                Displacement::Noise(noise) => {
                    at_least(&format!("defence.point.{}.noise.tasks", point.name), noise.tasks, 1)?;
                }
                Displacement::Ablation(ablation) => {
                    at_least(&format!("defence.point.{}.ablation.refresh", point.name), ablation.refresh, 1)?;
                }
                Displacement::Persistent(adversary) => {
                    at_least(&format!("defence.point.{}.persistent.fork_every", point.name), adversary.fork_every, 1)?;
                }
            }
        }
        let is_simulated =
            |point: &&Point| matches!(point.displacement, Displacement::Attack(_) | Displacement::FrozenAttack(_));
        if self.points.iter().filter(is_simulated).count() > 1 {
            return Err(fault(
                "defence.point",
                "two points are reached by attacks",
                "keep one, with several adversaries",
            ));
        }
        let places = || self.points.iter().map(|point| point.name.as_str()).chain([BASE]);
        match self.terms.iter().find(|term| places().all(|place| place != term.at)) {
            None => Ok(()),
            Some(term) => {
                let problem = format!("there is no point `{}`", term.at);
                Err(fault("defence.term.at", problem, suggestion(&term.at, places())))
            }
        }
    }

    /// The number of the round that outer step `step` is in; the last one does not end.
    pub(super) fn round_at(&self, step: u64) -> usize {
        let mut end = 0;
        let ended = self.rounds.iter().take_while(|round| {
            end += round.steps;
            end <= step
        });
        ended.count().min(self.rounds.len().saturating_sub(1))
    }

    /// The outer optimizer of a round.
    pub(super) fn outer_of(&self, round: usize) -> &OptimizerConfig {
        self.rounds.get(round).map_or(&self.outer, |round| &round.outer)
    }

    /// What is trained in a round.
    pub(super) fn trained_in(&self, round: usize) -> &Trained {
        self.rounds.get(round).map_or(&self.trained, |round| &round.trained)
    }

    /// The weight of a term in a round.
    pub(super) fn weight_in(&self, round: usize, term: &Term) -> f64 {
        self.rounds.get(round).and_then(|round| round.weights.get(&term.name)).copied().unwrap_or(term.weight)
    }

    /// The simulated attacks, where a point is reached by some.
    pub(super) fn simulation(&self) -> Option<&Simulation> {
        self.points.iter().find_map(|point| match &point.displacement {
            Displacement::Attack(attack) => Some(&attack.simulation),
            Displacement::FrozenAttack(frozen) => Some(&frozen.simulation),
            _ => None,
        })
    }

    /// The terms of one place.
    pub(super) fn terms_at(&self, place: &str) -> Vec<Term> {
        self.terms.iter().filter(|term| term.at == place).cloned().collect()
    }
}

impl Simulation {
    /// Fails where the attacks could not run; `key` is the place of what reaches the point.
    fn check(&self, key: &str) -> Result<()> {
        at_least(&format!("{key}.steps"), self.length.inner_steps, 1)?;
        at_least(&format!("{key}.every"), self.length.tr_every, 1)?;
        for adversary in &self.adversaries {
            let length = adversary.whole_length(self);
            at_least("adversary.inner_steps", length.inner_steps, 1)?;
            at_least("adversary.tr_every", length.tr_every, 1)?;
            at_least("adversary.batch", adversary.batch.unwrap_or(1) as u64, 1)?;
        }
        self.pool.iter().try_for_each(|pool| pool.check("pool"))?;
        self.curriculum.iter().try_for_each(|curriculum| curriculum.check("curriculum"))?;
        let count = self.adversaries.len();
        match self.script.iter().find(|draw| draw.adversary >= count) {
            None => Ok(()),
            Some(draw) => {
                let problem = format!("there is no adversary {} among {count}", draw.adversary);
                Err(fault(format!("{key}.script"), problem, "count adversaries from 0"))
            }
        }
    }

    /// How long an attack of `adversary` is at outer step `outer`.
    pub fn length(&self, adversary: &Adversary, outer: u64) -> AttackLength {
        let whole = adversary.whole_length(self);
        self.curriculum.map_or(whole, |curriculum| curriculum.length(whole, outer))
    }
}

impl FrozenAttack {
    fn check(&self, key: &str) -> Result<()> {
        at_least(&format!("{key}.refresh"), self.refresh, 1)?;
        if self.simulation.adversaries.iter().any(|adversary| adversary.adapter.is_some()) {
            let problem = "an attack that is frozen trains all weights, and an adversary trains LoRA";
            return Err(fault(key, problem, "set its params = \"full\""));
        }
        self.simulation.check(key)
    }
}

impl Attack {
    fn check(&self, key: &str) -> Result<()> {
        at_least(&format!("{key}.tasks"), self.tasks, 1)?;
        self.simulation.check(key)
    }

    /// The share of a term's weight that the gradient after inner step `k` (from 0) of an attack of K = `inner_steps` has.
    pub(super) fn share(&self, k: u64, inner_steps: u64) -> Share {
        let schedule = match self.schedule_lambda {
            Some(lambda) => (lambda * (k as f64 - (inner_steps as f64 - 1.0))).exp(),
            None => 1.0 / inner_steps as f64,
        };
        Share { tasks: self.tasks, schedule }
    }
}

/// The share of a term's weight that one of its gradients has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    /// Visits of the place in an outer step.
    pub tasks: u64,
    /// The factor of the moment within a visit.
    pub schedule: f64,
}

impl Share {
    /// The share of the only gradient that is taken at a place.
    pub const WHOLE: Self = Self { tasks: 1, schedule: 1.0 };

    /// Its part of `weight`.
    pub fn of(self, weight: f64) -> f64 {
        weight / self.tasks as f64 * self.schedule
    }
}

impl Trained {
    /// The places in the flat buffer of the weights that are trained, ascending and apart.
    ///
    /// # Errors
    /// Where a layer does not exist, or nothing is left to train.
    pub(super) fn ranges(&self, layout: &ModelLayout) -> Result<Vec<Range<usize>>> {
        let Self::Part { layers, modules } = self else { return Ok(std::iter::once(0..layout.len()).collect()) };
        let count = layout.layer_count();
        if let Some(absent) = layers.iter().flatten().find(|layer| **layer >= count) {
            let problem = format!("there is no layer {absent} among {count}");
            return Err(fault("defence.trained.layers", problem, "count layers from 0"));
        }
        let is_trained = |name: &str| {
            let Some((layer, tensor)) = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) else {
                return false;
            };
            let in_layers = layers.as_ref().is_none_or(|layers| layers.iter().any(|l| layer == l.to_string()));
            let of_module =
                |module: &Projection| tensor.strip_prefix(module.path().as_str()).is_some_and(|t| t.starts_with('.'));
            in_layers && modules.as_ref().is_none_or(|modules| modules.iter().any(of_module))
        };
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for entry in layout.entries().iter().filter(|entry| is_trained(&entry.name)) {
            let place = entry.block.range();
            match ranges.last_mut() {
                Some(last) if last.end == place.start => last.end = place.end,
                _ => ranges.push(place),
            }
        }
        if ranges.is_empty() {
            return Err(fault("defence.trained", "leaves nothing to train", "name layers and modules of the model"));
        }
        Ok(ranges)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelConfig;
    use crate::objective::EntropyOver;
    use crate::optimizer::OptimizerKind;

    fn simulation() -> Simulation {
        let length = AttackLength { inner_steps: 64, tr_every: 4 };
        Simulation { length, adversaries: vec![], script: vec![], pool: None, curriculum: None }
    }

    fn attack(schedule_lambda: Option<f64>) -> Attack {
        Attack { simulation: simulation(), schedule_lambda, tasks: 1 }
    }

    fn settings(attack: Attack, at: &str) -> Settings {
        let loss = TermLoss::NegativeEntropy { over: EntropyOver::Valid };
        let term = Term { name: "tr".into(), loss, data: "held-out".into(), weight: 4.0, at: at.into() };
        Settings {
            seed: 0,
            points: vec![Point { name: "attacked".into(), displacement: Displacement::Attack(attack) }],
            terms: vec![term],
            combine: Combine::Sum,
            trained: Trained::All,
            rounds: vec![],
            lower_bound: None,
            outer: OptimizerConfig::new(OptimizerKind::AdamW, 1e-3),
            memory: MemorySettings::default(),
        }
    }

    #[test]
    fn settings_with_which_the_loop_could_not_run_are_refused() {
        settings(attack(None), "attacked").check().unwrap();
        settings(attack(None), BASE).check().unwrap();
        let of = |simulation| settings(Attack { simulation, ..attack(None) }, BASE);
        let lengthy =
            |inner_steps, tr_every| of(Simulation { length: AttackLength { inner_steps, tr_every }, ..simulation() });
        let script = vec![Draw::new(0, 1e-3)];
        for (wrong, key) in [
            (lengthy(0, 4), "defence.point.attacked.attack.steps"),
            (lengthy(64, 0), "defence.point.attacked.attack.every"),
            (settings(Attack { tasks: 0, ..attack(None) }, BASE), "defence.point.attacked.attack.tasks"),
            (of(Simulation { script, ..simulation() }), "defence.point.attacked.attack.script"),
            (settings(attack(None), "atacked"), "defence.term.at"),
        ] {
            let error = wrong.check().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{key}: ")), "{error}");
        }
    }

    #[test]
    fn shares_sum_to_the_published_total() {
        let published = attack(Some(0.0625));
        let total: f64 = (0..64).filter(|k| (k + 1) % 4 == 0).map(|k| published.share(k, 64).of(4.0)).sum();
        // 4 · 4.4380: the effective weight of the authors' configuration, without a factor 1/K.
        assert!((total - 17.752).abs() < 1e-3, "{total}");
        assert_eq!(attack(None).share(3, 64).of(4.0), 4.0 / 64.0);
    }

    /// The trained places are those of the tensors with the names that a module has in files, biases included.
    #[test]
    fn a_trained_part_is_the_named_tensors_and_no_other() {
        let family = crate::model::ModelFamily::Qwen2;
        let layout = ModelLayout::new(&ModelConfig { family, ..ModelConfig::llama3_8b() }).unwrap();
        let part = |layers: Option<Vec<usize>>, modules: Option<Vec<Projection>>| Trained::Part { layers, modules };
        let trained = part(Some(vec![5, 30]), Some(vec![Projection::DownProj, Projection::QProj]));
        let ranges = trained.ranges(&layout).unwrap();
        let inside = |place: &Range<usize>| ranges.iter().any(|r| r.start <= place.start && place.end <= r.end);
        let mut count = 0;
        for entry in layout.entries() {
            let expected = [5, 30].iter().any(|layer| {
                ["self_attn.q_proj.weight", "self_attn.q_proj.bias", "mlp.down_proj.weight"]
                    .iter()
                    .any(|tensor| entry.name == format!("model.layers.{layer}.{tensor}"))
            });
            assert_eq!(inside(&entry.block.range()), expected, "{}", entry.name);
            count += if expected { entry.block.len() } else { 0 };
        }
        assert_eq!(ranges.iter().map(Range::len).sum::<usize>(), count);
        assert_eq!(part(Some(vec![1]), None).ranges(&layout).unwrap(), [layout.layer(1).range()]);
        let all = Trained::All.ranges(&layout).unwrap();
        assert!(all.len() == 1 && all[0] == (0..layout.len()));
        assert!(part(Some(vec![32]), None).ranges(&layout).is_err());
        assert!(part(Some(vec![]), None).ranges(&layout).is_err());
    }
}
