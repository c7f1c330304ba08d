//! The demonstration's inner step (forward, backward, AdamW on 16 rows of 17 tokens) and its tamper-resistance gradient,
//! timed by wall clock. Prints one JSON object with the keys of `peers/demo_step.py`, which times PyTorch.

use std::sync::Arc;
use std::time::Instant;

use temper::backend::cpu::Cpu;
use temper::demo::{Domain, Experiment, Facts, Pool};
use temper::model::{Batch, GradientDestinations, Gradients, Model, Parameters};
use temper::objective::{EntropyOver, Evaluator, LossBatch, LossPass, LossTape, Subject};
use temper::optimizer::{OptimizerConfig, OptimizerKind};
use temper::random::{Random, Stream};
use temper::training::Trainer;

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
    let attack = milliseconds(|i| {
        let batch = &batches[i % batches.len()];
        trainer.cross_entropy_step(&mut evaluator, &mut weights, batch, 1.0, tape.slot(0)).expect("a step");
    });
    let mut meta = Gradients::zeros(&Cpu, "meta-gradient", model.layout()).expect("gradients");
    let resistance = milliseconds(|i| {
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

fn initial_weights(model: &Model<Cpu>) -> Parameters<Cpu> {
    let mut random = Random::new(0, Stream::Weights, 0, 0);
    let values: Vec<f32> = (0..model.layout().len()).map(|_| (0.02 * random.normal()) as f32).collect();
    Parameters::from_host(&Cpu, "weights", model.layout(), &values).expect("weights")
}

fn batch(model: &Model<Cpu>, number: u64) -> LossBatch<Cpu> {
    let mut random = Random::new(0, Stream::Demo, number, 0);
    let mut batch = Batch::default();
    for (tokens, labels) in Facts::new(0).rows(Domain::Restricted, Pool::Attack, 16, &mut random) {
        batch.push(&tokens, &labels, tokens.len());
    }
    LossBatch::new(model, batch).expect("a batch")
}

/// Median time of `step`, in milliseconds.
fn milliseconds(mut step: impl FnMut(usize)) -> f64 {
    (0..WARM_UP).for_each(&mut step);
    let mut times: Vec<f64> = (0..STEPS)
        .map(|i| {
            let start = Instant::now();
            step(i);
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[STEPS / 2]
}
