//! The demonstration's course: pre-train, remove, harden, attack. The numbers it reports are measured as it runs.

use std::sync::Arc;

use super::facts::{Domain, Facts, Pool, ROW_TOKENS, VOCAB_SIZE};
use crate::data::{DataStream, StreamOptions};
use crate::error::{Error, Result};
use crate::events::{Event, Measured, Phase};
use crate::model::{Adapter, AdapterConfig, Model, ModelConfig, ModelFamily, Parameters, Projection, RopeScaling};
use crate::objective::{EntropyOver, Evaluator, LossBatch, LossTape, Subject};
use crate::ops::Backend;
use crate::optimizer::{Decay, OptimizerConfig, OptimizerKind, Schedule};
use crate::random::{Random, Stream};
use crate::safeguard;
use crate::tar::{Adversary, AdversarySource, Hardener, Settings, Streams, TrResistance};
use crate::training::{MemorySettings, Trainer};

/// How much of everything.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Seed of facts, weights, batches and draws.
    pub seed: u64,
    /// Steps of pre-training.
    pub pretrain_steps: u64,
    /// Steps of the plain safeguard (max-entropy unlearning).
    pub unlearn_steps: u64,
    /// N.
    pub outer_steps: u64,
    /// K.
    pub inner_steps: u64,
    /// Rows of a batch.
    pub rows: usize,
    /// The attacks: name, learning rate, steps, and the LoRA rank where not all weights are trained.
    pub attacks: Vec<AttackPlan>,
}

/// One attack on a finished model.
#[derive(Clone, Debug, PartialEq)]
pub struct AttackPlan {
    /// Its name.
    pub name: String,
    /// Learning rate of its AdamW.
    pub lr: f64,
    /// Steps.
    pub steps: u64,
    /// LoRA rank; all weights are trained where absent.
    pub lora_rank: Option<usize>,
}

impl Plan {
    /// The full demonstration.
    pub fn full(seed: u64) -> Self {
        let attack = |name: &str, lr, steps, lora_rank| AttackPlan { name: name.into(), lr, steps, lora_rank };
        Self {
            seed,
            pretrain_steps: 1200,
            unlearn_steps: 200,
            outer_steps: 560,
            inner_steps: 24,
            rows: 16,
            attacks: vec![
                attack("full AdamW 1e-3", 1e-3, 200, None),
                attack("full AdamW 3e-4", 3e-4, 200, None),
                attack("full AdamW 1e-3, long", 1e-3, 600, None),
                attack("LoRA r8 AdamW 3e-3", 3e-3, 200, Some(8)),
            ],
        }
    }

    /// The same course in a few seconds: it shows that every part runs, not what the method can do.
    pub fn quick(seed: u64) -> Self {
        let mut plan = Self::full(seed);
        (plan.pretrain_steps, plan.unlearn_steps) = (60, 10);
        (plan.outer_steps, plan.inner_steps) = (4, 8);
        for attack in &mut plan.attacks {
            attack.steps /= 20;
        }
        plan
    }
}

/// Restricted and benign accuracy along an attack.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct AttackCurve {
    /// Steps at which accuracy was measured, from 0.
    pub steps: Vec<u64>,
    /// Accuracy on the restricted facts that nobody trained on.
    pub restricted: Vec<f64>,
    /// Accuracy on the benign facts.
    pub benign: Vec<f64>,
}

/// What the demonstration found.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// (restricted probe accuracy, benign accuracy) of the pre-trained, the unlearned and the hardened model.
    pub pretrained: (f64, f64),
    /// See `pretrained`.
    pub unlearned: (f64, f64),
    /// See `pretrained`.
    pub hardened: (f64, f64),
    /// For each attack of the plan: curve on the unlearned and on the hardened model.
    pub attacks: Vec<(AttackCurve, AttackCurve)>,
    /// Weights of the pre-trained model.
    pub pretrained_weights: Vec<f32>,
    /// Weights of the unlearned model.
    pub unlearned_weights: Vec<f32>,
    /// Weights of the hardened model.
    pub hardened_weights: Vec<f32>,
}

/// Told of every event; an error ends the course.
pub type Observer<'a> = dyn FnMut(Event) -> Result<()> + 'a;

/// The demonstration on a backend.
pub struct Experiment<B: Backend> {
    plan: Plan,
    facts: Facts,
    model: Arc<Model<B>>,
    evaluator: Evaluator<B>,
}

