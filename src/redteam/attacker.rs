//! Runs attacks, one after another, on one set of weights.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::scorer::{Measures, Prefix, Scorer, joined};
use super::suite::{Attack, AttackMethod, Prefill, Role};
use super::{AttackerData, Cost, Point, Scores, SearchedAbliteration, merged};
use crate::edits::Quantization;
use crate::error::Result;
use crate::model::{Batch, Model, Parameters};
use crate::objective::{Evaluator, LossBatch, Subject};
use crate::ops::{Backend, UpdateRule};
use crate::optimizer::OptimizerKind;
use crate::plan::{Backward, Costs, attack_bytes};
use crate::training::{FineTune, FineTuneRun, GuardedTrainer, OpenStreams, StreamDraws, Trainer, Work};

/// What to do about an attack that diverges.
const DIVERGED: &str = "lower its lr";
/// The name that keys the order of rows which no training goes over.
pub(super) const STREAM: &str = "data";

/// A model under attack and what attackers have, shared by all of them.
pub struct Target<B: Backend> {
    /// The architecture.
    pub model: Arc<Model<B>>,
    /// The unattacked weights.
    pub weights: Vec<f32>,
    /// The data that attackers have.
    pub data: AttackerData,
    /// What is measured.
    pub measures: Measures,
    /// Measurements along an attack, besides the one before it.
    pub points: u64,
}

/// Told of the start of a training (nothing) and of the loss of each step; an error ends the attack.
pub type Tick<'a> = dyn FnMut(Option<f64>) -> Result<()> + 'a;

impl<B: Backend> Target<B> {
    /// Scores of the unattacked model.
    pub fn before(&self) -> Result<Scores> {
        let weights = Parameters::from_host(&self.model.backend, "weights", self.model.layout(), &self.weights)?;
        let mut evaluator = self.evaluator(0)?;
        self.measures.scores(&mut evaluator, Subject::plain(&weights), &Prefix::default())
    }

    /// Memory for the measurements, with `prefix` tokens before restricted questions.
    fn evaluator(&self, prefix: usize) -> Result<Evaluator<B>> {
        Evaluator::new(Arc::clone(&self.model), self.measures.capacity(prefix), &[])
    }

    /// The restricted score of other weights of the same architecture.
    pub fn restricted_score(&self, weights: &[f32]) -> Result<f64> {
        let weights = Parameters::from_host(&self.model.backend, "other weights", self.model.layout(), weights)?;
        let mut evaluator = self.evaluator(0)?;
        self.measures.restricted.score(
            &mut evaluator,
            Subject::plain(&weights),
            &Prefix::default(),
            &mut BTreeMap::new(),
        )
    }

    /// Bytes that an attack needs on the CPU backend, besides what all attacks share.
    pub fn bytes(&self, attack: &Attack) -> Result<u64> {
        let measured = self.measures.capacity(0);
        // An attack without training is counted as a step of SGD: that is more than it needs.
        let (adapter, optimizer, tokens, shown) = match &attack.method {
            AttackMethod::Finetune(finetune) => {
                let tokens = self.fine_tune_capacity(&self.open(finetune, attack.seed)?);
                (finetune.adapter.as_ref(), finetune.optimizer.kind, tokens, 0)
            }
            AttackMethod::Prefill(Prefill::Demonstrations(count)) => {
                let shown = self.data.stream(Role::Restricted)?.longest().saturating_mul(*count);
                (None, OptimizerKind::SgdMomentum, self.measures.capacity(shown), shown)
            }
            AttackMethod::Prefill(Prefill::Answers(_)) | AttackMethod::Quantize(_) | AttackMethod::Merge { .. } => {
                (None, OptimizerKind::SgdMomentum, measured, 0)
            }
            AttackMethod::Abliteration { .. } | AttackMethod::SearchedAbliteration(_) => {
                (None, OptimizerKind::SgdMomentum, self.abliteration_capacity(attack.seed)?, 0)
            }
        };
        let answers = attack.answer_room().map_or(0, |max_new_tokens| self.answers_cached(max_new_tokens));
        let config = &self.model.config;
        let keys_and_values = 8 * (config.num_hidden_layers * config.attention().key_value_cols()) as u64;
        let cached = self.measures.restricted.cached_tokens(shown).max(answers);
        let cached = keys_and_values.saturating_mul(cached as u64);
        Ok(attack_bytes(config, adapter, optimizer, tokens as u64).saturating_add(cached))
    }

