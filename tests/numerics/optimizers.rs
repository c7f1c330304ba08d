//! Every optimizer on the CPU backend against the update equations of its paper or of PyTorch's documentation, written
//! here once more in f64, one element at a time and in the papers' notation.

use temper::backend::cpu::Cpu;
use temper::model::{Gradients, ModelConfig, ModelFamily, ModelLayout, Parameters, RopeScaling};
use temper::ops::Backend;
use temper::optimizer::{Optimizer, OptimizerConfig, OptimizerKind, OptimizerProgress, Schedule};
use temper::random::{Random, Stream};

const STEPS: usize = 8;

/// A layout of an odd number of parameters, longer than one chunk of the CPU's loop.
fn layout(vocab_size: usize) -> ModelLayout {
    let config = ModelConfig {
        family: ModelFamily::Llama,
        vocab_size,
        hidden_size: 7,
        intermediate_size: 5,
        num_hidden_layers: 1,
        num_attention_heads: 1,
        num_key_value_heads: 1,
        head_dim: 3,
        rms_norm_eps: 1e-5,
        max_position_embeddings: 8,
        rope_theta: 1e4,
        rope_scaling: RopeScaling::Default,
        sliding_window: None,
        tie_word_embeddings: true,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
        pad_token_id: None,
        dtype: None,
    };
    ModelLayout::new(&config).unwrap()
}

/// Weights and the gradients of [`STEPS`] steps. Gradients differ in scale from element to element, every fifth is 0
/// at first and every seventh always. Weights are small, so that their rounding is little against the smallest update.
struct Problem {
    layout: ModelLayout,
    weights: Vec<f32>,
    gradients: Vec<Vec<f32>>,
}

impl Problem {
    fn new(vocab_size: usize) -> Self {
        let layout = layout(vocab_size);
        let mut random = Random::new(3, Stream::Demo, 0, 0);
        let weights = (0..layout.len()).map(|_| 0.01 * random.normal() as f32).collect();
        let gradients = (0..STEPS)
            .map(|step| {
                (0..layout.len())
                    .map(|i| match i {
                        _ if i % 7 == 6 || (i % 5 == 4 && step < 3) => 0.0,
                        _ => 10f32.powi(-(i as i32 % 4)) * random.normal() as f32,
                    })
                    .collect()
            })
            .collect();
        Self { layout, weights, gradients }
    }

    fn parameters(&self) -> Parameters<Cpu> {
        Parameters::from_host(&Cpu, "weights", &self.layout, &self.weights).unwrap()
    }

    fn optimizer(&self, config: &OptimizerConfig) -> Optimizer<Cpu> {
        Optimizer::new(&Cpu, "optimizer", config.clone(), self.layout.len()).unwrap()
    }

    /// Takes the steps `range`.
    fn run(&self, optimizer: &mut Optimizer<Cpu>, parameters: &mut Parameters<Cpu>, range: std::ops::Range<usize>) {
        let mut gradients = Gradients::zeros(&Cpu, "gradients", &self.layout).unwrap();
        for values in &self.gradients[range] {
            Cpu.upload_f32(gradients.buffer_mut(), 0, values).unwrap();
            optimizer.step(&Cpu, parameters, &gradients).unwrap();
        }
    }
}

/// Each kind with its defaults, and variants of each that set every other hyperparameter.
fn configs() -> Vec<OptimizerConfig> {
    let mut configs = Vec::new();
    for kind in OptimizerKind::ALL {
        let lr = match kind {
            OptimizerKind::Sgd | OptimizerKind::SgdMomentum | OptimizerKind::SgdNesterov | OptimizerKind::Adagrad => {
                1e-2
            }
            OptimizerKind::Adadelta => 1.0,
            _ => 1e-3,
        };
        let default = OptimizerConfig::new(kind, lr);
        configs.push(OptimizerConfig { weight_decay: Some(0.3), ..default.clone() });
        configs.push(OptimizerConfig { weight_decay: Some(0.0), epsilon: Some(1e-3), ..default.clone() });
        let schedule = Schedule { warmup: 3, decay: "linear:0.1".parse().unwrap(), total: 8, official_warmup: false };
        configs.push(OptimizerConfig { schedule, betas: [0.8, 0.95], ..default.clone() });
        let schedule = Schedule { warmup: 4, official_warmup: true, ..Schedule::constant() };
        configs.push(OptimizerConfig { schedule, ..default.clone() });
        configs.push(default);
    }
    configs
}

