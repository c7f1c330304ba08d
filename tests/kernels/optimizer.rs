//! Every optimizer rule, on f32 weights and on bf16 weights with remainders, against the CPU's f32.

use temper::backend::cpu::Cpu;
use temper::backend::cuda::Cuda;
use temper::ops::{self, Backend, COEFFICIENTS, DType, MatrixMut, StateRounding, Tensor, UpdateRule};
use temper::random::{Random, Stream, philox};

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
    let beta1 = 0.9f32;
    let beta2 = 0.99f32;
    let rest1 = 1.0 - beta1;
    let rest2 = 1.0 - beta2;
    let unbias1 = 1.0 / (1.0 - beta1.powi(t));
    let unbias2 = 1.0 / (1.0 - beta2.powi(t));
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
    /// Seed (low, high) and draw, where moments are bf16.
    rounding: Option<[u32; 3]>,
    steps: u32,
    offset: usize,
    len: usize,
}

impl<B: Backend> Model<B> {
    /// `values` from element `offset` on, as the backend stores weights.
    fn new(backend: &B, rule: UpdateRule, values: &[f32], offset: usize) -> Self {
        Self::with_moments(backend, rule, values, offset, None)
    }

    /// The same with bf16 moments, if there is a key to round them with.
    fn with_moments(backend: &B, rule: UpdateRule, values: &[f32], offset: usize, rounding: Option<[u32; 3]>) -> Self {
        let framed = [&vec![0.0; offset], values].concat();
        let stored = |dtype| {
            let mut tensor = Tensor::zeros(backend, "weights", 1, framed.len(), dtype).expect("memory");
            backend.upload_f32(tensor.buffer_mut(), 0, &framed).expect("an upload");
            tensor
        };
        let dtype = backend.compute_dtype();
        let moments = if rounding.is_some() { DType::Bf16 } else { F32 };
        let state =
            |index| Tensor::zeros(backend, "state", 1, framed.len(), rule.state_dtype(index, moments)).expect("memory");
        Self {
            weights: stored(dtype),
            remainder: (dtype == DType::Bf16).then(|| stored(DType::Remainder16)),
            states: (0..rule.states()).map(state).collect(),
            rounding,
            steps: 0,
            offset,
            len: values.len(),
        }
    }

