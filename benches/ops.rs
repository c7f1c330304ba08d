//! Times of the CPU backend: a whole training step of the demonstration's model, and its operations one by one.

use criterion::{Criterion, criterion_group, criterion_main};
use temper::backend::cpu::Cpu;
use temper::model::{
    Batch, DeviceBatch, GradientDestinations, Gradients, Model, ModelConfig, ModelFamily, Parameters, Recompute,
    RopeScaling, Subject, Workspace,
};
use temper::ops::{self, Backend, DType, HeadGradients, HeadLoss, Matrix, Tensor};
use temper::random::{Random, Stream};

const SEQUENCES: usize = 16;
const LENGTH: usize = 17;
const TOKENS: usize = SEQUENCES * LENGTH;

fn demo_config() -> ModelConfig {
    ModelConfig {
        family: ModelFamily::Llama,
        vocab_size: 256,
        hidden_size: 128,
        intermediate_size: 384,
        num_hidden_layers: 3,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 64,
        rms_norm_eps: 1e-5,
        max_position_embeddings: 64,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::Default,
        sliding_window: None,
        tie_word_embeddings: false,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
        pad_token_id: None,
        dtype: None,
    }
}

fn normal(random: &mut Random, len: usize, deviation: f64) -> Vec<f32> {
    (0..len).map(|_| (random.normal() * deviation) as f32).collect()
}

fn matrix(random: &mut Random, rows: usize, cols: usize) -> Tensor<Cpu> {
    Tensor::from_f32(&Cpu, "operand", rows, cols, &normal(random, rows * cols, 0.1)).unwrap()
}

fn demo_batch(random: &mut Random, vocab_size: usize) -> Batch {
    let mut batch = Batch::default();
    for _ in 0..SEQUENCES {
        let tokens: Vec<u32> = (0..LENGTH).map(|_| random.below(vocab_size) as u32).collect();
        batch.push(&tokens, &tokens, LENGTH);
    }
    batch
}

/// Everything that a step of the demonstration needs.
struct Step {
    model: Model<Cpu>,
    weights: Parameters<Cpu>,
    gradients: Gradients<Cpu>,
    workspace: Workspace<Cpu>,
    batch: DeviceBatch<Cpu>,
    targets: Tensor<Cpu>,
    loss_weights: Tensor<Cpu>,
    values: Tensor<Cpu>,
    d_normed: Tensor<Cpu>,
}

impl Step {
    fn new() -> Self {
        let mut random = Random::new(1, Stream::Weights, 0, 0);
        let config = demo_config();
        let batch = demo_batch(&mut random, config.vocab_size);
        let model = Model::new(Cpu, config, LENGTH).unwrap();
        let values = normal(&mut random, model.layout().len(), 0.05);
        let weights = Parameters::from_host(&Cpu, "weights", model.layout(), &values).unwrap();
        let targets = batch.next_token_targets();
        let live: Vec<f32> = targets.iter().map(|&t| if t == ops::IGNORE_INDEX { 0.0 } else { 1.0 / 256.0 }).collect();
        Self {
            gradients: Gradients::zeros(&Cpu, "gradients", model.layout()).unwrap(),
            workspace: Workspace::new(&Cpu, &model.config, TOKENS, &[], Recompute::Nothing).unwrap(),
            batch: DeviceBatch::new(&Cpu, &batch).unwrap(),
            targets: Tensor::from_u32(&Cpu, "targets", &targets).unwrap(),
            loss_weights: Tensor::from_f32(&Cpu, "loss weights", TOKENS, 1, &live).unwrap(),
            values: Tensor::zeros(&Cpu, "values", TOKENS, 1, DType::F32).unwrap(),
            d_normed: Tensor::zeros(&Cpu, "gradient", TOKENS, 128, DType::F32).unwrap(),
            model,
            weights,
        }
    }

    fn forward(&mut self) {
        self.model.forward(Subject::plain(&self.weights), &self.batch, &mut self.workspace).unwrap();
    }

    fn loss(&mut self) {
        let block = self.model.layout().lm_head();
        let hidden = self.workspace.hidden_state(3, TOKENS);
        let mut destinations = GradientDestinations::of_weights(&mut self.gradients);
        let gradients = HeadGradients { d_hidden: self.d_normed.view_mut(), d_head: destinations.weight(block) };
        Cpu.run(ops::LossHead {
            loss: HeadLoss::CrossEntropy,
            hidden,
            head: self.weights.matrix(block),
            targets: self.targets.view(),
            teacher: None,
            weights: self.loss_weights.view(),
            values: self.values.view_mut(),
            gradients: Some(gradients),
        })
        .unwrap();
    }

    fn backward(&mut self) {
        let destinations = GradientDestinations::of_weights(&mut self.gradients);
        self.model
            .backward(Subject::plain(&self.weights), &self.batch, &mut self.workspace, destinations, None)
            .unwrap();
    }
}

fn step(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("demo");
    let mut step = Step::new();
    group.bench_function("forward", |b| b.iter(|| step.forward()));
    group.bench_function("loss", |b| b.iter(|| step.loss()));
    group.bench_function("backward", |b| b.iter(|| step.backward()));
    group.bench_function("forward, loss, backward", |b| {
        b.iter(|| {
            step.forward();
            step.loss();
            step.backward();
        })
    });
}

