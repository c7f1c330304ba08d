//! Steps and generation at the size of SmolLM2-135M on the CPU, timed by wall clock: AdamW on 4 × 256 tokens with all weights
//! and with LoRA of rank 16, the tamper-resistance gradient, and 64 tokens for each of 8 prompts. Prints one JSON object with the
//! keys of `peers/model_step.py`, which times PyTorch.
//!
//! An argument names what to run alone, over and over, for a profiler: `full`, `lora`, `gradient` or `generation`.

mod support;

use std::sync::Arc;

use temper::backend::cpu::Cpu;
use temper::eval::{GenerateOptions, PASS_TOKENS, generate};
use temper::model::{
    AdapterConfig, Batch, GradientDestinations, Gradients, Model, ModelConfig, ModelFamily, Parameters, RopeScaling,
};
use temper::objective::{EntropyOver, Evaluator, LossBatch, LossPass, LossTape, Subject};
use temper::ops::Backend;
use temper::optimizer::{OptimizerConfig, OptimizerKind};
use temper::random::{Random, Stream};
use temper::training::Trainer;

use support::{initial_weights, median_milliseconds};

const SEQUENCES: usize = 4;
const LENGTH: usize = 256;
const PROMPTS: usize = 8;
const NEW_TOKENS: usize = 64;
const BATCHES: u64 = 4;

fn main() {
    let only = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    // Inside the pool, as the program itself runs: a parallel loop then starts without waking another thread first.
    rayon::scope(|_| measure(only.as_deref()));
}

/// SmolLM2-135M, as its `config.json` has it.
fn smollm2() -> ModelConfig {
    ModelConfig {
        family: ModelFamily::Llama,
        vocab_size: 49_152,
        hidden_size: 576,
        intermediate_size: 1536,
        num_hidden_layers: 30,
        num_attention_heads: 9,
        num_key_value_heads: 3,
        head_dim: 64,
        rms_norm_eps: 1e-5,
        max_position_embeddings: 8192,
        rope_theta: 100_000.0,
        rope_scaling: RopeScaling::Default,
        sliding_window: None,
        tie_word_embeddings: true,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
        pad_token_id: None,
        dtype: None,
    }
}

fn measure(only: Option<&str>) {
    let model = Arc::new(Model::new(Cpu, smollm2(), LENGTH).expect("a model"));
    let weights = initial_weights(&model);
    let mut values = Vec::new();
    for (name, key) in [
        ("full", "full_step_ms"),
        ("lora", "lora_step_ms"),
        ("gradient", "tr_gradient_ms"),
        ("generation", "generation_ms"),
    ] {
        if only.is_some_and(|only| only != name) {
            continue;
        }
        let milliseconds = match name {
            "full" => attack_step(&model, None),
            "lora" => attack_step(&model, Some(&AdapterConfig::new(16))),
            "gradient" => resistance_gradient(&model, &weights),
            _ => generation(&model, &weights),
        };
        values.push(format!("\"{key}\": {milliseconds:.1}"));
    }
    println!(
        "{{\"engine\": \"temper {}\", \"device\": \"{}\", {}}}",
        env!("CARGO_PKG_VERSION"),
        Cpu.description(),
        values.join(", ")
    );
}

fn attack_step(model: &Arc<Model<Cpu>>, adapter: Option<&AdapterConfig>) -> f64 {
    let config = OptimizerConfig::new(OptimizerKind::AdamW, 1e-5);
    let mut trainer = Trainer::started(model, adapter, config, 1).expect("a trainer");
    let adapters: Vec<_> = trainer.adapter().into_iter().collect();
    let mut evaluator = Evaluator::new(Arc::clone(model), SEQUENCES * LENGTH, &adapters).expect("an evaluator");
    let mut tape = LossTape::new(&Cpu, 1).expect("a tape");
    let mut trained = initial_weights(model);
    let batches: Vec<_> = (0..BATCHES).map(|number| batch(model, number)).collect();
    median_milliseconds(1, 5, |i| {
        let batch = &batches[i % batches.len()];
        trainer.cross_entropy_step(&mut evaluator, &mut trained, batch, 1.0, tape.slot(0)).expect("a step");
    })
}

fn resistance_gradient(model: &Arc<Model<Cpu>>, weights: &Parameters<Cpu>) -> f64 {
    let mut evaluator = Evaluator::new(Arc::clone(model), SEQUENCES * LENGTH, &[]).expect("an evaluator");
    let mut tape = LossTape::new(&Cpu, 1).expect("a tape");
    let mut meta = Gradients::zeros(&Cpu, "meta-gradient", model.layout()).expect("gradients");
    let batches: Vec<_> = (0..BATCHES).map(|number| batch(model, number)).collect();
    median_milliseconds(1, 5, |i| {
        let pass = LossPass {
            subject: Subject::plain(weights),
            batch: &batches[i % batches.len()],
            scale: 0.5,
            destinations: Some(GradientDestinations::of_weights(&mut meta)),
            loss: tape.slot(0),
        };
        evaluator.negative_entropy(pass, EntropyOver::Learned).expect("a gradient");
    })
}

fn generation(model: &Model<Cpu>, weights: &Parameters<Cpu>) -> f64 {
    let prompts: Vec<Vec<u32>> = (0..PROMPTS as u64).map(|number| tokens(100 + number, 32)).collect();
    let options = GenerateOptions {
        max_new_tokens: NEW_TOKENS,
        stop: Vec::new(),
        sampling: None,
        seed: 0,
        batch: PROMPTS,
        pass_tokens: PASS_TOKENS,
    };
    median_milliseconds(1, 3, |_| {
        let answers = generate(model, Subject::plain(weights), &prompts, &options).expect("answers");
        assert!(answers.iter().all(|answer| answer.len() == NEW_TOKENS));
    })
}

fn tokens(number: u64, count: usize) -> Vec<u32> {
    let mut random = Random::new(0, Stream::Demo, number, 0);
    (0..count).map(|_| random.below(49_152) as u32).collect()
}

/// Random tokens, all of them learned.
fn batch(model: &Model<Cpu>, number: u64) -> LossBatch<Cpu> {
    let mut batch = Batch::default();
    for sequence in 0..SEQUENCES as u64 {
        let tokens = tokens(number * SEQUENCES as u64 + sequence, LENGTH);
        batch.push(&tokens, &tokens, LENGTH);
    }
    LossBatch::new(model, batch).expect("a batch")
}