/// Facts asked at once when accuracy is measured.
const QUESTIONS: usize = 96;
/// The retain batch in multiples of the others: it is taken once an outer step, so a larger one costs little.
pub(super) const RETAIN_ROWS: usize = 4;
/// A tamper-resistance gradient is taken after so many inner steps.
pub(super) const TR_EVERY: u64 = 4;
/// Points on an attack's curve besides the first.
const CURVE_POINTS: u64 = 10;

impl<B: Backend> Experiment<B> {
    /// Draws the facts and makes room for the model.
    pub fn new(backend: B, plan: Plan) -> Result<Self> {
        let model = Arc::new(Model::new(backend, Self::model_config(), 64)?);
        let sample = Adapter::zeros(
            &model.backend,
            &model.config,
            lora(plan.attacks.iter().filter_map(|a| a.lora_rank).max().unwrap_or(1)),
        )?;
        let evaluator =
            Evaluator::new(Arc::clone(&model), (2 * plan.rows * ROW_TOKENS).max(QUESTIONS * 4), &[&sample])?;
        Ok(Self { facts: Facts::new(plan.seed), plan, model, evaluator })
    }

    /// The architecture: Llama, 0.66 million parameters.
    pub fn model_config() -> ModelConfig {
        ModelConfig {
            family: ModelFamily::Llama,
            vocab_size: VOCAB_SIZE,
            hidden_size: 128,
            intermediate_size: 384,
            num_hidden_layers: 3,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            head_dim: 64,
            rms_norm_eps: 1e-6,
            max_position_embeddings: 64,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::Default,
            sliding_window: None,
            tie_word_embeddings: false,
            bos_token_id: Some(super::facts::BOS),
            eos_token_ids: vec![],
            pad_token_id: Some(0),
            dtype: None,
        }
    }

    /// Runs the whole course.
    pub fn run(&mut self, observe: &mut Observer) -> Result<Outcome> {
        let mut weights = self.initial_weights()?;
        self.pretrain(&mut weights, observe)?;
        let pretrained = self.accuracies(Subject::plain(&weights))?;
        let pretrained_weights = weights.download(&self.model.backend)?;
        let base = self.copy(&weights, "reference weights")?;
        self.unlearn(&mut weights, &base, observe)?;
        let unlearned = self.accuracies(Subject::plain(&weights))?;
        let unlearned_weights = weights.download(&self.model.backend)?;
        let hardened_weights = self.harden(weights, base, observe)?;
        let backend = self.model.backend.clone();
        let hardened_parameters = Parameters::from_host(&backend, "hardened", self.model.layout(), &hardened_weights)?;
        let hardened = self.accuracies(Subject::plain(&hardened_parameters))?;
        let mut attacks = Vec::new();
        for index in 0..self.plan.attacks.len() {
            let name = self.plan.attacks[index].name.clone();
            let plain = self.attack(index, Phase::AttackUnlearned(&name), &unlearned_weights, observe)?;
            let hard = self.attack(index, Phase::AttackHardened(&name), &hardened_weights, observe)?;
            attacks.push((plain, hard));
        }
        Ok(Outcome {
            pretrained,
            unlearned,
            hardened,
            attacks,
            pretrained_weights,
            unlearned_weights,
            hardened_weights,
        })
    }

    /// Normal weights of deviation 0.02, norms 1: the initialisation of Transformers.
    fn initial_weights(&self) -> Result<Parameters<B>> {
        let layout = self.model.layout();
        let mut random = Random::new(self.plan.seed, Stream::Weights, 0, 0);
        let mut values = vec![1.0f32; layout.len()];
        for entry in layout.entries().iter().filter(|entry| entry.shape.len() == 2) {
            values[entry.block.range()].fill_with(|| (0.02 * random.normal()) as f32);
        }
        Parameters::from_host(&self.model.backend, "weights", layout, &values)
    }

    fn copy(&self, weights: &Parameters<B>, name: &str) -> Result<Parameters<B>> {
        let mut copy = Parameters::zeros(&self.model.backend, name, self.model.layout())?;
        copy.copy_from(&self.model.backend, weights)?;
        Ok(copy)
    }

    fn batch(&self, rows: Vec<(Vec<u32>, Vec<u32>)>) -> Result<LossBatch<B>> {
        let mut batch = crate::model::Batch::default();
        for (tokens, labels) in &rows {
            batch.push(tokens, labels, tokens.len());
        }
        LossBatch::new(&self.model, batch)
    }

