//! The demonstration's inner step (forward, backward, AdamW on 16 rows of 17 tokens) and its tamper-resistance gradient,
//! timed by wall clock. Prints one JSON object with the keys of `peers/demo_step.py`, which times PyTorch.

mod support;

use std::sync::Arc;

use temper::backend::cpu::Cpu;
use temper::demo::{Domain, Experiment, Facts, Pool};
use temper::model::{Batch, GradientDestinations, Gradients, Model};
use temper::objective::{EntropyOver, Evaluator, LossBatch, LossPass, LossTape, Subject};
use temper::optimizer::{OptimizerConfig, OptimizerKind};
use temper::random::{Random, Stream};
use temper::training::Trainer;

use support::{initial_weights, median_milliseconds};

const WARM_UP: usize = 50;
const STEPS: usize = 400;

fn main() {
    // Inside the pool, as the program itself runs: a parallel loop then starts without waking another thread first.
    rayon::scope(|_| measure());
}

fn measure() {
    let model = Arc::new(Model::new(Cpu, Experiment::<Cpu>::model_config(), 64).expect("a model"));
    let mut weights = initial_weights(&model);
    let config = OptimizerConfig::new(OptimizerKind::AdamW, 1e-3);
    let mut trainer = Trainer::full(&Cpu, model.layout(), config).expect("a trainer");
    let mut evaluator = Evaluator::new(Arc::clone(&model), 16 * 17, &[]).expect("an evaluator");
    let mut tape = LossTape::new(&Cpu, 1).expect("a tape");
    let batches: Vec<LossBatch<Cpu>> = (0..16).map(|i| batch(&model, i)).collect();
    let attack = median_milliseconds(WARM_UP, STEPS, |i| {
        let batch = &batches[i % batches.len()];
        trainer.cross_entropy_step(&mut evaluator, &mut weights, batch, 1.0, tape.slot(0)).expect("a step");
    });
    let mut meta = Gradients::zeros(&Cpu, "meta-gradient", model.layout()).expect("gradients");
    let resistance = median_milliseconds(WARM_UP, STEPS, |i| {
        let pass = LossPass {
            subject: Subject::plain(&weights),
            batch: &batches[i % batches.len()],
            scale: 0.5,
            destinations: Some(GradientDestinations::of_weights(&mut meta)),
            loss: tape.slot(0),
        };
        evaluator.negative_entropy(pass, EntropyOver::Learned).expect("a gradient");
    });
    println!(
        "{{\"engine\": \"temper {}\", \"threads\": {}, \"attack_step_ms\": {attack:.4}, \"tr_gradient_ms\": {resistance:.4}}}",
        env!("CARGO_PKG_VERSION"),
        rayon::current_num_threads()
    );
}

fn batch(model: &Model<Cpu>, number: u64) -> LossBatch<Cpu> {
    let mut random = Random::new(0, Stream::Demo, number, 0);
    let mut batch = Batch::default();
    for (tokens, labels) in Facts::new(0).rows(Domain::Restricted, Pool::Attack, 16, &mut random) {
        batch.push(&tokens, &labels, tokens.len());
    }
    LossBatch::new(model, batch).expect("a batch")
}
