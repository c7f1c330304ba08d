//! Runs attacks, one after another, on one set of weights.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::scorer::{Measures, Prefix, joined};
use super::suite::{Attack, Finetune, Method, Prefill, Role, Source};
use super::{AbliterationData, Cost, Point, Scores, abliterate, add_noise};
use crate::data::DataStream;
use crate::error::{Error, Result};
use crate::model::{Adapter, Batch, Model, Parameters};
use crate::objective::{Evaluator, LossBatch, Subject};
use crate::ops::{Backend, UpdateRule};
use crate::optimizer::OptimizerKind;
use crate::plan::{Backward, Costs, attack_bytes};
use crate::random::{Random, Stream, weighted};
use crate::training::{GuardedSteps, Trainer};

/// What to do about an attack that diverges.
const DIVERGED: &str = "lower its lr";
/// Rows of each side that abliteration takes its means over, as Arditi et al. do, and how many go through at once.
const ABLITERATION_ROWS: usize = 128;
const ABLITERATION_BATCH: usize = 32;
/// The name that `temper attack` reads its data under, so that both see the same order.
const STREAM: &str = "data";

/// A model under attack and what attackers have, shared by all of them.
pub struct Target<B: Backend> {
    /// The architecture.
    pub model: Arc<Model<B>>,
    /// The unattacked weights.
    pub weights: Vec<f32>,
    /// The data, by role; in the place of a file that cannot be used the reason.
    pub streams: BTreeMap<Role, std::result::Result<DataStream, String>>,
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
        let mut evaluator = Evaluator::new(Arc::clone(&self.model), self.measures.capacity(0), &[])?;
        self.measures.scores(&mut evaluator, Subject::plain(&weights), &Prefix::default())
    }

    /// The restricted score of other weights of the same architecture.
    pub fn restricted_score(&self, weights: &[f32]) -> Result<f64> {
        let weights = Parameters::from_host(&self.model.backend, "other weights", self.model.layout(), weights)?;
        let mut evaluator = Evaluator::new(Arc::clone(&self.model), self.measures.capacity(0), &[])?;
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
        // What only evaluates counts as an attack without optimizer states, whose gradient leaves a margin.
        let (adapter, optimizer, tokens, shown) = match &attack.method {
            Method::Finetune(finetune) => {
                let tokens = self.finetune_capacity(finetune, attack.seed)?;
                (finetune.adapter.as_ref(), finetune.optimizer.kind, tokens, 0)
            }
            Method::Prefill(Prefill::Demonstrations(count)) => {
                let shown = self.stream(Role::Restricted)?.longest().saturating_mul(*count);
                (None, OptimizerKind::SgdMomentum, self.measures.capacity(shown), shown)
            }
            Method::Prefill(Prefill::Answer(_)) => (None, OptimizerKind::SgdMomentum, measured, 0),
            Method::Abliteration { .. } => {
                let streams = [Role::RestrictedPrompts, Role::HarmlessPrompts]
                    .map(|role| self.stream(role)?.reopened(STREAM, ABLITERATION_BATCH, attack.seed));
                let [restricted, harmless] = streams;
                let most = restricted?.max_batch_tokens().max(harmless?.max_batch_tokens());
                (None, OptimizerKind::SgdMomentum, measured.max(most), 0)
            }
        };
        let config = &self.model.config;
        let keys_and_values = 8 * (config.num_hidden_layers * config.attention().key_value_cols()) as u64;
        let cached = keys_and_values.saturating_mul(self.measures.restricted.cached_tokens(shown) as u64);
        Ok(attack_bytes(config, adapter, optimizer, tokens as u64).saturating_add(cached))
    }

    fn finetune_capacity(&self, finetune: &Finetune, seed: u64) -> Result<usize> {
        let mut capacity = self.measures.capacity(0);
        for role in finetune.source.roles() {
            let stream = self.stream(role)?.reopened(STREAM, finetune.batch, seed)?;
            capacity = capacity.max(stream.max_batch_tokens());
        }
        Ok(capacity)
    }

    fn stream(&self, role: Role) -> Result<&DataStream> {
        let refuse = |problem: &str| {
            let key = format!("data.{}", role.name());
            Error::config(key, problem, "mend it, or leave out the attacks that need it")
        };
        match self.streams.get(&role) {
            Some(Ok(stream)) => Ok(stream),
            Some(Err(problem)) => Err(refuse(problem)),
            None => Err(refuse("missing")),
        }
    }
}