/// The learning rates of a configuration of [`configs`], without the library's schedule.
fn learning_rate(config: &OptimizerConfig, t: usize) -> f64 {
    let k = (t - 1) as f64;
    let warmup = config.schedule.warmup as f64;
    config.lr
        * match (k < warmup, config.schedule.official_warmup) {
            (true, true) => config.lr * k / warmup,
            (true, false) => (k + 1.0) / warmup,
            (false, _) if config.schedule.total > 0 => 1.0 - 0.9 * (k - warmup) / (8.0 - warmup),
            (false, _) => 1.0,
        }
}

/// One element's weight after the steps whose gradients are given, and its average point.
fn reference(config: &OptimizerConfig, start: f64, gradients: impl Iterator<Item = f64>) -> (f64, f64) {
    use OptimizerKind::*;
    let [b1, b2] = config.betas;
    let decay = config.weight_decay.unwrap_or(if config.kind == AdamW { 0.01 } else { 0.0 });
    let epsilon = config.epsilon.unwrap_or(match config.kind {
        Adagrad => 1e-10,
        Adadelta => 1e-6,
        _ => 1e-8,
    });
    let mut theta = start;
    let mut m = 0.0;
    let mut v = 0.0;
    let mut delta = 0.0;
    let mut b1_power = 1.0;
    let mut b2_power = 1.0;
    let mut mu_product = 1.0;
    // Schedule-free: x is the average, z the base sequence, theta their mixture y.
    let mut x = start;
    let mut z = start;
    let mut lr_max = 0.0f64;
    let mut weights = 0.0;
    for (index, mut g) in gradients.enumerate() {
        let t = index + 1;
        let lr = learning_rate(config, t);
        b1_power *= b1;
        b2_power *= b2;
        if !matches!(config.kind, AdamW | ScheduleFreeAdamW) {
            g += decay * theta;
        }
        match config.kind {
            Sgd => {
                theta -= lr * g;
                continue;
            }
            SgdMomentum | SgdNesterov => {
                m = if t == 1 { g } else { 0.9 * m + g };
                theta -= lr * if config.kind == SgdNesterov { g + 0.9 * m } else { m };
                continue;
            }
            Adagrad => {
                v += g * g;
                theta -= lr * g / (v.sqrt() + epsilon);
                continue;
            }
            Adadelta => {
                v = 0.9 * v + 0.1 * g * g;
                let step = ((delta + epsilon) / (v + epsilon)).sqrt() * g;
                delta = 0.9 * delta + 0.1 * step * step;
                theta -= lr * step;
                continue;
            }
            _ => {}
        }
        m = b1 * m + (1.0 - b1) * g;
        v = b2 * v + (1.0 - b2) * g * g;
        let m_hat = m / (1.0 - b1_power);
        let v_hat = v / (1.0 - b2_power);
        match config.kind {
            AdamW => theta = theta * (1.0 - lr * decay) - lr * m_hat / (v_hat.sqrt() + epsilon),
            Adam => theta -= lr * m_hat / (v_hat.sqrt() + epsilon),
            NAdam => {
                let mu = |t: usize| b1 * (1.0 - 0.5 * 0.96f64.powf(0.004 * t as f64));
                mu_product *= mu(t);
                let ahead = mu(t + 1) * m / (1.0 - mu_product * mu(t + 1)) + (1.0 - mu(t)) * g / (1.0 - mu_product);
                theta -= lr * ahead / (v_hat.sqrt() + epsilon);
            }
            RAdam => {
                let rho_max = 2.0 / (1.0 - b2) - 1.0;
                let rho = rho_max - 2.0 * t as f64 * b2_power / (1.0 - b2_power);
                if rho > 5.0 {
                    let l = (1.0 - b2_power).sqrt() / (v.sqrt() + epsilon);
                    let above = (rho - 4.0) * (rho - 2.0) * rho_max;
                    let r = (above / ((rho_max - 4.0) * (rho_max - 2.0) * rho)).sqrt();
                    theta -= lr * m_hat * r * l;
                } else {
                    theta -= lr * m_hat;
                }
            }
            _ => {
                lr_max = lr_max.max(lr);
                weights += lr_max.powi(2);
                let c = if weights == 0.0 { 0.0 } else { lr_max.powi(2) / weights };
                z -= lr * (g / (v_hat.sqrt() + epsilon) + decay * theta);
                x = (1.0 - c) * x + c * z;
                theta = (1.0 - b1) * z + b1 * x;
            }
        }
    }
    (theta, if config.kind == ScheduleFreeAdamW { x } else { theta })
}

