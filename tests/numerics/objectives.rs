//! Every objective's gradient against finite differences of its loss, and packed against padded batches.

use std::sync::Arc;

use proptest::prelude::*;
use temper::backend::cpu::Cpu;
use temper::model::{
    Adapter, AdapterConfig, Batch, GradientDestinations, Gradients, Model, ModelConfig, ModelFamily, Parameters,
    Projection,
};
use temper::objective::{
    Directions, EntropyOver, Evaluator, HiddenKind, HiddenTerm, LossBatch, LossPass, LossTape, PreferencePairs,
    Representations, Subject, TermLoss,
};
use temper::ops::{Dropout, IGNORE_INDEX, Tensor};
use temper::random::{Random, Stream};

use crate::support::models::tiny;
use crate::support::numbers::{normals, relative};

/// What the other models of these tests lack: heads that do not fill the hidden state, a window, tied embeddings.
fn config(family: ModelFamily) -> ModelConfig {
    ModelConfig { family, head_dim: 10, sliding_window: Some(5), tie_word_embeddings: true, ..tiny() }
}

struct Bench {
    model: Arc<Model<Cpu>>,
    evaluator: Evaluator<Cpu>,
    weights: Vec<f32>,
    reference: Parameters<Cpu>,
    /// A model whose states lie near the other's: their cosines are far from the kink at 0.
    near: Parameters<Cpu>,
    adapter: Adapter<Cpu>,
    table: Tensor<Cpu>,
    tape: LossTape<Cpu>,
}

impl Bench {
    fn new(family: ModelFamily) -> Self {
        let model = Arc::new(Model::new(Cpu, config(family), 64).unwrap());
        let count = model.layout().len();
        let targets = [Projection::QProj, Projection::VProj, Projection::UpProj, Projection::DownProj].into();
        let config = AdapterConfig { rank: 3, alpha: 5.0, dropout: 0.25, rank_stabilised: true, targets };
        let mut adapter = Adapter::zeros(&Cpu, &model.config, config).unwrap();
        let factors = normals(4, adapter.parameters.layout().len(), 0.2);
        adapter.parameters.upload(&Cpu, &factors).unwrap();
        let mut weights = normals(1, count, 0.25);
        // Norms of heads near 1: with small ones attention is nearly uniform, and its gradients drown in rounding.
        for entry in model.layout().entries().iter().filter(|e| e.name.contains("q_norm") || e.name.contains("k_norm"))
        {
            weights[entry.block.range()].iter_mut().for_each(|w| *w += 1.0);
        }
        let moved: Vec<f32> =
            weights.iter().zip(normals(6, count, 0.05)).map(|(weight, noise)| weight + noise).collect();
        Self {
            near: Parameters::from_host(&Cpu, "near", model.layout(), &moved).unwrap(),
            evaluator: Evaluator::new(Arc::clone(&model), 64, &[&adapter]).unwrap(),
            weights,
            reference: Parameters::from_host(&Cpu, "reference", model.layout(), &normals(2, count, 0.25)).unwrap(),
            table: Tensor::from_f32(&Cpu, "table", 37, 24, &normals(5, 37 * 24, 1.0)).unwrap(),
            tape: LossTape::new(&Cpu, 2).unwrap(),
            adapter,
            model,
        }
    }

