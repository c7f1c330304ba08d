//! What a run does to need less memory changes no bit of its results: recomputation of activations, optimizer steps
//! within the backward pass.

use std::sync::Arc;

use temper::backend::cpu::Cpu;
use temper::model::{
    Adapter, AdapterConfig, Batch, GradientDestinations, Gradients, Model, ModelConfig, ModelFamily, Parameters,
    Projection, Recompute,
};
use temper::objective::{
    Directions, EntropyOver, Evaluator, HiddenKind, HiddenTerm, LossBatch, LossPass, LossTape, Representations, Subject,
};
use temper::ops::{Backend, DType, Dropout, IGNORE_INDEX, Tensor};
use temper::optimizer::{OptimizerConfig, OptimizerKind};
use temper::random::{Random, Stream};
use temper::training::{AnyTrainer, MemorySettings, Moments};

use crate::support::models::tiny;
use crate::support::numbers::{bits, normals};

/// Three layers, so that one is neither the first nor the last.
fn config(family: ModelFamily, tied: bool) -> ModelConfig {
    ModelConfig { family, num_hidden_layers: 3, tie_word_embeddings: tied, ..tiny() }
}

fn parameters<B: Backend>(model: &Model<B>, seed: u64) -> Parameters<B> {
    let values = normals(seed, model.layout().len(), 0.25);
    Parameters::from_host(&model.backend, "weights", model.layout(), &values).unwrap()
}

fn batch(seed: u64, lengths: &[usize]) -> Batch {
    let mut random = Random::new(seed, Stream::Data, 0, 0);
    let mut batch = Batch::default();
    for &length in lengths {
        let tokens: Vec<u32> = (0..length).map(|_| random.below(37) as u32).collect();
        let mut labels = tokens.clone();
        labels[..length / 3].fill(IGNORE_INDEX);
        batch.push(&tokens, &labels, length);
    }
    batch
}

fn layers(kept: usize) -> Recompute {
    Recompute::Layers { kept }
}