/// ‖found − expected‖ relative to how far `expected` is from `start`.
fn error(found: &[f32], expected: &[f64], start: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut found.iter().zip(expected).map(|(f, e)| f64::from(*f) - e))
        / norm(&mut start.iter().zip(expected).map(|(s, e)| f64::from(*s) - e))
}

/// Eight steps of every kind follow the published equations, in the training point and in the average.
#[test]
fn every_kind_follows_its_equations() {
    let problem = Problem::new(2501);
    for config in configs() {
        let mut optimizer = problem.optimizer(&config);
        let mut parameters = problem.parameters();
        problem.run(&mut optimizer, &mut parameters, 0..STEPS);
        let (expected, average): (Vec<f64>, Vec<f64>) = (0..problem.layout.len())
            .map(|i| {
                let gradients = problem.gradients.iter().map(|g| f64::from(g[i]));
                reference(&config, f64::from(problem.weights[i]), gradients)
            })
            .unzip();
        let found = error(&parameters.download(&Cpu).unwrap(), &expected, &problem.weights);
        assert!(found < 1e-5, "{config:?}: the weights are off by {found:.1e} of the update");
        let found = error(&optimizer.average_point(&Cpu, &parameters).unwrap(), &average, &problem.weights);
        assert!(found < 1e-5, "{config:?}: the average is off by {found:.1e} of the update");
        assert_eq!(optimizer.progress().step, STEPS as u64);
        let next = learning_rate(&config, STEPS + 1);
        assert!((optimizer.next_lr() - next).abs() <= 1e-15 * config.lr, "{config:?}");
    }
}