    /// The loss (and gradient) of an objective at `weights`.
    fn loss(&mut self, objective: &Objective, weights: &[f32], gradients: Option<&mut Gradients<Cpu>>) -> f64 {
        let parameters = Parameters::from_host(&Cpu, "weights", self.model.layout(), weights).unwrap();
        self.tape.clear(&Cpu).unwrap();
        let mut unused = Gradients::zeros(&Cpu, "unused", self.model.layout()).unwrap();
        let evaluator = &mut self.evaluator;
        let batch = LossBatch::new(&self.model, objective.batch()).unwrap();
        let pass = LossPass {
            subject: Subject::plain(&parameters),
            batch: &batch,
            scale: SCALE,
            destinations: Some(GradientDestinations::of_weights(gradients.unwrap_or(&mut unused))),
            loss: self.tape.slot(0),
        };
        match objective {
            Objective::CrossEntropy => evaluator.cross_entropy(pass),
            Objective::Entropy(over) => evaluator.negative_entropy(pass, *over),
            Objective::Retain(over) => {
                let reference = evaluator.hidden_states(&self.reference, &batch).unwrap();
                evaluator.retain(pass, Representations { reference: &reference, over: *over })
            }
            Objective::RandomMapping(over) => {
                evaluator.random_mapping(pass, Directions { table: &self.table, over: *over })
            }
            Objective::HiddenStates(kind, depths) => {
                let term = HiddenTerm { kind: *kind, depths: depths.to_vec(), over: EntropyOver::Valid };
                let states = evaluator.reference_states(&term, &self.near, &batch).unwrap();
                evaluator.chosen_states(pass, &term, term.needs_reference().then_some(&states))
            }
            Objective::Preference => {
                evaluator.preference(pass, PreferencePairs { reference_margins: &[0.4, -0.3], beta: 0.5 })
            }
            Objective::Term(loss) => {
                let prepared = loss.prepare(evaluator, &self.reference, &batch).unwrap();
                let outcome = loss.evaluate(evaluator, pass, &prepared);
                prepared.give_back(evaluator);
                outcome
            }
        }
        .unwrap();
        self.tape.read(&Cpu).unwrap().iter().sum()
    }
}

/// A scale that is not 1, so that a forgotten one shows.
const SCALE: f32 = 1.5;

#[derive(Debug)]
enum Objective {
    CrossEntropy,
    Entropy(EntropyOver),
    Retain(EntropyOver),
    RandomMapping(EntropyOver),
    HiddenStates(HiddenKind, &'static [usize]),
    Preference,
    /// Against the reference model of the bench.
    Term(TermLoss),
}

impl Objective {
    /// Whether the loss depends on a tensor: a loss on hidden states does not on what is behind the last of them.
    fn reaches(&self, tensor: &str) -> bool {
        let Objective::HiddenStates(_, depths) = self else { return true };
        let Some(&last) = depths.iter().max() else { return true };
        let layer = tensor.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next()?.parse().ok());
        match layer {
            Some(layer) => last > layer,
            None if tensor == "model.norm.weight" => last == tiny().num_hidden_layers,
            None => tensor == "model.embed_tokens.weight",
        }
    }

    /// How much the loss is to change where its slope is measured. |cos| has a kink at 0, which a short step is less likely to
    /// meet.
    fn change(&self) -> f64 {
        match self {
            Objective::RandomMapping(_) => 1e-4,
            _ => 1e-3,
        }
    }

    /// Four sequences: with padding, with a prompt that is not learned, of one token.
    fn batch(&self) -> Batch {
        let mut random = Random::new(9, Stream::Data, 0, 0);
        let mut batch = Batch::default();
        for (length, valid) in [(9, 9), (7, 4), (12, 12), (3, 2)] {
            let tokens: Vec<u32> = (0..length).map(|_| random.below(37) as u32).collect();
            let mut labels = tokens.clone();
            labels[valid..].fill(IGNORE_INDEX);
            labels[0] = IGNORE_INDEX;
            if length == 12 {
                labels[..6].fill(IGNORE_INDEX);
            }
            batch.push(&tokens, &labels, valid);
        }
        batch
    }
}

fn negative_preference(length_normalised: bool) -> Objective {
    Objective::Term(TermLoss::NegativePreference { beta: 0.1, length_normalised })
}

/// d loss / d step along `direction`, whose slope is about `norm`, by the five-point stencil, whose error is of fourth order.
/// `change` is how much the loss is to change: thousands of times its rounding.
fn slope(mut loss: impl FnMut(&[f32]) -> f64, at: &[f32], direction: &[f32], norm: f64, change: f64) -> f64 {
    let step = (change / norm).min(0.25);
    let mut moved = |times: f64| {
        let there: Vec<f32> =
            at.iter().zip(direction).map(|(w, d)| (f64::from(*w) + times * step * f64::from(*d)) as f32).collect();
        loss(&there)
    };
    (8.0 * (moved(1.0) - moved(-1.0)) - (moved(2.0) - moved(-2.0))) / (12.0 * step)
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
}