    /// The streams of a fine-tuning attack.
    fn open(&self, fine_tune: &FineTune<Role>, seed: u64) -> Result<OpenStreams> {
        OpenStreams::new(fine_tune, seed, |role| self.data.stream(*role))
    }

    /// The restricted questions among the rows that a fine-tuning attack on measured rows holds out; none for other attacks.
    fn held_out(&self, fine_tune: &FineTune<Role>, seed: u64) -> Result<Option<Scorer>> {
        if !fine_tune.source.streams().contains(&&Role::Measured) {
            return Ok(None);
        }
        let rows = self.data.stream(Role::Measured)?.len();
        let split = fine_tune.selection.split(rows, seed)?;
        self.measures.restricted.on_rows(&split.held_out, rows).map(Some)
    }

    /// Tokens of the largest batch of a training or a measurement.
    fn fine_tune_capacity(&self, streams: &OpenStreams) -> usize {
        self.measures.capacity(0).max(streams.max_batch_tokens())
    }
}

/// Runs attacks on weights of its own.
pub struct Attacker<'a, B: Backend> {
    pub(super) target: &'a Target<B>,
    pub(super) before: &'a Scores,
    pub(super) weights: Parameters<B>,
    /// Whether an attack has changed the weights since they were last put back.
    pub(super) changed: bool,
    /// What the training, or the search, of the last attack has cost so far.
    pub(super) spent: Cost,
}

/// What an attack came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Attacked {
    /// What was measured along it.
    pub curve: Vec<Point>,
    /// What was tried, where it is a search of its own.
    pub searched: Option<SearchedAbliteration>,
}

impl<'a, B: Backend> Attacker<'a, B> {
    /// An attacker of `target`, whose scores are `before`.
    pub fn new(target: &'a Target<B>, before: &'a Scores) -> Result<Self> {
        let model = &target.model;
        let weights = Parameters::from_host(&model.backend, "attacked weights", model.layout(), &target.weights)?;
        Ok(Self { target, before, weights, changed: false, spent: Cost::default() })
    }

    /// What the training of the last attack cost until it ended or failed.
    pub fn spent(&self) -> Cost {
        self.spent
    }

    /// Runs `attack` on the unattacked model.
    pub fn run(&mut self, attack: &Attack, tick: &mut Tick) -> Result<Attacked> {
        self.spent = Cost::default();
        if self.changed {
            self.weights.upload(&self.target.model.backend, &self.target.weights)?;
            self.changed = false;
        }
        let curve = match &attack.method {
            AttackMethod::Finetune(fine_tune) => self.fine_tune(fine_tune, attack.seed, tick),
            AttackMethod::Prefill(prefill) => self.prefill(prefill, attack.seed),
            AttackMethod::Abliteration { depth } => self.abliterate(*depth, attack.seed, tick),
            AttackMethod::Quantize(quantization) => self.quantize(quantization, tick),
            AttackMethod::Merge { coefficients } => self.merge(coefficients, tick),
            AttackMethod::SearchedAbliteration(table) => {
                return self.search_abliteration(table, attack.seed, tick);
            }
        };
        Ok(Attacked { curve: curve?, searched: None })
    }

    /// The weights as the last attack left them, without the factors of LoRA.
    pub fn weights(&self) -> &Parameters<B> {
        &self.weights
    }