/// Runs attacks on weights of its own.
pub struct Attacker<'a, B: Backend> {
    target: &'a Target<B>,
    before: &'a Scores,
    weights: Parameters<B>,
    /// Whether an attack has changed the weights since they were last put back.
    changed: bool,
}

impl<'a, B: Backend> Attacker<'a, B> {
    /// An attacker of `target`, whose scores are `before`.
    pub fn new(target: &'a Target<B>, before: &'a Scores) -> Result<Self> {
        let model = &target.model;
        let weights = Parameters::from_host(&model.backend, "attacked weights", model.layout(), &target.weights)?;
        Ok(Self { target, before, weights, changed: false })
    }

    /// Runs `attack` on the unattacked model; returns what was measured along it.
    pub fn run(&mut self, attack: &Attack, tick: &mut Tick) -> Result<Vec<Point>> {
        if self.changed {
            self.weights.upload(&self.target.model.backend, &self.target.weights)?;
            self.changed = false;
        }
        match &attack.method {
            Method::Finetune(finetune) => self.finetune(finetune, attack.seed, tick),
            Method::Prefill(prefill) => self.prefill(prefill, attack.seed),
            Method::Abliteration { depth } => self.abliterate(*depth, attack.seed, tick),
        }
    }

    /// The weights as the last attack left them, without the factors of LoRA.
    pub fn weights(&self) -> &Parameters<B> {
        &self.weights
    }

    fn unattacked(&self) -> Point {
        Point { cost: Cost::default(), loss: None, scores: self.before.clone() }
    }

    fn finetune(&mut self, finetune: &Finetune, seed: u64, tick: &mut Tick) -> Result<Vec<Point>> {
        let model = Arc::clone(&self.target.model);
        self.changed = finetune.adapter.is_none() || finetune.noise > 0.0;
        if finetune.noise > 0.0 {
            add_noise(&model, &mut self.weights, finetune.noise, seed)?;
        }
        let capacity = self.target.finetune_capacity(finetune, seed)?;
        let mut feed = Feed::new(self.target, finetune, seed)?;
        let mut trainer = trainer(&model, finetune, seed)?;
        let mut evaluator = Evaluator::new(Arc::clone(&model), capacity, &Vec::from_iter(trainer.adapter()))?;
        let mut steps = GuardedSteps::new(&model.backend, DIVERGED)?;
        let mut meter = Meter::new(&model, &trainer);
        let mut batch = LossBatch::with_room(&model, capacity)?;
        let first = match finetune.noise > 0.0 {
            true => Point { scores: self.measure(&mut evaluator, &mut trainer)?, ..self.unattacked() },
            false => self.unattacked(),
        };
        let (mut curve, mut loss) = (vec![first], None);
        tick(None)?;
        for step in 0..finetune.steps {
            let start = Instant::now();
            batch.refill(&model, feed.next_batch(step)?)?;
            let scale = if step < finetune.negated_steps { -1.0 } else { 1.0 };
            let report = steps.step(&mut trainer, &mut evaluator, &mut self.weights, &batch, scale, step)?;
            meter.add(batch.host(), start);
            tick(Some(report.loss))?;
            // A skipped step has a loss that no file can hold.
            loss = Some(report.loss).filter(|loss| loss.is_finite()).or(loss);
            if is_measured(step + 1, finetune.steps, self.target.points) {
                let scores = self.measure(&mut evaluator, &mut trainer)?;
                curve.push(Point { cost: meter.cost, loss, scores });
            }
        }
        Ok(curve)
    }

    /// The scores of the point that an attacker would keep: of schedule-free optimizers the average.
    fn measure(&mut self, evaluator: &mut Evaluator<B>, trainer: &mut Trainer<B>) -> Result<Scores> {
        let measures = &self.target.measures;
        let plain = Prefix::default();
        if trainer.optimizer().config().kind.rule() != UpdateRule::ScheduleFreeAdamW {
            return measures.scores(evaluator, trainer.subject(&self.weights), &plain);
        }
        let backend = &self.target.model.backend;
        let trained = trainer.adapter().map_or(&self.weights, |adapter| &adapter.parameters);
        let (there, average) = (trained.download(backend)?, trainer.optimizer().average_point(backend, trained)?);
        self.place(trainer, &average)?;
        let scores = measures.scores(evaluator, trainer.subject(&self.weights), &plain)?;
        self.place(trainer, &there)?;
        Ok(scores)
    }

    fn place(&mut self, trainer: &mut Trainer<B>, values: &[f32]) -> Result<()> {
        let backend = &self.target.model.backend;
        match trainer.adapter_mut() {
            Some(adapter) => adapter.parameters.upload(backend, values),
            None => self.weights.upload(backend, values),
        }
    }