#[test]
fn gradients_of_every_objective_are_the_slopes_of_its_loss() {
    for (family, objective) in [
        (ModelFamily::Mistral, Objective::CrossEntropy),
        (ModelFamily::Mistral, Objective::Entropy(EntropyOver::Valid)),
        (ModelFamily::Mistral, Objective::Entropy(EntropyOver::All)),
        (ModelFamily::Mistral, Objective::Entropy(EntropyOver::Learned)),
        (ModelFamily::Mistral, Objective::Retain(EntropyOver::Valid)),
        (ModelFamily::Mistral, Objective::RandomMapping(EntropyOver::All)),
        (ModelFamily::Mistral, Objective::HiddenStates(HiddenKind::Distance, &[1, 0])),
        (ModelFamily::Mistral, Objective::HiddenStates(HiddenKind::SquaredDistance, &[1])),
        (ModelFamily::Mistral, Objective::HiddenStates(HiddenKind::ControlVector { coefficient: 2.0, seed: 7 }, &[2])),
        (ModelFamily::Mistral, Objective::HiddenStates(HiddenKind::Cosine, &[])),
        (ModelFamily::Mistral, Objective::HiddenStates(HiddenKind::Triplet { margin: 0.5 }, &[1, 2])),
        (ModelFamily::Mistral, Objective::Preference),
        (ModelFamily::Mistral, negative_preference(false)),
        (ModelFamily::Mistral, negative_preference(true)),
        (ModelFamily::Mistral, Objective::Term(TermLoss::SimpleNegativePreference { beta: 0.5, gamma: 0.4 })),
        (ModelFamily::Mistral, Objective::Term(TermLoss::Collapse { token: 5, over: EntropyOver::Valid })),
        (ModelFamily::Mistral, Objective::Term(TermLoss::TeacherDivergence { over: EntropyOver::Learned })),
        (ModelFamily::Qwen2, Objective::CrossEntropy),
        (ModelFamily::Qwen3, Objective::CrossEntropy),
    ] {
        let mut bench = Bench::new(family);
        let layout = bench.model.layout().clone();
        let at = bench.weights.clone();
        let mut gradients = Gradients::zeros(&Cpu, "gradient", bench.model.layout()).unwrap();
        bench.loss(&objective, &at, Some(&mut gradients));
        let gradient: Vec<f32> = gradients.download(&Cpu).unwrap().iter().map(|g| g / SCALE).collect();
        for entry in layout.entries() {
            let place = entry.block.range();
            let part = &gradient[place.clone()];
            let norm = dot(part, part).sqrt();
            assert_eq!(norm > 0.0, objective.reaches(&entry.name), "{family:?}, {objective:?}, {}", entry.name);
            if norm == 0.0 {
                continue;
            }
            // Along the tensor's own gradient, so that its size is right, with a random part, so that its direction is.
            let noise = normals(entry.block.offset as u64, part.len(), norm / (part.len() as f64).sqrt());
            let mut direction = vec![0.0; at.len()];
            for (d, (g, n)) in direction[place.clone()].iter_mut().zip(part.iter().zip(&noise)) {
                *d = ((f64::from(*g) + 0.5 * f64::from(*n)) / norm) as f32;
            }
            let expected = dot(part, &direction[place]);
            let found = slope(|w| bench.loss(&objective, w, None), &at, &direction, norm, objective.change());
            let error = (found - expected).abs() / norm;
            assert!(
                error < 2e-3,
                "{family:?}, {objective:?}, {}: slope {found:.6}, gradient {expected:.6}",
                entry.name
            );
        }
    }
}