    pub(super) fn unattacked(&self) -> Point {
        Point { cost: Cost::default(), alone: None, variant: None, loss: None, scores: self.before.clone() }
    }

    fn fine_tune(&mut self, fine_tune: &FineTune<Role>, seed: u64, tick: &mut Tick) -> Result<Vec<Point>> {
        let model = Arc::clone(&self.target.model);
        self.changed = fine_tune.adapter.is_none() || fine_tune.noise > 0.0;
        fine_tune.disturb(&model, &mut self.weights, seed)?;
        let mut streams = self.target.open(fine_tune, seed)?;
        let capacity = self.target.fine_tune_capacity(&streams);
        let trainer = fine_tune.trainer(&model, seed)?;
        let mut evaluator = Evaluator::new(Arc::clone(&model), capacity, &Vec::from_iter(trainer.adapter()))?;
        let mut meter = Meter::new(&model, &trainer);
        let mut learner = GuardedTrainer::new(&model.backend, trainer, DIVERGED)?;
        let mut batch = LossBatch::with_room(&model, capacity)?;
        let held_out = self.target.held_out(fine_tune, seed)?;
        let restricted = held_out.as_ref().unwrap_or(&self.target.measures.restricted);
        let mut first = self.unattacked();
        if fine_tune.noise > 0.0 || held_out.is_some() {
            first.scores = self.measure(&mut evaluator, learner.trainer_mut(), restricted)?;
        }
        let mut curve = vec![first];
        let mut loss = None;
        tick(None)?;
        let mut run = FineTuneRun::new(fine_tune.clone(), StreamDraws::OfStep { seed });
        while !run.is_over() {
            let start = Instant::now();
            let work = Work { evaluator: &mut evaluator, weights: &mut self.weights, batch: &mut batch };
            let report = run.step(&mut learner, work, |step, model, batch| streams.refill(step, model, batch))?;
            meter.add(batch.host(), start);
            self.spent = meter.cost;
            tick(Some(report.loss))?;
            // A skipped step has a loss that no file can hold.
            loss = Some(report.loss).filter(|loss| loss.is_finite()).or(loss);
            if is_measured(run.steps_done(), fine_tune.steps, self.target.points) {
                let scores = self.measure(&mut evaluator, learner.trainer_mut(), restricted)?;
                curve.push(Point { cost: meter.cost, loss, scores, ..self.unattacked() });
            }
        }
        Ok(curve)
    }

    /// The scores of the point that an attacker would keep: of schedule-free optimizers the average.
    fn measure(
        &mut self,
        evaluator: &mut Evaluator<B>,
        trainer: &mut Trainer<B>,
        restricted: &Scorer,
    ) -> Result<Scores> {
        let measures = &self.target.measures;
        let plain = Prefix::default();
        if trainer.optimizer().config().kind.rule() != UpdateRule::ScheduleFreeAdamW {
            return measures.scores_on(restricted, evaluator, trainer.subject(&self.weights), &plain);
        }
        let backend = &self.target.model.backend;
        let trained = trainer.trained(&self.weights);
        let there = trained.download(backend)?;
        let average = trainer.optimizer().average_point(backend, trained)?;
        trainer.trained_mut(&mut self.weights).upload(backend, &average)?;
        let scores = measures.scores_on(restricted, evaluator, trainer.subject(&self.weights), &plain)?;
        trainer.trained_mut(&mut self.weights).upload(backend, &there)?;
        Ok(scores)
    }

    fn prefill(&mut self, prefill: &Prefill, seed: u64) -> Result<Vec<Point>> {
        match prefill {
            Prefill::Answers(texts) => self.begin_answers(texts),
            Prefill::Demonstrations(count) => self.demonstrate(*count, seed),
        }
    }