    fn prefill(&mut self, prefill: &Prefill, seed: u64) -> Result<Vec<Point>> {
        let model = &self.target.model;
        let (prefix, examples) = match prefill {
            Prefill::Answer(text) => (Prefix { answer: Some(text.clone()), ..Prefix::default() }, 0),
            Prefill::Demonstrations(count) => {
                let rows = self.target.stream(Role::Restricted)?.reopened(STREAM, *count, seed)?.next_batch()?;
                let bos = model.config.bos_token_id;
                let tokens = rows
                    .segments
                    .iter()
                    .fold(Vec::new(), |tokens, s| joined(&tokens, &rows.tokens[s.start..s.start + s.valid], bos));
                (Prefix { tokens, ..Prefix::default() }, *count as u64)
            }
        };
        let capacity = self.target.measures.capacity(prefix.tokens.len());
        let mut evaluator = Evaluator::new(Arc::clone(model), capacity, &[])?;
        let scores = self.target.measures.scores(&mut evaluator, Subject::plain(&self.weights), &prefix)?;
        let tokens = prefix.tokens.len();
        let flop = Costs::new(&model.config).sequence(tokens, Backward::None);
        let cost = Cost { steps: 0, examples, tokens: tokens as u64, flop, seconds: 0.0 };
        Ok(vec![self.unattacked(), Point { cost, loss: None, scores }])
    }

    fn abliterate(&mut self, depth: Option<f64>, seed: u64, tick: &mut Tick) -> Result<Vec<Point>> {
        let model = Arc::clone(&self.target.model);
        let sides = [Role::RestrictedPrompts, Role::HarmlessPrompts].map(|role| {
            let mut stream = self.target.stream(role)?.reopened(STREAM, ABLITERATION_BATCH, seed)?;
            let batches = ABLITERATION_ROWS.min(stream.len()).div_ceil(ABLITERATION_BATCH);
            let rows = (0..batches).map(|_| stream.next_batch()).collect::<Result<Vec<_>>>()?;
            Ok::<_, Error>((rows, stream.max_batch_tokens()))
        });
        let [restricted, harmless] = sides;
        let ((restricted, most), (harmless, other)) = (restricted?, harmless?);
        let capacity = self.target.measures.capacity(0).max(most).max(other);
        let mut evaluator = Evaluator::new(Arc::clone(&model), capacity, &[])?;
        tick(None)?;
        let (start, data) = (Instant::now(), AbliterationData { restricted, harmless });
        self.changed = true;
        let found = abliterate(&mut evaluator, &mut self.weights, &data, depth)?;
        let seconds = start.elapsed().as_secs_f64();
        let segments = || data.restricted.iter().chain(&data.harmless).flat_map(|batch| &batch.segments);
        let longest = segments().map(|s| s.length).max().unwrap_or(0);
        // Counted at the longest row: the search goes over the same rows once for each depth.
        let per_token = Costs::new(&model.config).sequence(longest, Backward::None) / longest.max(1) as f64;
        let flop = per_token * found.tokens as f64;
        let cost = Cost { steps: 0, examples: segments().count() as u64, tokens: found.tokens, flop, seconds };
        let scores = self.target.measures.scores(&mut evaluator, Subject::plain(&self.weights), &Prefix::default())?;
        Ok(vec![self.unattacked(), Point { cost, loss: Some(found.loss), scores }])
    }
}

/// Whether a measurement comes after step `done` of `steps`: number k of `points` is at steps · (k / points)², so that they
/// are close together at the start, where most breaches are.
fn is_measured(done: u64, steps: u64, points: u64) -> bool {
    let squared = u128::from(points) * u128::from(points);
    let measured = |done: u64| (u128::from(done) * squared / u128::from(steps.max(1))).isqrt();
    measured(done) > measured(done - 1)
}

fn trainer<B: Backend>(model: &Model<B>, finetune: &Finetune, seed: u64) -> Result<Trainer<B>> {
    let (backend, optimizer) = (&model.backend, finetune.optimizer.clone());
    let Some(config) = &finetune.adapter else { return Trainer::full(backend, model.layout(), optimizer) };
    let mut adapter = Adapter::zeros(backend, &model.config, config.clone())?;
    adapter.initialise(backend, seed, 0)?;
    Trainer::lora(backend, adapter, optimizer, seed)
}

/// The batches of an attack: a switch or a mixture of streams.
struct Feed {
    source: Source,
    streams: Vec<DataStream>,
    seed: u64,
}