/// Everything that a pass of each objective leaves: losses and gradients, by name.
fn passes<B: Backend>(
    backend: &B,
    family: ModelFamily,
    recompute: Recompute,
    capacity: usize,
) -> Vec<(&'static str, Vec<u32>)> {
    let model = Arc::new(Model::new(backend.clone(), config(family, true), 64).unwrap());
    let weights = parameters(&model, 1);
    let base = parameters(&model, 2);
    let targets = [Projection::QProj, Projection::OProj, Projection::UpProj, Projection::DownProj].into();
    let config = AdapterConfig { rank: 3, alpha: 5.0, dropout: 0.25, rank_stabilised: false, targets };
    let mut adapter = Adapter::zeros(backend, &model.config, config).unwrap();
    let factors = normals(4, adapter.parameters.layout().len(), 0.2);
    adapter.parameters.upload(backend, &factors).unwrap();
    let table = Tensor::from_f32(backend, "table", 37, 24, &normals(5, 37 * 24, 1.0)).unwrap();
    let mut evaluator = Evaluator::recomputing(Arc::clone(&model), capacity, &[&adapter], recompute).unwrap();
    let batch = LossBatch::new(&model, batch(9, &[5, 7, 3, 6])).unwrap();
    let mut results = Vec::new();
    let mut record = |name, tape: &LossTape<B>, gradients: &Gradients<B>| {
        let gradients = gradients.download(backend).unwrap();
        assert!(gradients.iter().filter(|g| **g != 0.0).count() > gradients.len() / 2, "{name} has gradients");
        let losses: Vec<f32> = tape.read(backend).unwrap().iter().map(|loss| *loss as f32).collect();
        results.push((name, bits(&[losses, gradients].concat())));
    };
    let fresh = || {
        let gradients = Gradients::zeros(backend, "gradient", model.layout()).unwrap();
        (LossTape::new(backend, 2).unwrap(), gradients)
    };
    let plain = Subject::plain(&weights);

    let (mut tape, mut gradients) = fresh();
    let destinations = Some(GradientDestinations::of_weights(&mut gradients));
    let pass = LossPass { subject: plain, batch: &batch, scale: 1.0, destinations, loss: tape.slot(0) };
    evaluator.cross_entropy(pass).unwrap();
    record("cross-entropy", &tape, &gradients);

    let (mut tape, mut gradients) = fresh();
    let mut factors = adapter.gradients(backend).unwrap();
    let dropout = Some(Dropout { probability: 0.25, seed: 11, site: 0, step: 3 });
    let adapted = Subject { weights: &weights, adapter: Some(&adapter), dropout };
    let destinations = Some(GradientDestinations { weights: Some(gradients.view_mut()), adapter: Some(&mut factors) });
    let pass = LossPass { subject: adapted, batch: &batch, scale: 1.0, destinations, loss: tape.slot(0) };
    evaluator.cross_entropy(pass).unwrap();
    record("merged weights", &tape, &gradients);
    record("factors", &tape, &factors);

    let (mut tape, mut gradients) = fresh();
    let reference = evaluator.hidden_states(&base, &batch).unwrap();
    let destinations = Some(GradientDestinations::of_weights(&mut gradients));
    let pass = LossPass { subject: plain, batch: &batch, scale: 1.5, destinations, loss: tape.slot(0) };
    evaluator.retain(pass, Representations { reference: &reference, over: EntropyOver::Valid }).unwrap();
    record("retain", &tape, &gradients);

    let (mut tape, mut gradients) = fresh();
    let destinations = Some(GradientDestinations::of_weights(&mut gradients));
    let pass = LossPass { subject: plain, batch: &batch, scale: 1.0, destinations, loss: tape.slot(0) };
    evaluator.random_mapping(pass, Directions { table: &table, over: EntropyOver::Valid }).unwrap();
    record("random mapping", &tape, &gradients);

    // Nothing behind the last depth is computed, so that layers keep less than they would.
    let term = HiddenTerm { kind: HiddenKind::SquaredDistance, depths: vec![1, 2], over: EntropyOver::Valid };
    let states = evaluator.reference_states(&term, &base, &batch).unwrap();
    let (mut tape, mut gradients) = fresh();
    let destinations = Some(GradientDestinations::of_weights(&mut gradients));
    let pass = LossPass { subject: plain, batch: &batch, scale: 1.0, destinations, loss: tape.slot(0) };
    evaluator.chosen_states(pass, &term, Some(&states)).unwrap();
    record("chosen states", &tape, &gradients);
    results
}

fn recomputation_changes_no_bit<B: Backend>(backend: &B) {
    // A batch has 21 tokens: in memory for 48, two layers lie behind one another.
    let cases = [(Recompute::Cheap, 32), (layers(0), 32), (layers(1), 32), (layers(0), 48), (layers(1), 48)];
    // Heads with norms are computed again from what a Llama rotates in place.
    let normed = [(Recompute::Cheap, 32), (layers(1), 48)];
    for (family, cases) in [(ModelFamily::Llama, &cases[..]), (ModelFamily::Qwen3, &normed)] {
        let expected = passes(backend, family, Recompute::Nothing, 32);
        for &(recompute, capacity) in cases {
            for ((name, expected), (_, found)) in expected.iter().zip(passes(backend, family, recompute, capacity)) {
                assert!(*expected == found, "{family:?}, {name}, {recompute:?}, {capacity}: other bits");
            }
        }
    }
}

/// Losses, weights and optimizer states after two steps.
fn trained<B: Backend>(model: &Arc<Model<B>>, mut trainer: AnyTrainer<B>, memory: MemorySettings) -> Vec<u32> {
    let backend = &model.backend;
    let mut weights = parameters(model, 1);
    let start = weights.download(backend).unwrap();
    let mut evaluator = Evaluator::recomputing(Arc::clone(model), 64, &[], memory.recompute).unwrap();
    let mut tape = LossTape::new(backend, 2).unwrap();
    for step in 0..2 {
        let batch = LossBatch::new(model, batch(step as u64, &[5, 2, 6])).unwrap();
        trainer.cross_entropy_step(&mut evaluator, &mut weights, &batch, 1.0, tape.slot(step)).unwrap();
    }
    let mut values: Vec<f32> = tape.read(backend).unwrap().iter().map(|loss| *loss as f32).collect();
    let end = weights.download(backend).unwrap();
    for entry in model.layout().entries() {
        let place = entry.block.range();
        assert!(start[place.clone()].iter().zip(&end[place]).any(|(a, b)| a != b), "{} moved", entry.name);
    }
    values.extend(end);
    let optimizer = trainer.optimizer();
    assert_eq!(optimizer.progress().step, 2);
    (0..optimizer.state_count()).for_each(|state| values.extend(optimizer.read_state(backend, state).unwrap()));
    bits(&values)
}

