//! Every optimizer rule, on f32 weights and on bf16 weights with remainders, against the CPU's f32.

use temper::backend::cpu::Cpu;
use temper::backend::cuda::Cuda;
use temper::ops::{self, Backend, COEFFICIENTS, DType, MatrixMut, Tensor, UpdateRule};
use temper::random::Random;

use crate::operand::{Operand, bits};
use crate::support::{modes, normals, random, relative_error};

const F32: DType = DType::F32;
const RULES: [UpdateRule; 7] = [
    UpdateRule::Adam,
    UpdateRule::Sgd,
    UpdateRule::Adagrad,
    UpdateRule::Adadelta,
    UpdateRule::NAdam,
    UpdateRule::RAdam,
    UpdateRule::ScheduleFreeAdamW,
];

/// Coefficients of step `t` (from 1), every one of them in use; which branch a rule takes differs from step to step.
fn coefficients(rule: UpdateRule, t: i32, lr: f32) -> [f32; COEFFICIENTS] {
    let (beta1, beta2) = (0.9f32, 0.99f32);
    let (rest1, rest2) = (1.0 - beta1, 1.0 - beta2);
    let (unbias1, unbias2) = (1.0 / (1.0 - beta1.powi(t)), 1.0 / (1.0 - beta2.powi(t)));
    let first = if t == 1 { 1.0 } else { 0.0 };
    let nesterov = (t % 2) as f32;
    match rule {
        UpdateRule::Adam => [rest1, beta2, rest2, 1e-8, lr * 0.01, 1e-3, lr * unbias1, unbias2.sqrt(), 0.0],
        UpdateRule::Sgd => [lr, beta1, 1e-3, nesterov, first, 0.0, 0.0, 0.0, 0.0],
        UpdateRule::Adagrad => [lr, 1e-8, 1e-3, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        UpdateRule::Adadelta => [lr, beta1, rest1, 1e-6, 1e-3, 0.0, 0.0, 0.0, 0.0],
        UpdateRule::NAdam => [rest1, beta2, rest2, 1e-8, 1e-3, unbias2, lr * 0.2, lr * 0.8 * unbias1, 0.0],
        UpdateRule::RAdam if t < 3 => [rest1, beta2, rest2, 1e-8, 1e-3, 0.0, lr * unbias1, 0.0, 0.0],
        UpdateRule::RAdam => [rest1, beta2, rest2, 1e-8, 1e-3, lr * 0.3, 0.0, 0.0, 0.0],
        UpdateRule::ScheduleFreeAdamW => {
            let average = 1.0 / t as f32;
            [beta2, rest2, 1e-8, 0.01, average, lr, lr * (beta1 * (1.0 - average) - 1.0), unbias2, first]
        }
    }
}

/// Parameters with their optimizer states on one backend.
struct Model<B: Backend> {
    weights: Tensor<B>,
    remainder: Option<Tensor<B>>,
    states: Vec<Tensor<B>>,
    offset: usize,
    len: usize,
}

impl<B: Backend> Model<B> {
    /// `values` from element `offset` on, as the backend stores weights.
    fn new(backend: &B, rule: UpdateRule, values: &[f32], offset: usize) -> Self {
        let framed = [&vec![0.0; offset], values].concat();
        let stored = |dtype| {
            let mut tensor = Tensor::zeros(backend, "weights", 1, framed.len(), dtype).expect("memory");
            backend.upload_f32(tensor.buffer_mut(), 0, &framed).expect("an upload");
            tensor
        };
        let dtype = backend.compute_dtype();
        let state = |_| Tensor::zeros(backend, "state", 1, framed.len(), F32).expect("memory");
        Self {
            weights: stored(dtype),
            remainder: (dtype == DType::Bf16).then(|| stored(DType::Remainder16)),
            states: (0..rule.states()).map(state).collect(),
            offset,
            len: values.len(),
        }
    }

    fn step(&mut self, backend: &B, rule: UpdateRule, c: [f32; COEFFICIENTS], gradients: ops::Matrix<B>) {
        let (offset, len) = (self.offset, self.len);
        let part = |tensor| view(tensor, offset, len);
        let c = Tensor::from_f32(backend, "coefficients", 1, COEFFICIENTS, &c).expect("memory");
        let mut states: Vec<MatrixMut<B>> = self.states.iter_mut().map(part).collect();
        let remainder = self.remainder.as_mut().map(part);
        ops::optimizer_update(backend, rule, c.view(), part(&mut self.weights), remainder, gradients, &mut states)
            .expect("an update");
    }

    /// The weights as f32.
    fn weights(&self, backend: &B) -> Vec<f32> {
        let high = self.weights.to_vec(backend).expect("a download");
        let whole = match &self.remainder {
            None => high,
            Some(remainder) => {
                let low = remainder.to_vec(backend).expect("a download");
                let join = |(h, l): (&f32, &f32)| f32::from_bits(h.to_bits().wrapping_add_signed(*l as i32));
                high.iter().zip(&low).map(join).collect()
            }
        };
        assert!(whole[..self.offset].iter().all(|w| *w == 0.0), "a write before the matrix");
        whole[self.offset..].to_vec()
    }

    fn states(&self, backend: &B) -> Vec<f32> {
        let state = |tensor: &Tensor<B>| tensor.to_vec(backend).expect("a download")[self.offset..].to_vec();
        self.states.iter().flat_map(state).collect()
    }
}

fn view<B: Backend>(tensor: &mut Tensor<B>, offset: usize, cols: usize) -> MatrixMut<'_, B> {
    MatrixMut { buffer: tensor.buffer_mut(), offset, rows: 1, cols }
}