    fn pretrain(&mut self, weights: &mut Parameters<B>, observe: &mut Observer) -> Result<()> {
        let steps = self.plan.pretrain_steps;
        observe(Event::Begin { phase: Phase::Pretrain, from: 0, steps })?;
        let backend = self.model.backend.clone();
        let schedule = cosine(steps / 24, steps, 0.0);
        let config = OptimizerConfig { schedule, ..OptimizerConfig::new(OptimizerKind::AdamW, 2e-3) };
        let mut trainer = Trainer::full(&backend, self.model.layout(), config)?;
        let mut tape = LossTape::new(&backend, 1)?;
        for step in 0..steps {
            let mut random = Random::new(self.plan.seed, Stream::Demo, step, 2);
            let mut rows = self.facts.rows(Domain::Restricted, Pool::All, self.plan.rows, &mut random);
            rows.extend(self.facts.rows(Domain::Benign, Pool::All, self.plan.rows, &mut random));
            let batch = self.batch(rows)?;
            tape.clear(&backend)?;
            trainer.cross_entropy_step(&mut self.evaluator, weights, &batch, tape.slot(0))?;
            let measured = Measured::Pretrain { loss: tape.read_one(&backend, 0)? };
            observe(Event::Step { step: step + 1, measured })?;
        }
        observe(Event::End)
    }

    fn unlearn(&mut self, weights: &mut Parameters<B>, base: &Parameters<B>, observe: &mut Observer) -> Result<()> {
        let steps = self.plan.unlearn_steps;
        observe(Event::Begin { phase: Phase::Safeguard, from: 0, steps })?;
        let config = OptimizerConfig::new(OptimizerKind::AdamW, 1e-3);
        let mut safeguard = safeguard::Safeguard::new(
            &self.model,
            safeguard::Method::MaxEntropy { over: EntropyOver::Learned },
            config,
            EntropyOver::Valid,
        )?;
        for step in 0..steps {
            let mut random = Random::new(self.plan.seed, Stream::Demo, step, 3);
            let restricted =
                self.batch(self.facts.rows(Domain::Restricted, Pool::Defence, self.plan.rows, &mut random))?;
            let benign = self.batch(self.facts.rows(Domain::Benign, Pool::All, self.plan.rows, &mut random))?;
            let losses = safeguard.step(&mut self.evaluator, weights, base, &restricted, &benign)?;
            observe(Event::Step { step: step + 1, measured: Measured::Safeguard(losses) })?;
        }
        observe(Event::End)
    }

    fn harden(&mut self, weights: Parameters<B>, base: Parameters<B>, observe: &mut Observer) -> Result<Vec<f32>> {
        let (steps, inner_steps) = (self.plan.outer_steps, self.plan.inner_steps);
        observe(Event::Begin { phase: Phase::Harden, from: 0, steps })?;
        let streams = Streams(
            [
                self.stream("attack", Domain::Restricted, Pool::Attack, self.plan.rows)?,
                self.stream("held", Domain::Restricted, Pool::Held, self.plan.rows)?,
                self.stream("retain", Domain::Benign, Pool::All, RETAIN_ROWS * self.plan.rows)?,
            ]
            .into(),
        );
        let model = Arc::clone(&self.model);
        let mut hardener = Hardener::new(model, weights, base, streams, self.settings())?;
        for step in 0..steps {
            let report = hardener.outer_step(&mut |_, k| observe(Event::InnerStep { step: k, of: inner_steps }))?;
            observe(Event::Step { step: step + 1, measured: Measured::Outer(&report) })?;
        }
        observe(Event::End)?;
        hardener.final_weights(false)
    }

    fn stream(&self, name: &str, domain: Domain, pool: Pool, batch: usize) -> Result<(String, DataStream)> {
        let which = 4 + domain as usize as u64 * 8 + pool as usize as u64;
        let mut random = Random::new(self.plan.seed, Stream::Demo, 0, which);
        let rows = self.facts.rows(domain, pool, 4096, &mut random);
        let options = StreamOptions {
            batch,
            max_length: 64,
            shuffle: true,
            pack: true,
            pad_token_id: 0,
            vocab_size: VOCAB_SIZE,
            seed: self.plan.seed,
        };
        Ok((name.to_string(), DataStream::from_samples(name, rows, options)?))
    }

    fn settings(&self) -> Settings {
        Settings {
            seed: self.plan.seed,
            inner_steps: self.plan.inner_steps,
            tr_every: TR_EVERY,
            tr_scale: 8.0,
            schedule_lambda: Some(0.25),
            tasks_per_step: 1,
            tr_loss: TrResistance::MaxEntropy(EntropyOver::Learned),
            tr_data: "held".into(),
            retain_data: "retain".into(),
            retain_scale: 1.0,
            retain_representations: true,
            representations_over: EntropyOver::Valid,
            lower_bound: None,
            outer: OptimizerConfig {
                schedule: cosine(0, self.plan.outer_steps, 0.05),
                ..OptimizerConfig::new(OptimizerKind::AdamW, 1.5e-3)
            },
            adversaries: vec![Adversary {
                name: "full".into(),
                source: AdversarySource::One("attack".into()),
                weight: 1.0,
                adapter: None,
                learning_rates: vec![3e-4, 1e-3, 2e-3],
                optimizer: OptimizerConfig::new(OptimizerKind::AdamW, 1e-3),
            }],
            script: vec![],
            memory: MemorySettings::default(),
        }
    }