/// A trainer of all weights, restarted as a trajectory restarts it.
fn trainer<B: Backend>(model: &Model<B>, config: &OptimizerConfig, memory: MemorySettings) -> AnyTrainer<B> {
    let backend = &model.backend;
    let layout = model.layout();
    let mut trainer = AnyTrainer::full(backend, layout, config.clone(), memory).unwrap();
    trainer.restart(backend, config.clone(), 5, 3).unwrap();
    trainer
}

fn steps_within_the_backward_pass_change_no_bit<B: Backend>(backend: &B) {
    let simulated = backend.description().contains("simulated");
    let bf16 = (backend.compute_dtype() == DType::Bf16).then_some(Moments::Bf16);
    for tied in [false, true] {
        let family = if tied { ModelFamily::Qwen2 } else { ModelFamily::Llama };
        let model = Arc::new(Model::new(backend.clone(), config(family, tied), 64).unwrap());
        for (index, kind) in OptimizerKind::ALL.into_iter().enumerate() {
            // The simulator is slow: there every kind meets one of the two layouts.
            if simulated && tied != (index % 2 == 0) {
                continue;
            }
            let config = OptimizerConfig { weight_decay: Some(0.1), ..OptimizerConfig::new(kind, 1e-2) };
            let mut seen = Vec::new();
            for states in [Some(Moments::F32), bf16].into_iter().flatten() {
                let whole = MemorySettings { states, ..MemorySettings::default() };
                let all = MemorySettings { states, step_in_backward: true, recompute: layers(0) };
                let expected = trained(&model, trainer(&model, &config, whole), whole);
                assert!(expected == trained(&model, trainer(&model, &config, all), all), "{kind}, {states:?}, {tied}");
                seen.push(expected);
            }
            assert!(seen.len() == 1 || seen[0] != seen[1], "{kind}: bf16 moments are other moments");
        }
    }
}

/// Only a trainer with a whole gradient has methods that need one; which it is, the memory settings decide.
fn a_trainer_that_steps_within_the_backward_pass_keeps_no_gradient<B: Backend>(backend: &B) {
    let model = Model::new(backend.clone(), config(ModelFamily::Llama, false), 64).unwrap();
    let config = OptimizerConfig::new(OptimizerKind::AdamW, 1e-2);
    for step_in_backward in [false, true] {
        let memory = MemorySettings { step_in_backward, ..MemorySettings::default() };
        let stepping = matches!(trainer(&model, &config, memory), AnyTrainer::Stepping(_));
        assert_eq!(stepping, step_in_backward);
        // LoRA keeps its small gradient.
        let lora = AnyTrainer::new(&model, Some(&AdapterConfig::new(2)), config.clone(), memory).unwrap();
        assert!(matches!(lora, AnyTrainer::Whole(_)));
    }
}

/// All checks on one backend.
macro_rules! on {
    ($module:ident, $backend:expr) => {
        mod $module {
            #[test]
            fn gradients_are_the_same_bits_whatever_is_recomputed() {
                super::recomputation_changes_no_bit(&$backend);
            }

            #[test]
            fn steps_within_the_backward_pass_end_on_the_same_bits() {
                super::steps_within_the_backward_pass_change_no_bit(&$backend);
            }

            #[test]
            fn a_trainer_without_a_whole_gradient_refuses_to_show_one() {
                super::a_trainer_that_steps_within_the_backward_pass_keeps_no_gradient(&$backend);
            }
        }
    };
}

on!(cpu, super::Cpu);
on!(simulated_f32, temper::backend::cuda::Cuda::simulated(temper::ops::DType::F32).unwrap());
on!(simulated_bf16, temper::backend::cuda::Cuda::simulated(temper::ops::DType::Bf16).unwrap());