/// Gradients whose scale differs from element to element, some of them 0.
fn gradients(random: &mut Random, len: usize) -> Vec<f32> {
    let scale = |i: usize| if i % 7 == 6 { 0.0 } else { 10f32.powi(-(i as i32 % 4)) };
    normals(random, len, 1.0).iter().enumerate().map(|(i, g)| scale(i) * g).collect()
}

/// After several steps, weights and states are the CPU's: from the same f32 weights, in both storage forms, for lengths
/// with and without vectors, tails and several passes of a block.
#[test]
fn every_rule_moves_weights_as_the_cpu_does() {
    for cuda in modes() {
        for rule in RULES {
            for (n, offset) in [(1, 0), (7, 0), (129, 1), (4096, 4), (25_003, 0), (130, 3)] {
                let mut random = random(n as u64);
                let start = normals(&mut random, n, 0.5);
                let (mut cpu, mut device) =
                    (Model::new(&Cpu, rule, &start, offset), Model::new(&cuda, rule, &start, offset));
                for t in 1..=4 {
                    let g = Operand::new(&cuda, F32, (1, n), offset, gradients(&mut random, n));
                    let c = coefficients(rule, t, 1e-2);
                    cpu.step(&Cpu, rule, c, g.cpu());
                    device.step(&cuda, rule, c, g.cuda());
                }
                let (expected, found) = (cpu.weights(&Cpu), device.weights(&cuda));
                assert_ne!(bits(&expected), bits(&start));
                let error = relative_error(&found, &expected);
                let states = relative_error(&device.states(&cuda), &cpu.states(&Cpu));
                println!("{rule:?} {:?} {n}+{offset}: weights {error:.1e}, states {states:.1e}", cuda.compute_dtype());
                assert!(error <= 1e-6 && states <= 1e-6, "{rule:?} {n}: weights {error:.1e}, states {states:.1e}");
            }
        }
    }
}