fn linear(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("linear");
    let mut random = Random::new(2, Stream::Weights, 0, 0);
    for (tokens, input, output) in [(272, 128, 256), (272, 128, 128), (272, 128, 768), (272, 384, 128)] {
        let x = matrix(&mut random, tokens, input);
        let w = matrix(&mut random, output, input);
        let mut y = matrix(&mut random, tokens, output);
        let mut dx = matrix(&mut random, tokens, input);
        let mut dw = matrix(&mut random, output, input);
        let name = format!("{tokens}x{input}x{output}");
        group.throughput(criterion::Throughput::Elements((2 * tokens * input * output) as u64));
        group.bench_function(format!("forward {name}"), |b| {
            b.iter(|| Cpu.run(ops::LinearForward { x: x.view(), w: w.view(), y: y.view_mut() }))
        });
        group.bench_function(format!("backward input {name}"), |b| {
            b.iter(|| {
                Cpu.run(ops::LinearBackwardInput { dy: y.view(), w: w.view(), dx: dx.view_mut(), accumulate: false })
            })
        });
        group.bench_function(format!("backward weight {name}"), |b| {
            b.iter(|| Cpu.run(ops::LinearBackwardWeight { dy: y.view(), x: x.view(), dw: dw.view_mut() }))
        });
    }
}

fn rows(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rows");
    let mut random = Random::new(3, Stream::Weights, 0, 0);
    let none = |_: &Tensor<Cpu>| -> Option<Matrix<Cpu>> { None };
    let mut x = || matrix(&mut random, TOKENS, 128);
    let residual = x();
    let mut normed = x();
    let mut d = x();
    let weight = matrix(&mut random, 1, 128);
    let mut d_weight = matrix(&mut random, 1, 128);
    let mut inverse = matrix(&mut random, TOKENS, 1);
    group.bench_function("norm forward", |b| {
        b.iter(|| {
            Cpu.run(ops::RmsNormForward {
                residual: residual.view(),
                delta: none(&residual),
                weight: weight.view(),
                epsilon: 1e-5,
                sum: None,
                normed: normed.view_mut(),
                inverse_rms: inverse.view_mut(),
            })
        })
    });
    group.bench_function("norm backward", |b| {
        b.iter(|| {
            Cpu.run(ops::RmsNormBackward {
                d_normed: normed.view(),
                x: residual.view(),
                weight: weight.view(),
                inverse_rms: inverse.view(),
                d_residual: d.view_mut(),
                d_weight: Some(d_weight.view_mut()),
            })
        })
    });
    let gate_up = matrix(&mut random, TOKENS, 768);
    let mut h = matrix(&mut random, TOKENS, 384);
    let mut d_gate_up = matrix(&mut random, TOKENS, 768);
    group.bench_function("swiglu forward", |b| {
        b.iter(|| Cpu.run(ops::SwigluForward { gate_up: gate_up.view(), h: h.view_mut() }))
    });
    group.bench_function("swiglu backward", |b| {
        b.iter(|| {
            Cpu.run(ops::SwigluBackward { d_h: h.view(), gate_up: gate_up.view(), d_gate_up: d_gate_up.view_mut() })
        })
    });
    let gradients = matrix(&mut random, 1, 655_360);
    group.bench_function("squared norm", |b| b.iter(|| Cpu.run(ops::SquaredNorm { x: gradients.view() })));
}

fn attention(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("attention");
    let mut random = Random::new(4, Stream::Weights, 0, 0);
    for (sequences, length) in [(16, 17), (4, 256), (1, 1024)] {
        let shape = demo_config().attention();
        let tokens = sequences * length;
        let segment = |i| ops::Segment { start: i * length, length, valid: length };
        let segments = ops::Segments::new(&Cpu, (0..sequences).map(segment).collect()).unwrap();
        let qkv = matrix(&mut random, tokens, shape.qkv_cols());
        let mut d_qkv = matrix(&mut random, tokens, shape.qkv_cols());
        let mut out = matrix(&mut random, tokens, 128);
        let d_out = matrix(&mut random, tokens, 128);
        let mut log_sum_exp = matrix(&mut random, tokens, 2);
        group.bench_function(format!("forward {sequences}x{length}"), |b| {
            b.iter(|| {
                Cpu.run(ops::AttentionForward {
                    qkv: qkv.view(),
                    segments: &segments,
                    shape,
                    out: out.view_mut(),
                    log_sum_exp: log_sum_exp.view_mut(),
                })
            })
        });
        group.bench_function(format!("backward {sequences}x{length}"), |b| {
            b.iter(|| {
                Cpu.run(ops::AttentionBackward {
                    d_out: d_out.view(),
                    qkv: qkv.view(),
                    out: out.view(),
                    log_sum_exp: log_sum_exp.view(),
                    segments: &segments,
                    shape,
                    d_qkv: d_qkv.view_mut(),
                })
            })
        });
    }
}

criterion_group!(benches, step, linear, rows, attention);
criterion_main!(benches);