    /// A point for each beginning of the answers.
    fn begin_answers(&mut self, texts: &[String]) -> Result<Vec<Point>> {
        let mut evaluator = self.target.evaluator(0)?;
        let mut curve = vec![self.unattacked()];
        for text in texts {
            let prefix = Prefix { answer: Some(text.clone()), ..Prefix::default() };
            let scores = self.target.measures.scores(&mut evaluator, Subject::plain(&self.weights), &prefix)?;
            let variant = (texts.len() > 1).then(|| text.clone());
            curve.push(Point { variant, scores, ..self.unattacked() });
        }
        Ok(curve)
    }

    /// Shows rows of the restricted data before each question.
    fn demonstrate(&mut self, count: usize, seed: u64) -> Result<Vec<Point>> {
        let model = &self.target.model;
        let rows = self.target.data.stream(Role::Restricted)?.reopened(STREAM, count, seed)?.next_batch()?;
        let bos = model.config.bos_token_id;
        let tokens = rows
            .segments
            .iter()
            .fold(Vec::new(), |tokens, s| joined(&tokens, &rows.tokens[s.start..s.start + s.valid], bos));
        let prefix = Prefix { tokens, ..Prefix::default() };
        let mut evaluator = self.target.evaluator(prefix.tokens.len())?;
        let scores = self.target.measures.scores(&mut evaluator, Subject::plain(&self.weights), &prefix)?;
        let tokens = prefix.tokens.len();
        let flop = Costs::new(&model.config).sequence(tokens, Backward::None);
        let cost = Cost { steps: 0, examples: count as u64, tokens: tokens as u64, flop, seconds: 0.0 };
        Ok(vec![self.unattacked(), Point { cost, scores, ..self.unattacked() }])
    }
}

/// Attacks without training: no token goes through the model.
impl<B: Backend> Attacker<'_, B> {
    fn quantize(&mut self, quantization: &Quantization, tick: &mut Tick) -> Result<Vec<Point>> {
        tick(None)?;
        let first = self.unattacked();
        let start = Instant::now();
        let mut weights = self.target.weights.clone();
        quantization.round(&self.target.model, &mut weights);
        let seconds = start.elapsed().as_secs_f64();
        Ok(vec![first, self.put(&mut self.target.evaluator(0)?, &weights, seconds)?])
    }

    /// A point for each factor on the difference from the other model. Each costs what those before it did, too.
    fn merge(&mut self, coefficients: &[f64], tick: &mut Tick) -> Result<Vec<Point>> {
        let target = self.target;
        let base = target.data.base_model()?;
        let mut evaluator = target.evaluator(0)?;
        let mut curve = vec![self.unattacked()];
        let mut spent = 0.0;
        for coefficient in coefficients {
            tick(None)?;
            let start = Instant::now();
            let weights = merged(&target.weights, base, *coefficient);
            let mut point = self.put(&mut evaluator, &weights, start.elapsed().as_secs_f64())?;
            spent += point.cost.seconds;
            if coefficients.len() > 1 {
                point.alone = Some(point.cost);
                point.variant = Some(format!("c = {coefficient}"));
            }
            point.cost.seconds = spent;
            curve.push(point);
        }
        Ok(curve)
    }

    /// The point of `weights`, which took `seconds` to make.
    fn put(&mut self, evaluator: &mut Evaluator<B>, weights: &[f32], seconds: f64) -> Result<Point> {
        let target = self.target;
        self.changed = true;
        self.weights.upload(&target.model.backend, weights)?;
        let scores = target.measures.scores(evaluator, Subject::plain(&self.weights), &Prefix::default())?;
        Ok(Point { cost: Cost { seconds, ..Cost::default() }, scores, ..self.unattacked() })
    }
}

/// Whether a measurement comes after step `done` of `steps`: number k of `points` is at steps · (k / points)², so that they
/// are close together at the start, where most breaches are.
pub(super) fn is_measured(done: u64, steps: u64, points: u64) -> bool {
    let squared = u128::from(points) * u128::from(points);
    let measured = |done: u64| (u128::from(done) * squared / u128::from(steps.max(1))).isqrt();
    measured(done) > measured(done - 1)
}

