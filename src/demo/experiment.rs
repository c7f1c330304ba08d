//! The demonstration's course: pre-train, remove, harden, attack. The numbers it reports are measured as it runs.

use std::sync::Arc;

use super::facts::{Domain, Facts, Pool, ROW_TOKENS, VOCAB_SIZE};
use super::hardening;
use crate::error::{Error, Result};
use crate::events::{Event, Measured, Phase};
use crate::model::{
    Adapter, AdapterConfig, Batch, Model, ModelConfig, ModelFamily, ModelLayout, Parameters, RopeScaling,
};
use crate::objective::{EntropyOver, Evaluator, LossBatch, Subject};
use crate::ops::Backend;
use crate::optimizer::{Decay, OptimizerConfig, OptimizerKind, Schedule};
use crate::random::{Random, Stream};
use crate::safeguard;
use crate::tar::Hardener;
use crate::training::{FineTune, FineTuneRun, GuardedTrainer, Source, StreamDraws, Work};

/// How much of everything.
#[derive(Clone, Debug, PartialEq)]
pub struct Course {
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
    /// A tamper-resistance gradient is taken after so many inner steps.
    pub tr_every: u64,
    /// Rows of a batch, but for those of the hardening, which its run file says.
    pub rows: usize,
    /// The attacks on the finished models.
    pub attacks: Vec<DemoAttack>,
}

/// One attack on a finished model.
#[derive(Clone, Debug, PartialEq)]
pub struct DemoAttack {
    /// Its name.
    pub name: String,
    /// What it does.
    pub fine_tune: FineTune<Domain>,
}

impl DemoAttack {
    fn new(name: &str, lr: f64, steps: u64, adapter: Option<AdapterConfig>) -> Self {
        let plain =
            FineTune::new(Source::One(Domain::Restricted), OptimizerConfig::new(OptimizerKind::AdamW, lr), steps);
        Self { name: name.into(), fine_tune: FineTune { adapter, ..plain } }
    }
}

impl Course {
    /// The full demonstration.
    pub fn full(seed: u64) -> Self {
        Self {
            seed,
            pretrain_steps: 1200,
            unlearn_steps: 200,
            outer_steps: 400,
            inner_steps: 80,
            tr_every: 20,
            rows: 16,
            attacks: vec![
                DemoAttack::new("full AdamW 1e-3", 1e-3, 200, None),
                DemoAttack::new("full AdamW 3e-4", 3e-4, 200, None),
                DemoAttack::new("full AdamW 1e-3, long", 1e-3, 600, None),
                DemoAttack::new("LoRA r8 AdamW 3e-3", 3e-3, 200, Some(AdapterConfig::new(8))),
            ],
        }
    }