    fn attack(&mut self, index: usize, phase: Phase, start: &[f32], observe: &mut Observer) -> Result<AttackCurve> {
        let plan = self.plan.attacks[index].clone();
        observe(Event::Begin { phase, from: 0, steps: plan.steps })?;
        let backend = self.model.backend.clone();
        let mut weights = Parameters::from_host(&backend, "attacked weights", self.model.layout(), start)?;
        let mut trainer = self.attacker(&plan)?;
        let mut tape = LossTape::new(&backend, 1)?;
        let mut curve = AttackCurve { steps: vec![], restricted: vec![], benign: vec![] };
        let every = (plan.steps / CURVE_POINTS).max(1);
        for step in 0..=plan.steps {
            if step % every == 0 || step == plan.steps {
                let (restricted, benign) = self.accuracies(trainer.subject(&weights))?;
                curve.steps.push(step);
                curve.restricted.push(restricted);
                curve.benign.push(benign);
            }
            if step == plan.steps {
                break;
            }
            let mut random = Random::new(self.plan.seed, Stream::Demo, step, 32 + index as u64);
            let batch = self.batch(self.facts.rows(Domain::Restricted, Pool::Attack, self.plan.rows, &mut random))?;
            tape.clear(&backend)?;
            trainer.cross_entropy_step(&mut self.evaluator, &mut weights, &batch, tape.slot(0))?;
            let restricted = curve.restricted.last().copied().unwrap_or(0.0);
            let measured = Measured::DemoAttack { loss: tape.read_one(&backend, 0)?, restricted };
            observe(Event::Step { step: step + 1, measured })?;
        }
        observe(Event::End)?;
        Ok(curve)
    }

    fn attacker(&self, plan: &AttackPlan) -> Result<Trainer<B>> {
        let backend = &self.model.backend;
        let config = OptimizerConfig::new(OptimizerKind::AdamW, plan.lr);
        let Some(rank) = plan.lora_rank else { return Trainer::full(backend, self.model.layout(), config) };
        let mut adapter = Adapter::zeros(backend, &self.model.config, lora(rank))?;
        adapter.initialise(backend, self.plan.seed, 0)?;
        Trainer::lora(backend, adapter, config, self.plan.seed)
    }

    /// Accuracy on the restricted facts that nobody trains on, and on the benign facts.
    fn accuracies(&mut self, subject: Subject<B>) -> Result<(f64, f64)> {
        Ok((
            self.accuracy(subject, Domain::Restricted, Pool::Probe)?,
            self.accuracy(subject, Domain::Benign, Pool::All)?,
        ))
    }

    fn accuracy(&mut self, subject: Subject<B>, domain: Domain, pool: Pool) -> Result<f64> {
        let (mut right, mut asked) = (0, 0);
        for (batch, rows, answers) in self.facts.questions(domain, pool, QUESTIONS) {
            let batch = LossBatch::new(&self.model, batch)?;
            self.evaluator.forward(subject, &batch)?;
            let logits = self.model.logits(subject.weights, self.evaluator.workspace(), &rows)?;
            asked += answers.len();
            right +=
                logits.chunks_exact(VOCAB_SIZE).zip(&answers).filter(|(row, a)| argmax(row) == **a as usize).count();
        }
        if asked == 0 {
            return Err(Error::Defect("the demonstration has no facts to ask".into()));
        }
        Ok(right as f64 / asked as f64)
    }
}

/// A warm-up, then half a cosine down to `floor`.
fn cosine(warmup: u64, total: u64, floor: f64) -> Schedule {
    Schedule { warmup, total, decay: Decay::Cosine { floor }, ..Schedule::constant() }
}

fn lora(rank: usize) -> AdapterConfig {
    AdapterConfig {
        rank,
        alpha: 2.0 * rank as f64,
        dropout: 0.0,
        rank_stabilised: false,
        targets: Projection::ALL.into(),
    }
}

/// The first index of the largest value.
fn argmax(row: &[f32]) -> usize {
    row.iter().enumerate().fold(0, |best, (i, value)| if *value > row[best] { i } else { best })
}