impl Feed {
    fn new<B: Backend>(target: &Target<B>, finetune: &Finetune, seed: u64) -> Result<Self> {
        let open = |role: Role| target.stream(role)?.reopened(STREAM, finetune.batch, seed);
        let streams = finetune.source.roles().into_iter().map(open).collect::<Result<_>>()?;
        Ok(Self { source: finetune.source.clone(), streams, seed })
    }

    fn next_batch(&mut self, step: u64) -> Result<Batch> {
        let index = stream_at(&self.source, step, self.seed);
        let stream = self.streams.get_mut(index);
        stream
            .ok_or_else(|| Error::config("attack.data", "no stream has a weight above 0", "give one a weight"))?
            .next_batch()
    }
}

/// Which of the source's streams `step` trains on.
fn stream_at(source: &Source, step: u64, seed: u64) -> usize {
    match source {
        Source::One(_) => 0,
        Source::Switch { at, .. } => usize::from(step >= *at),
        Source::Mixture(parts) => {
            let mut random = Random::new(seed, Stream::RedTeam, step, 0);
            weighted(&mut random, parts.iter().map(|(_, weight)| *weight)).unwrap_or(usize::MAX)
        }
    }
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
    fn a_switch_changes_the_stream_at_its_step() {
        let source = Source::Switch { roles: [Role::Retain, Role::Restricted], at: 4 };
        let used: Vec<usize> = (0..10).map(|step| stream_at(&source, step, 1)).collect();
        assert_eq!(used, [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]);
        assert_eq!(stream_at(&Source::One(Role::Ood), 5, 1), 0);
    }

    #[test]
    fn a_mixture_draws_each_stream_as_often_as_its_weight_says() {
        let source = Source::Mixture(vec![(Role::Retain, 1.0), (Role::Ood, 0.0), (Role::Restricted, 3.0)]);
        let used: Vec<usize> = (0..4000).map(|step| stream_at(&source, step, 1)).collect();
        let share = |index| used.iter().filter(|i| **i == index).count() as f64 / used.len() as f64;
        // A share of 4000 draws has a deviation of 0.7 %.
        assert!(share(1) == 0.0 && (share(0) - 0.25).abs() < 0.03, "{} {}", share(0), share(1));
        assert_ne!(used, (0..4000).map(|step| stream_at(&source, step, 2)).collect::<Vec<_>>());
    }

    #[test]
    fn measurements_are_close_together_at_the_start_and_the_last_step_is_one() {
        let at = |steps, points| (1..=steps).filter(|&done| is_measured(done, steps, points)).collect::<Vec<u64>>();
        assert_eq!(at(1000, 10), [10, 40, 90, 160, 250, 360, 490, 640, 810, 1000]);
        assert_eq!(at(10, 5), [1, 2, 4, 7, 10]);
        assert_eq!(at(3, 10), [1, 2, 3]);
        assert_eq!(at(1 << 20, 1), [1 << 20]);
        assert!(is_measured(1 << 32, 1 << 32, 10_000));
    }

    /// Each tensor gets noise of its own size; the numbers are a function of the seed.
    #[test]
    fn noise_is_relative_to_each_tensor() {
        let model = Model::new(Cpu, Experiment::<Cpu>::model_config(), 8).unwrap();
        let layout = model.layout();
        let mut start = vec![0.0f32; layout.len()];
        for (index, entry) in layout.entries().iter().enumerate() {
            start[entry.block.range()].fill(0.1 * (index + 1) as f32);
        }
        let noisy = |seed| {
            let mut weights = Parameters::from_host(&Cpu, "weights", model.layout(), &start).unwrap();
            add_noise(&model, &mut weights, 0.05, seed).unwrap();
            weights.download(&Cpu).unwrap()
        };
        let first = noisy(1);
        for (index, entry) in layout.entries().iter().enumerate().filter(|(_, entry)| entry.block.len() > 10_000) {
            let place = entry.block.range();
            let change = first[place.clone()].iter().zip(&start[place]).map(|(a, b)| f64::from(a - b));
            let square: f64 = change.map(|d| d * d).sum::<f64>() / entry.block.len() as f64;
            let ratio = square.sqrt() / (0.05 * 0.1 * (index + 1) as f64);
            // The deviation of a deviation of 10,000 numbers is 0.7 %.
            assert!((ratio - 1.0).abs() < 0.03, "{}: {ratio}", entry.name);
        }
        assert_eq!(first, noisy(1));
        assert_ne!(first, noisy(2));
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