    /// The same course in a few seconds: it shows that every part runs, not what the method can do.
    pub fn quick(seed: u64) -> Self {
        let full = Self::full(seed);
        let mut attacks = full.attacks;
        for attack in &mut attacks {
            attack.fine_tune.steps /= 20;
        }
        let shorter = Self { pretrain_steps: 60, unlearn_steps: 10, outer_steps: 4, attacks, ..full };
        Self { inner_steps: 8, tr_every: 4, ..shorter }
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
    /// For each attack of the course: curve on the unlearned and on the hardened model.
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
    course: Course,
    facts: Facts,
    model: Arc<Model<B>>,
    evaluator: Evaluator<B>,
}

/// Facts asked at once when accuracy is measured.
const QUESTIONS: usize = 96;
/// What to do about a step whose numbers are not finite: nothing here is the user's.
const DIVERGED: &str = "report this as a defect";
/// Points on an attack's curve besides the first.
const CURVE_POINTS: u64 = 10;

impl<B: Backend> Experiment<B> {
    /// Draws the facts and makes room for the model.
    ///
    /// # Errors
    /// For a course whose numbers no run file of its hardening can have.
    pub fn new(backend: B, course: Course) -> Result<Self> {
        hardening::run_config(&course)?;
        let model = Arc::new(Model::new(backend, Self::model_config(), 64)?);
        let ranks = course.attacks.iter().filter_map(|attack| attack.fine_tune.adapter.as_ref()).map(|a| a.rank);
        let largest = AdapterConfig::new(ranks.max().unwrap_or(1));
        let sample = Adapter::zeros(&model.backend, &model.config, largest)?;
        let evaluator =
            Evaluator::new(Arc::clone(&model), (2 * course.rows * ROW_TOKENS).max(QUESTIONS * 4), &[&sample])?;
        Ok(Self { facts: Facts::new(course.seed), course, model, evaluator })
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
        for index in 0..self.course.attacks.len() {
            let name = self.course.attacks[index].name.clone();
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

    fn initial_weights(&self) -> Result<Parameters<B>> {
        let layout = self.model.layout();
        let values = random_weights(layout, self.course.seed);
        Parameters::from_host(&self.model.backend, "weights", layout, &values)
    }

    fn copy(&self, weights: &Parameters<B>, name: &str) -> Result<Parameters<B>> {
        let mut copy = Parameters::zeros(&self.model.backend, name, self.model.layout())?;
        copy.copy_from(&self.model.backend, weights)?;
        Ok(copy)
    }

    fn batch(&self, rows: Vec<(Vec<u32>, Vec<u32>)>) -> Result<LossBatch<B>> {
        LossBatch::new(&self.model, packed(&rows))
    }

    fn pretrain(&mut self, weights: &mut Parameters<B>, observe: &mut Observer) -> Result<()> {
        let steps = self.course.pretrain_steps;
        observe(Event::Begin { phase: Phase::Pretrain, from: 0, steps })?;
        let backend = self.model.backend.clone();
        let schedule = cosine(steps / 24, steps, 0.0);
        let optimizer = OptimizerConfig { schedule, ..OptimizerConfig::new(OptimizerKind::AdamW, 2e-3) };
        let both = [Domain::Restricted, Domain::Benign];
        let seed = self.course.seed;
        let training = FineTune::new(Source::One(both), optimizer, steps);
        let mut learner = GuardedTrainer::new(&backend, training.trainer(&self.model, seed)?, DIVERGED)?;
        let mut room = LossBatch::with_room(&self.model, self.evaluator.capacity())?;
        let mut run = FineTuneRun::new(training, StreamDraws::OfStep { seed });
        while !run.is_over() {
            let work = Work { evaluator: &mut self.evaluator, weights, batch: &mut room };
            let report = run.step(&mut learner, work, |step, model, batch| {
                let mut random = Random::new(seed, Stream::Demo, step.index, 2);
                let drawn = both.map(|domain| self.facts.rows(domain, Pool::All, self.course.rows, &mut random));
                batch.refill(model, packed(&drawn.concat()))
            })?;
            observe(Event::Step { step: run.steps_done(), measured: Measured::Pretrain { loss: report.loss } })?;
        }
        observe(Event::End)
    }

    fn unlearn(&mut self, weights: &mut Parameters<B>, base: &Parameters<B>, observe: &mut Observer) -> Result<()> {
        let steps = self.course.unlearn_steps;
        observe(Event::Begin { phase: Phase::Safeguard, from: 0, steps })?;
        let config = OptimizerConfig::new(OptimizerKind::AdamW, 1e-3);
        let mut safeguard = safeguard::Safeguard::new(
            &self.model,
            safeguard::RemovalLoss::MaxEntropy { over: EntropyOver::Learned },
            config,
            EntropyOver::Valid,
        )?;
        for step in 0..steps {
            let mut random = Random::new(self.course.seed, Stream::Demo, step, 3);
            let restricted =
                self.batch(self.facts.rows(Domain::Restricted, Pool::Defence, self.course.rows, &mut random))?;
            let benign = self.batch(self.facts.rows(Domain::Benign, Pool::All, self.course.rows, &mut random))?;
            let losses = safeguard.step(&mut self.evaluator, weights, base, &restricted, &benign)?;
            observe(Event::Step { step: step + 1, measured: Measured::Safeguard(losses) })?;
        }
        observe(Event::End)
    }

    fn harden(&mut self, weights: Parameters<B>, base: Parameters<B>, observe: &mut Observer) -> Result<Vec<f32>> {
        let steps = self.course.outer_steps;
        observe(Event::Begin { phase: Phase::Harden, from: 0, steps })?;
        let (settings, streams) = hardening::method(&self.course, &self.facts)?;
        let model = Arc::clone(&self.model);
        let mut hardener = Hardener::new(model, weights, base, streams, settings)?;
        for step in 0..steps {
            let report =
                hardener.outer_step(&mut |inner| observe(Event::InnerStep { step: inner.step, of: inner.of }))?;
            observe(Event::Step { step: step + 1, measured: Measured::Outer(&report) })?;
        }
        observe(Event::End)?;
        hardener.final_weights(false)
    }

    fn attack(&mut self, index: usize, phase: Phase, start: &[f32], observe: &mut Observer) -> Result<AttackCurve> {
        let DemoAttack { fine_tune, .. } = self.course.attacks[index].clone();
        let steps = fine_tune.steps;
        observe(Event::Begin { phase, from: 0, steps })?;
        let backend = self.model.backend.clone();
        let seed = self.course.seed;
        let mut weights = Parameters::from_host(&backend, "attacked weights", self.model.layout(), start)?;
        let mut learner = GuardedTrainer::new(&backend, fine_tune.trainer(&self.model, seed)?, DIVERGED)?;
        let mut room = LossBatch::with_room(&self.model, self.evaluator.capacity())?;
        let mut run = FineTuneRun::new(fine_tune, StreamDraws::OfStep { seed });
        let mut curve = AttackCurve { steps: vec![], restricted: vec![], benign: vec![] };
        let every = (steps / CURVE_POINTS).max(1);
        loop {
            let done = run.steps_done();
            if done.is_multiple_of(every) || run.is_over() {
                let (restricted, benign) = self.accuracies(learner.trainer().subject(&weights))?;
                curve.steps.push(done);
                curve.restricted.push(restricted);
                curve.benign.push(benign);
            }
            if run.is_over() {
                break;
            }
            let work = Work { evaluator: &mut self.evaluator, weights: &mut weights, batch: &mut room };
            let report = run.step(&mut learner, work, |step, model, batch| {
                let mut random = Random::new(seed, Stream::Demo, step.index, 32 + index as u64);
                let rows = self.facts.rows(Domain::Restricted, Pool::Attack, self.course.rows, &mut random);
                batch.refill(model, packed(&rows))
            })?;
            let restricted = curve.restricted.last().copied().unwrap_or(0.0);
            let measured = Measured::DemoAttack { loss: report.loss, restricted };
            observe(Event::Step { step: run.steps_done(), measured })?;
        }
        observe(Event::End)?;
        Ok(curve)
    }

    /// Accuracy on the restricted facts that nobody trains on, and on the benign facts.
    fn accuracies(&mut self, subject: Subject<B>) -> Result<(f64, f64)> {
        Ok((
            self.accuracy(subject, Domain::Restricted, Pool::Probe)?,
            self.accuracy(subject, Domain::Benign, Pool::All)?,
        ))
    }

    fn accuracy(&mut self, subject: Subject<B>, domain: Domain, pool: Pool) -> Result<f64> {
        let mut right = 0;
        let mut asked = 0;
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

/// Normal weights of deviation 0.02, norms 1: the initialisation of Transformers.
pub(super) fn random_weights(layout: &ModelLayout, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed, Stream::Weights, 0, 0);
    let mut values = vec![1.0f32; layout.len()];
    for entry in layout.entries().iter().filter(|entry| entry.shape.len() == 2) {
        values[entry.block.range()].fill_with(|| (0.02 * random.normal()) as f32);
    }
    values
}

/// A warm-up, then half a cosine down to `floor`.
fn cosine(warmup: u64, total: u64, floor: f64) -> Schedule {
    Schedule { warmup, total, decay: Decay::Cosine { floor }, ..Schedule::constant() }
}

/// Rows as one packed batch.
fn packed(rows: &[(Vec<u32>, Vec<u32>)]) -> Batch {
    let mut batch = Batch::default();
    for (tokens, labels) in rows {
        batch.push(tokens, labels, tokens.len());
    }
    batch
}

/// The first index of the largest value.
fn argmax(row: &[f32]) -> usize {
    row.iter().enumerate().fold(0, |best, (i, value)| if *value > row[best] { i } else { best })
}