/// Counts what an attack costs.
struct Meter<'a> {
    costs: Costs<'a>,
    /// LoRA's trained numbers, where the weights are frozen.
    factors: Option<u64>,
    cost: Cost,
}

impl<'a> Meter<'a> {
    fn new<B: Backend>(model: &'a Model<B>, trainer: &Trainer<B>) -> Self {
        let factors = trainer.adapter().map(|adapter| adapter.layout().len() as u64);
        Self { costs: Costs::new(&model.config), factors, cost: Cost::default() }
    }

    /// A training step on `batch` that began at `start` and is over on the device too.
    fn add(&mut self, batch: &Batch, start: Instant) {
        let backward = if self.factors.is_some() { Backward::Inputs } else { Backward::Weights };
        let sequences: f64 = batch.segments.iter().map(|s| self.costs.sequence(s.length, backward)).sum();
        let factors = self.factors.map_or(0.0, Costs::factors_per_token) * batch.len() as f64;
        self.cost.steps += 1;
        self.cost.examples += batch.segments.len() as u64;
        self.cost.tokens += batch.len() as u64;
        self.cost.flop += sequences + factors;
        self.cost.seconds += start.elapsed().as_secs_f64();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;
    use crate::demo::Experiment;
    use crate::optimizer::{OptimizerConfig, OptimizerKind};

    #[test]
    fn measurements_are_close_together_at_the_start_and_the_last_step_is_one() {
        let at = |steps, points| (1..=steps).filter(|&done| is_measured(done, steps, points)).collect::<Vec<u64>>();
        assert_eq!(at(1000, 10), [10, 40, 90, 160, 250, 360, 490, 640, 810, 1000]);
        assert_eq!(at(10, 5), [1, 2, 4, 7, 10]);
        assert_eq!(at(3, 10), [1, 2, 3]);
        assert_eq!(at(1 << 20, 1), [1 << 20]);
        assert!(is_measured(1 << 32, 1 << 32, 10_000));
    }

    /// 3 steps on sequences of 5 and 7 tokens; LoRA leaves the weight gradients out.
    #[test]
    fn costs_are_counted_from_what_went_through_the_model() {
        let model = Model::new(Cpu, Experiment::<Cpu>::model_config(), 8).unwrap();
        let trainer = Trainer::full(&Cpu, model.layout(), OptimizerConfig::new(OptimizerKind::AdamW, 1e-3)).unwrap();
        let mut meter = Meter::new(&model, &trainer);
        let mut batch = Batch::default();
        batch.push(&[1; 5], &[1; 5], 5);
        batch.push(&[1; 7], &[1; 7], 7);
        for _ in 0..3 {
            meter.add(&batch, Instant::now());
        }
        let cost = meter.cost;
        assert_eq!((cost.steps, cost.examples, cost.tokens), (3, 6, 36));
        // Linear layers and head as in the demonstration's architecture; causal attention sees (n + 1) / 2 tokens.
        let weights = 3.0 * (32_768.0 + 16_384.0 + 147_456.0) + 32_768.0;
        let attention = |n: f64| 3.5 * 4.0 * 128.0 * (n + 1.0) / 2.0 * 3.0;
        let expected = 3.0 * (12.0 * 6.0 * weights + 5.0 * attention(5.0) + 7.0 * attention(7.0));
        assert!((cost.flop / expected - 1.0).abs() < 1e-12, "{} {expected}", cost.flop);
        let mut lora = Meter { factors: Some(1000), ..Meter::new(&model, &trainer) };
        lora.add(&batch, Instant::now());
        let expected = 12.0 * (4.0 * weights + 6000.0) + 5.0 * attention(5.0) + 7.0 * attention(7.0);
        assert!((lora.cost.flop / expected - 1.0).abs() < 1e-12);
    }
}