    fn step(&mut self, backend: &B, rule: UpdateRule, c: [f32; COEFFICIENTS], gradients: ops::Matrix<B>) {
        let offset = self.offset;
        let len = self.len;
        let part = |tensor| view(tensor, offset, len);
        let c = Tensor::from_f32(backend, "coefficients", 1, COEFFICIENTS, &c).expect("memory");
        let states: Vec<MatrixMut<B>> = self.states.iter_mut().map(part).collect();
        let remainder = self.remainder.as_mut().map(part);
        let key = self
            .rounding
            .map(|[low, high, draw]| Tensor::from_u32(backend, "key", &[low, high, self.steps, draw]).expect("memory"));
        // The place of an element is its place in the buffer, so that results do not depend on the offset of a call.
        let rounding = key.as_ref().map(|key| StateRounding { key: key.view(), first: offset });
        let weights = part(&mut self.weights);
        backend
            .run(ops::OptimizerUpdate { rule, coefficients: c.view(), weights, remainder, gradients, states, rounding })
            .expect("an update");
        self.steps += 1;
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
                let mut cpu = Model::new(&Cpu, rule, &start, offset);
                let mut device = Model::new(&cuda, rule, &start, offset);
                for t in 1..=4 {
                    let g = Operand::new(&cuda, F32, (1, n), offset, gradients(&mut random, n));
                    let c = coefficients(rule, t, 1e-2);
                    cpu.step(&Cpu, rule, c, g.cpu());
                    device.step(&cuda, rule, c, g.cuda());
                }
                let expected = cpu.weights(&Cpu);
                let found = device.weights(&cuda);
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
    let n = 1003;
    let mut random = random(0);
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
    let expected = update(cpu.weights(&Cpu));
    let found = update(device.weights(&cuda));
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
    let states = vec![view(&mut model.states[0], 0, 2)];
    let weights = view(&mut model.weights, 0, 2);
    let refused = cuda.run(ops::OptimizerUpdate {
        rule: UpdateRule::Sgd,
        coefficients: c.view(),
        weights,
        remainder: None,
        gradients: g.cuda(),
        states,
        rounding: None,
    });
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

/// The random bits of state `index` of the element at `place`, as `StateRounding` documents them.
fn rounding_bits([low, high, draw]: [u32; 3], step: u32, place: usize, index: usize) -> u32 {
    let block = philox([(place / 4) as u32, step, draw, (Stream::StateRounding as u32) << 24], [low, high]);
    block[place % 4] >> (16 * index) & 0xffff
}

/// bf16 moments are the CPU's f32 moments, rounded with the documented bits, and the weights move as with f32 moments: the
/// CPU starts every step from what the device stored. An element may differ where its f32 is within an error of the
/// threshold: one in a thousand, by one spacing.
#[test]
fn bf16_moments_are_f32_moments_rounded_with_the_documented_bits() {
    let cuda = Cuda::simulated(DType::Bf16).expect("a simulated device");
    const KEY: [u32; 3] = [7, 1, 12];
    for rule in RULES {
        for (n, offset) in [(1, 0), (7, 0), (129, 1), (4096, 4), (25_003, 0), (130, 3)] {
            let mut random = random(n as u64);
            let start = normals(&mut random, n, 0.5);
            let mut cpu = Model::new(&Cpu, rule, &start, offset);
            let mut device = Model::with_moments(&cuda, rule, &start, offset, Some(KEY));
            for t in 1..=3 {
                let g = Operand::new(&cuda, F32, (1, n), offset, gradients(&mut random, n));
                let c = coefficients(rule, t, 1e-2);
                cpu.step(&Cpu, rule, c, g.cpu());
                device.step(&cuda, rule, c, g.cuda());
                let error = relative_error(&device.weights(&cuda), &cpu.weights(&Cpu));
                assert!(error <= 1e-6, "{rule:?} {n}: weights {error:.1e}");
                let found = device.states(&cuda);
                let exact = cpu.states(&Cpu);
                let mut others = 0;
                for (i, (found, exact)) in found.iter().zip(&exact).enumerate() {
                    let index = i / n;
                    let place = offset + i % n;
                    if rule.state_dtype(index, DType::Bf16) == F32 {
                        assert!((found - exact).abs() <= 1e-6 * exact.abs().max(1e-3), "{rule:?}: z {found} {exact}");
                        continue;
                    }
                    let inner = exact.to_bits() & 0xffff_0000;
                    let fraction = exact.to_bits() & 0xffff;
                    let up = fraction + rounding_bits(KEY, t as u32 - 1, place, index) >= 0x1_0000;
                    let expected = f32::from_bits(if up { inner + 0x1_0000 } else { inner });
                    others += usize::from(found.to_bits() != expected.to_bits());
                    assert!((found - exact).abs() <= exact.abs() / 127.0 + 1e-37, "{rule:?}: {found} {exact}");
                }
                assert!(others <= found.len() / 1000 + 1, "{rule:?} {n}: {others} of {} differ", found.len());
                for (index, state) in cpu.states.iter_mut().enumerate() {
                    Cpu.upload_f32(state.buffer_mut(), offset, &found[index * n..][..n]).expect("an upload");
                }
            }
        }
    }
}

/// With β2 = 0.999 a step changes a second moment by less than half a spacing of bf16. Rounded at random, the mean over
/// many elements follows f32 all the same, both on the way up and on the way down; rounded to the nearest, it stalls.
#[test]
fn second_moments_in_bf16_follow_f32_on_average() {
    const RULE: UpdateRule = UpdateRule::Adam;
    let cuda = Cuda::simulated(DType::Bf16).expect("a simulated device");
    let n = 16_384;
    let steps = 400;
    let turn = 200;
    let start = vec![0.0; n];
    let mut cpu = Model::new(&Cpu, RULE, &start, 0);
    let mut nearest = Model::new(&Cpu, RULE, &start, 0);
    let mut device = Model::with_moments(&cuda, RULE, &start, 0, Some([1, 0, 0]));
    // The second moment starts at 1, rises towards 3 and then falls towards 0.
    let ones = vec![1.0; n];
    Cpu.upload_f32(cpu.states[1].buffer_mut(), 0, &ones).expect("an upload");
    Cpu.upload_f32(nearest.states[1].buffer_mut(), 0, &ones).expect("an upload");
    cuda.upload_f32(device.states[1].buffer_mut(), 0, &ones).expect("an upload");
    let c = [0.1, 0.999, 0.001, 1e-8, 0.0, 0.0, 1e-3, 1.0, 0.0];
    let mean = |states: Vec<f32>| states[n..].iter().map(|v| f64::from(*v)).sum::<f64>() / n as f64;
    for t in 0..steps {
        let gradient = if t < turn { 3f32.sqrt() } else { 0.0 };
        let g = Operand::new(&cuda, F32, (1, n), 0, vec![gradient; n]);
        cpu.step(&Cpu, RULE, c, g.cpu());
        device.step(&cuda, RULE, c, g.cuda());
        nearest.step(&Cpu, RULE, c, g.cpu());
        let rounded = |v: f32| half::bf16::from_f32(v).to_f32();
        let states: Vec<f32> = nearest.states(&Cpu).into_iter().map(rounded).collect();
        Cpu.upload_f32(nearest.states[1].buffer_mut(), 0, &states[n..]).expect("an upload");
        if t + 1 == turn || t + 1 == steps {
            let exact = mean(cpu.states(&Cpu));
            let found = mean(device.states(&cuda));
            println!("step {t}: f32 {exact:.5}, bf16 {found:.5}, nearest {:.5}", mean(nearest.states(&Cpu)));
            assert!((found / exact - 1.0).abs() < 1.5e-3, "step {t}: {found} instead of {exact}");
        }
    }
    let stalled = mean(nearest.states(&Cpu));
    assert!((stalled / mean(cpu.states(&Cpu)) - 1.0).abs() > 0.05, "to the nearest is off: {stalled}");
}

/// The same bits whatever the order of threads, and for a matrix in one launch, in two, or from an odd element on.
#[test]
fn bf16_moments_do_not_depend_on_the_launch() {
    const RULE: UpdateRule = UpdateRule::Adam;
    let run = |cuda: &Cuda, cut: usize| -> Vec<f32> {
        let n = 5003;
        let mut random = random(3);
        let start = vec![0.5; n];
        let mut model = Model::with_moments(cuda, RULE, &start, 0, Some([3, 4, 5]));
        let g = normals(&mut random, n, 1.0);
        for (offset, len) in [(0, cut), (cut, n - cut)] {
            (model.offset, model.len, model.steps) = (offset, len, 0);
            let part = Operand::new(cuda, F32, (1, len), offset, &g[offset..offset + len]);
            model.step(cuda, RULE, coefficients(RULE, 1, 1e-2), part.cuda());
        }
        (model.offset, model.len) = (0, n);
        model.states(cuda)
    };
    crate::operand::assert_schedule_does_not_show(DType::Bf16, |cuda| run(cuda, 0));
    let cuda = Cuda::simulated(DType::Bf16).expect("a simulated device");
    let whole = bits(&run(&cuda, 0));
    for cut in [4, 1003, 4997] {
        assert_eq!(bits(&run(&cuda, cut)), whole, "cut at {cut}");
    }
}

/// bf16 moments go with bf16 weights, and the CPU has neither.
#[test]
fn bf16_moments_are_refused_where_there_are_none() {
    use temper::optimizer::{Optimizer, OptimizerConfig, OptimizerKind};
    let config = OptimizerConfig::new(OptimizerKind::AdamW, 1e-3);
    let f32 = Cuda::simulated(F32).expect("a simulated device");
    let refusals = [
        Optimizer::with_bf16_moments(&Cpu, "optimizer", config.clone(), 8).err(),
        Optimizer::with_bf16_moments(&f32, "optimizer", config, 8).err(),
    ];
    for refused in refusals {
        let message = refused.expect("an error").to_string();
        assert!(message.starts_with("memory.states: ") && message.contains("`precision` bf16"), "{message}");
    }
    let cuda = Cuda::simulated(DType::Bf16).expect("a simulated device");
    let mut model = Model::new(&cuda, UpdateRule::Sgd, &[1.0, 2.0], 0);
    let g = Operand::new(&cuda, F32, (1, 2), 0, [1.0, 1.0]);
    let c = Tensor::from_f32(&cuda, "coefficients", 1, COEFFICIENTS, &[0.1; COEFFICIENTS]).expect("memory");
    let key = Tensor::from_u32(&cuda, "key", &[0; 4]).expect("memory");
    let rounding = Some(StateRounding { key: key.view(), first: 0 });
    let states = vec![view(&mut model.states[0], 0, 2)];
    let refused = cuda.run(ops::OptimizerUpdate {
        rule: UpdateRule::Sgd,
        coefficients: c.view(),
        weights: view(&mut model.weights, 0, 2),
        remainder: model.remainder.as_mut().map(|r| view(r, 0, 2)),
        gradients: g.cuda(),
        states,
        rounding,
    });
    assert!(refused.expect_err("f32 states").to_string().contains("a state is stored as F32"));
}