/// Before its first step an optimizer's average is where the weights are.
#[test]
fn average_before_the_first_step_is_the_start() {
    let problem = Problem::new(10);
    for kind in OptimizerKind::ALL {
        let optimizer = problem.optimizer(&OptimizerConfig::new(kind, 1e-3));
        assert_eq!(optimizer.average_point(&Cpu, &problem.parameters()).unwrap(), problem.weights);
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// A reset optimizer cannot be told from a new one, bit for bit.
#[test]
fn reset_forgets_everything() {
    let problem = Problem::new(101);
    for config in configs() {
        let mut used = problem.optimizer(&config);
        let mut fresh = problem.optimizer(&config);
        let mut a = problem.parameters();
        let mut b = problem.parameters();
        problem.run(&mut used, &mut a, 3..STEPS);
        used.reset(&Cpu, config.clone()).unwrap();
        a.copy_from(&Cpu, &b).unwrap();
        problem.run(&mut used, &mut a, 0..3);
        problem.run(&mut fresh, &mut b, 0..3);
        assert_eq!(bits(&a.download(&Cpu).unwrap()), bits(&b.download(&Cpu).unwrap()), "{config:?}");
        assert_eq!(used.progress(), fresh.progress());
        // Nor one that was reset to another kind from a new one of that kind.
        let other = OptimizerKind::ALL.into_iter().find(|kind| kind.rule().states() != config.kind.rule().states());
        let other = OptimizerConfig { kind: other.unwrap(), ..config.clone() };
        let mut fresh = problem.optimizer(&other);
        used.reset(&Cpu, other.clone()).unwrap();
        b.copy_from(&Cpu, &a).unwrap();
        problem.run(&mut used, &mut a, 0..3);
        problem.run(&mut fresh, &mut b, 0..3);
        assert_eq!(bits(&a.download(&Cpu).unwrap()), bits(&b.download(&Cpu).unwrap()), "{config:?}, then {other:?}");
    }
}

/// An optimizer put back from its states and from its progress as JSON goes on as if it had never stopped, bit for bit.
#[test]
fn restored_optimizers_go_on_bit_for_bit() {
    let problem = Problem::new(101);
    for config in configs() {
        let mut whole = problem.optimizer(&config);
        let mut a = problem.parameters();
        problem.run(&mut whole, &mut a, 0..5);
        let states = (0..whole.state_count()).map(|index| whole.read_state(&Cpu, index).unwrap()).collect::<Vec<_>>();
        let json = serde_json::to_string(&whole.progress()).unwrap();
        let mut resumed = problem.optimizer(&config);
        let mut b = problem.parameters();
        b.copy_from(&Cpu, &a).unwrap();
        let progress: OptimizerProgress = serde_json::from_str(&json).unwrap();
        resumed.restore(&Cpu, progress, &states).unwrap();
        problem.run(&mut whole, &mut a, 5..STEPS);
        problem.run(&mut resumed, &mut b, 5..STEPS);
        assert_eq!(bits(&a.download(&Cpu).unwrap()), bits(&b.download(&Cpu).unwrap()), "{config:?}");
        assert_eq!(whole.progress(), resumed.progress());
        assert!(resumed.restore(&Cpu, progress, &[]).is_err());
        let short: Vec<Vec<f32>> = states.iter().map(|state| state[1..].to_vec()).collect();
        assert!(resumed.restore(&Cpu, progress, &short).is_err());
    }
}

/// The number of threads does not show.
#[test]
fn results_do_not_depend_on_threads() {
    let problem = Problem::new(9001);
    for kind in OptimizerKind::ALL {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut optimizer = problem.optimizer(&OptimizerConfig::new(kind, 1e-2));
            let mut parameters = problem.parameters();
            pool.install(|| problem.run(&mut optimizer, &mut parameters, 0..2));
            bits(&parameters.download(&Cpu).unwrap())
        };
        assert_eq!(run(1), run(3), "{kind}");
    }
}

/// A learning rate that is not an f32 is refused before it can reach the weights.
#[test]
fn coefficients_beyond_f32_are_refused() {
    let problem = Problem::new(10);
    for kind in OptimizerKind::ALL {
        let mut optimizer = problem.optimizer(&OptimizerConfig::new(kind, 1e39));
        let mut parameters = problem.parameters();
        let gradients = Gradients::zeros(&Cpu, "gradients", &problem.layout).unwrap();
        let error = optimizer.step(&Cpu, &mut parameters, &gradients).unwrap_err().to_string();
        assert!(error.contains(kind.name()) && error.contains("1e39"), "{error}");
        assert_eq!(parameters.download(&Cpu).unwrap(), problem.weights);
        assert_eq!(optimizer.progress(), OptimizerProgress::default());
    }
}

/// States that wait in main memory, and steps that move through a window (which does not divide their length), change no
/// bit: not of the weights, nor of what a checkpoint reads, nor after a reset or a restore.
#[test]
fn parked_states_change_no_bit() {
    let problem = Problem::new(101);
    for config in configs() {
        let parked = || Optimizer::parked(&Cpu, "parked", config.clone(), problem.layout.len(), 17).unwrap();
        let mut resident = problem.optimizer(&config);
        let mut moved = parked();
        let mut a = problem.parameters();
        let mut b = problem.parameters();
        problem.run(&mut resident, &mut a, 0..5);
        problem.run(&mut moved, &mut b, 0..5);
        assert_eq!(bits(&a.download(&Cpu).unwrap()), bits(&b.download(&Cpu).unwrap()), "{config:?}");
        let read = |optimizer: &Optimizer<Cpu>| -> Vec<Vec<f32>> {
            (0..optimizer.state_count()).map(|index| optimizer.read_state(&Cpu, index).unwrap()).collect()
        };
        let states = read(&moved);
        assert_eq!(read(&resident), states);
        let mut restored = parked();
        restored.restore(&Cpu, moved.progress(), &states).unwrap();
        problem.run(&mut resident, &mut a, 5..STEPS);
        problem.run(&mut restored, &mut b, 5..STEPS);
        assert_eq!(bits(&a.download(&Cpu).unwrap()), bits(&b.download(&Cpu).unwrap()), "{config:?}");
        restored.reset(&Cpu, config.clone()).unwrap();
        assert!(read(&restored).iter().flatten().all(|value| *value == 0.0));
    }
}