/// 50 steps of AdamW at the learning rate of an attack move bf16 weights with remainders as f32 weights move. Rounded to
/// bf16 after every step they would hardly move: the update is far below half their spacing.
#[test]
fn a_small_learning_rate_is_not_lost() {
    const RULE: UpdateRule = UpdateRule::Adam;
    let cuda = Cuda::simulated(DType::Bf16).expect("a simulated device");
    let (n, mut random) = (1003, random(0));
    // Weights that bf16 holds exactly, between 0.5 and 1: their spacing is 2^-8.
    let start: Vec<f32> = (0..n).map(|_| 0.5 + random.below(128) as f32 / 256.0).collect();
    let mut cpu = Model::new(&Cpu, RULE, &start, 0);
    let mut device = Model::new(&cuda, RULE, &start, 0);
    let mut rounded = Model::new(&Cpu, RULE, &start, 0);
    for t in 1..=50 {
        let g = Operand::new(&cuda, F32, (1, n), 0, normals(&mut random, n, 1.0));
        let c = coefficients(RULE, t, 2e-6);
        cpu.step(&Cpu, RULE, c, g.cpu());
        device.step(&cuda, RULE, c, g.cuda());
        rounded.step(&Cpu, RULE, c, g.cpu());
        let plain = rounded.weights(&Cpu).iter().map(|w| half::bf16::from_f32(*w).to_f32()).collect::<Vec<_>>();
        Cpu.upload_f32(rounded.weights.buffer_mut(), 0, &plain).expect("an upload");
    }
    let update = |after: Vec<f32>| -> Vec<f32> { after.iter().zip(&start).map(|(a, b)| a - b).collect() };
    let (expected, found) = (update(cpu.weights(&Cpu)), update(device.weights(&cuda)));
    assert!(expected.iter().filter(|d| **d != 0.0).count() > n * 9 / 10, "f32 weights move");
    let error = relative_error(&found, &expected);
    println!("update {error:.1e}");
    assert!(error <= 1e-6, "the total update is off by {error:.1e}");
    let lost = relative_error(&update(rounded.weights(&Cpu)), &expected);
    assert!(lost > 0.99, "plain bf16 loses the update, but was off by {lost} only");
}

/// Joined and split again without an update, every kind of f32 keeps its bits; a NaN becomes the one NaN.
#[test]
fn a_step_of_nothing_keeps_every_bit() {
    let cuda = Cuda::simulated(DType::Bf16).expect("a simulated device");
    let mut values = vec![0.0, -0.0, f32::MAX, f32::MIN, f32::MIN_POSITIVE, f32::from_bits(1), f32::INFINITY];
    for high in [0x3f80u32, 0x3f81, 0xc2c7, 0x7f7f, 0x8001] {
        values.extend([1u32, 0x7fff, 0x8000, 0x8001, 0xffff].map(|low| f32::from_bits(high << 16 | low)));
    }
    let mut model = Model::new(&cuda, UpdateRule::Adagrad, &values, 0);
    let zero = Operand::new(&cuda, F32, (1, values.len()), 0, vec![0.0; values.len()]);
    model.step(&cuda, UpdateRule::Adagrad, [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], zero.cuda());
    // Infinity times the decay of 0 is not a number.
    let finite = |values: &[f32]| bits(values).into_iter().filter(|b| b & 0x7f80_0000 != 0x7f80_0000).collect();
    let (found, expected): (Vec<u32>, Vec<u32>) = (finite(&model.weights(&cuda)), finite(&values));
    assert_eq!(found, expected);
    let nan = model.weights(&cuda)[6];
    assert_eq!(nan.to_bits(), 0x7fc0_0000, "{nan}");
}

/// The kernel for f32 weights must not run on bf16 weights, nor without their remainders.
#[test]
fn weights_and_remainders_belong_together() {
    let cuda = Cuda::simulated(DType::Bf16).expect("a simulated device");
    let mut model = Model::new(&cuda, UpdateRule::Sgd, &[1.0, 2.0], 0);
    let g = Operand::new(&cuda, F32, (1, 2), 0, [1.0, 1.0]);
    let c = Tensor::from_f32(&cuda, "coefficients", 1, COEFFICIENTS, &[0.1; COEFFICIENTS]).expect("memory");
    let mut states = [view(&mut model.states[0], 0, 2)];
    let weights = view(&mut model.weights, 0, 2);
    let refused = ops::optimizer_update(&cuda, UpdateRule::Sgd, c.view(), weights, None, g.cuda(), &mut states);
    assert!(refused.expect_err("no remainder").to_string().contains("remainder"));
}

#[test]
fn no_parameters_are_no_work() {
    for cuda in modes() {
        for rule in RULES {
            let mut model = Model::new(&cuda, rule, &[], 0);
            let g = Operand::new(&cuda, F32, (1, 0), 0, []);
            model.step(&cuda, rule, coefficients(rule, 1, 0.1), g.cuda());
            assert!(model.weights(&cuda).is_empty());
        }
    }
}