#[test]
fn gradients_of_lora_factors_with_dropout_are_the_slopes_of_the_loss() {
    let mut bench = Bench::new(ModelFamily::Qwen3);
    let dropout = Some(Dropout { probability: 0.25, seed: 11, site: 0, step: 3 });
    let weights = Parameters::from_host(&Cpu, "weights", bench.model.layout(), &bench.weights).unwrap();
    let batch = LossBatch::new(&bench.model, Objective::CrossEntropy.batch()).unwrap();
    let start = bench.adapter.parameters.download(&Cpu).unwrap();
    let layout = bench.adapter.parameters.layout_handle();
    let mut loss = |factors: &[f32], gradients: Option<&mut Gradients<Cpu>>| {
        bench.adapter.parameters.upload(&Cpu, factors).unwrap();
        bench.tape.clear(&Cpu).unwrap();
        let subject = Subject { weights: &weights, adapter: Some(&bench.adapter), dropout };
        let destinations = gradients.map(GradientDestinations::of_adapter);
        let pass = LossPass { subject, batch: &batch, scale: 1.0, destinations, loss: bench.tape.slot(0) };
        bench.evaluator.cross_entropy(pass).unwrap();
        bench.tape.read_one(&Cpu, 0).unwrap()
    };
    let mut gradients = Gradients::zeros(&Cpu, "gradient", Arc::clone(&layout)).unwrap();
    loss(&start, Some(&mut gradients));
    let gradient = gradients.download(&Cpu).unwrap();
    for entry in layout.entries() {
        let place = entry.block.range();
        let norm = dot(&gradient[place.clone()], &gradient[place.clone()]).sqrt();
        assert!(norm > 0.0, "{}", entry.name);
        let mut direction = vec![0.0; start.len()];
        let noise = normals(entry.block.offset as u64, entry.block.len(), norm / (entry.block.len() as f64).sqrt());
        for ((d, g), n) in direction[place.clone()].iter_mut().zip(&gradient[place.clone()]).zip(&noise) {
            *d = ((f64::from(*g) + 0.5 * f64::from(*n)) / norm) as f32;
        }
        let expected = dot(&gradient[place.clone()], &direction[place]);
        let found = slope(|factors| loss(factors, None), &start, &direction, norm, 1e-3);
        assert!((found - expected).abs() / norm < 2e-3, "{}: slope {found:.6}, gradient {expected:.6}", entry.name);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A padded batch and the same sequences packed have the same losses and gradients, whatever the padding holds.
    #[test]
    fn packing_changes_no_loss_and_no_gradient(
        lengths in proptest::collection::vec(2usize..14, 1..5), padding in 0u32..37, seed in 0u64..1000,
    ) {
        let mut bench = Bench::new(ModelFamily::Qwen2);
        let mut random = Random::new(seed, Stream::Data, 0, 0);
        let longest = *lengths.iter().max().unwrap();
        let mut packed = Batch::default();
        let mut padded = Batch::default();
        for &length in &lengths {
            let mut tokens: Vec<u32> = (0..length).map(|_| random.below(37) as u32).collect();
            let mut labels = tokens.clone();
            packed.push(&tokens, &labels, length);
            tokens.resize(longest, padding);
            labels.resize(longest, IGNORE_INDEX);
            padded.push(&tokens, &labels, length);
        }
        let weights = Parameters::from_host(&Cpu, "weights", bench.model.layout(), &bench.weights).unwrap();
        let mut results = Vec::new();
        for batch in [packed, padded] {
            let batch = LossBatch::new(&bench.model, batch).unwrap();
            let mut gradients = Gradients::zeros(&Cpu, "gradient", bench.model.layout()).unwrap();
            bench.tape.clear(&Cpu).unwrap();
            let evaluator = &mut bench.evaluator;
            let tape = &mut bench.tape;
            let subject = Subject::plain(&weights);
            let destinations = Some(GradientDestinations::of_weights(&mut gradients));
            let pass = LossPass { subject, batch: &batch, scale: 1.0, destinations, loss: tape.slot(0) };
            evaluator.cross_entropy(pass).unwrap();
            let destinations = Some(GradientDestinations::of_weights(&mut gradients));
            let pass = LossPass { subject, batch: &batch, scale: 1.0, destinations, loss: tape.slot(1) };
            evaluator.negative_entropy(pass, EntropyOver::Valid).unwrap();
            results.push((tape.read(&Cpu).unwrap(), gradients.download(&Cpu).unwrap()));
        }
        let (packed_losses, packed_gradient) = &results[0];
        let (padded_losses, padded_gradient) = &results[1];
        for (a, b) in packed_losses.iter().zip(padded_losses) {
            prop_assert!((a / b - 1.0).abs() < 1e-6, "{a} {b}");
        }
        prop_assert!(relative(packed_gradient, padded_gradient) < 2e-6);
    }
}
