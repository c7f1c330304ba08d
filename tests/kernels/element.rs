//! Element-wise kernels, the embedding and the reductions.

use temper::backend::cpu::Cpu;
use temper::backend::cuda::Cuda;
use temper::ops::{self, Backend, DType, Matrix, MatrixMut};

use crate::operand::{OFFSETS, Operand, SHAPES, assert_schedule_does_not_show, integers};
use crate::support::{bound, modes, random};

const F32: DType = DType::F32;

fn simulated() -> Cuda {
    Cuda::simulated(F32).expect("a simulated device")
}

#[test]
fn swiglu_forward_and_backward() {
    for cuda in modes() {
        let dtype = cuda.compute_dtype();
        for (case, (rows, cols)) in SHAPES.into_iter().enumerate() {
            for offset in OFFSETS {
                let mut random = random(case as u64);
                let gate_up = Operand::random(&cuda, &mut random, dtype, (rows, 2 * cols), offset, 2.0);
                let d_h = Operand::random(&cuda, &mut random, dtype, (rows, cols), 0, 1.0);
                let mut h = Operand::poisoned(&cuda, dtype, (rows, cols), offset);
                let mut d_gate_up = Operand::poisoned(&cuda, dtype, (rows, 2 * cols), 0);
                Cpu.run(ops::SwigluForward { gate_up: gate_up.cpu(), h: h.cpu_mut() }).expect("forward");
                cuda.run(ops::SwigluForward { gate_up: gate_up.cuda(), h: h.cuda_mut() }).expect("forward");
                h.assert_close(&cuda, bound(dtype), "swiglu forward");
                Cpu.run(ops::SwigluBackward { d_h: d_h.cpu(), gate_up: gate_up.cpu(), d_gate_up: d_gate_up.cpu_mut() })
                    .expect("backward");
                cuda.run(ops::SwigluBackward {
                    d_h: d_h.cuda(),
                    gate_up: gate_up.cuda(),
                    d_gate_up: d_gate_up.cuda_mut(),
                })
                .expect("backward");
                d_gate_up.assert_close(&cuda, bound(dtype), "swiglu backward");
            }
        }
    }
}

/// Where the exponential overflows, the sigmoid is 0 or 1 and nothing else.
#[test]
fn swiglu_of_huge_gates_is_a_product_or_zero() {
    for cuda in modes() {
        let dtype = cuda.compute_dtype();
        let gates = [128.0, -128.0, 4096.0, -4096.0, 1e30, -1e30, 0.0];
        let row = [&gates[..], &[2.0; 7]].concat();
        let gate_up = Operand::new(&cuda, dtype, (1, 14), 0, &row);
        let d_h = Operand::new(&cuda, dtype, (1, 7), 0, [1.0; 7]);
        let mut h = Operand::poisoned(&cuda, dtype, (1, 7), 0);
        let mut d_gate_up = Operand::poisoned(&cuda, dtype, (1, 14), 0);
        cuda.run(ops::SwigluForward { gate_up: gate_up.cuda(), h: h.cuda_mut() }).expect("forward");
        cuda.run(ops::SwigluBackward { d_h: d_h.cuda(), gate_up: gate_up.cuda(), d_gate_up: d_gate_up.cuda_mut() })
            .expect("backward");
        let h = h.found(&cuda);
        let gradient = d_gate_up.found(&cuda);
        for (i, gate) in gate_up.found(&cuda)[..7].iter().enumerate() {
            let silu = gate.max(0.0);
            let close = |found: f32, expected: f32| (found - expected).abs() <= 1e-2 * expected.abs() + 1e-6;
            assert!(close(h[i], 2.0 * silu), "silu({gate}) = {}", h[i] / 2.0);
            assert!(close(gradient[7 + i], silu), "d_up at {gate}: {}", gradient[7 + i]);
            let slope = if *gate == 0.0 { 0.5 } else { f32::from(*gate > 0.0) };
            assert!(close(gradient[i], 2.0 * slope), "d_gate at {gate}: {}", gradient[i]);
        }
    }
}

#[test]
fn gathered_rows_are_copies() {
    for cuda in modes() {
        let dtype = cuda.compute_dtype();
        for (case, (rows, cols)) in SHAPES.into_iter().enumerate() {
            for offset in OFFSETS {
                let mut random = random(case as u64);
                let table = Operand::random(&cuda, &mut random, dtype, (11, cols), offset, 1.0);
                let ids: Vec<u32> = (0..rows).map(|_| random.below(11) as u32).collect();
                let (cpu_ids, cuda_ids) = integers(&cuda, &ids);
                let mut out = Operand::poisoned(&cuda, dtype, (rows, cols), offset);
                Cpu.run(ops::GatherRows { from: table.cpu(), indices: cpu_ids.view(), out: out.cpu_mut() })
                    .expect("gather");
                cuda.run(ops::GatherRows { from: table.cuda(), indices: cuda_ids.view(), out: out.cuda_mut() })
                    .expect("gather");
                out.assert_same(&cuda, "gather_rows");
            }
        }
    }
}

/// Ids of `tokens` tokens: a third of them one frequent id, the rest drawn from `vocabulary`.
fn token_ids(case: u64, tokens: usize, vocabulary: usize) -> Vec<u32> {
    let mut random = random(1000 + case);
    let id = |i: usize, drawn: usize| if i % 3 == 1 { vocabulary / 2 } else { drawn };
    (0..tokens).map(|i| id(i, random.below(vocabulary)) as u32).collect()
}

/// Sums are those of the CPU to the last bit, because they run in its order: over one and several tiles of tokens, runs
/// longer than a warp reads at once, rows that nobody adds to, and columns beyond one warp's.
#[test]
fn the_embedding_gradient_adds_in_token_order() {
    for cuda in modes() {
        let dtype = cuda.compute_dtype();
        let shapes = [
            (1, 1, 3),
            (5, 7, 4),
            (40, 129, 9),
            (3, 4096, 2),
            (513, 24, 50),
            (1300, 8, 7),
            (70, 520, 1),
            (5000, 4, 3000),
        ];
        for (case, (tokens, cols, vocabulary)) in shapes.into_iter().enumerate() {
            for offset in [0, 4, 1] {
                let mut random = random(case as u64);
                let (cpu_ids, cuda_ids) = integers(&cuda, &token_ids(case as u64, tokens, vocabulary));
                let d_out = Operand::random(&cuda, &mut random, dtype, (tokens, cols), offset, 1.0);
                let mut d_table = Operand::random(&cuda, &mut random, F32, (vocabulary, cols), offset, 1.0);
                Cpu.run(ops::EmbeddingBackward { ids: cpu_ids.view(), d_out: d_out.cpu(), d_table: d_table.cpu_mut() })
                    .expect("backward");
                cuda.run(ops::EmbeddingBackward {
                    ids: cuda_ids.view(),
                    d_out: d_out.cuda(),
                    d_table: d_table.cuda_mut(),
                })
                .expect("backward");
                d_table.assert_same(&cuda, "embedding_backward");
            }
        }
    }
}

#[test]
fn a_weighted_sum_adds_to_its_slot() {
    let cuda = simulated();
    for n in [0, 1, 31, 1000, 5001] {
        let mut random = random(n as u64);
        let a = Operand::random(&cuda, &mut random, F32, (n, 1), 1, 1.0);
        let b = Operand::random(&cuda, &mut random, F32, (n, 1), 0, 1.0);
        let mut out = Operand::new(&cuda, F32, (1, 1), 5, [0.75]);
        Cpu.run(ops::WeightedSum { a: a.cpu(), b: b.cpu(), scale: 0.5, out: out.cpu_mut() }).expect("sum");
        cuda.run(ops::WeightedSum { a: a.cuda(), b: b.cuda(), scale: 0.5, out: out.cuda_mut() }).expect("sum");
        out.assert_close(&cuda, 1e-6, "weighted_sum");
    }
}

#[test]
fn a_squared_norm_is_the_sum_in_f64() {
    let cuda = simulated();
    for n in [0, 1, 7, 129, 4096, 100_003] {
        for offset in [0, 1] {
            let x = Operand::random(&cuda, &mut random(n as u64), F32, (1, n), offset, 1.0);
            let found = cuda.run(ops::SquaredNorm { x: x.cuda() }).expect("norm");
            let exact: f64 = x.expected().iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            assert!((found - exact).abs() <= 1e-13 * exact, "{n}: {found} instead of {exact}");
        }
    }
}

/// Finite for the largest numbers, whose squares f32 does not hold, and not finite for one NaN or infinity anywhere.
#[test]
fn a_squared_norm_is_finite_exactly_when_all_elements_are() {
    let cuda = simulated();
    let norm = |values: &[f32]| {
        let x = Operand::new(&cuda, F32, (1, values.len()), 0, values);
        cuda.run(ops::SquaredNorm { x: x.cuda() }).expect("norm")
    };
    assert!(norm(&[f32::MAX; 1000]).is_finite());
    for place in [0, 500, 1001, 1002] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![1.0; 1003];
            values[place] = bad;
            assert!(!norm(&values).is_finite(), "{bad} at {place}");
        }
    }
}

/// The accumulated gradient and the masked sum have the oracle's bits, for lengths around vectors and at every alignment; where
/// signs differ nothing of the other gradient is left, and what is no number stays.
#[test]
fn sign_mask() {
    let cuda = simulated();
    for len in [1, 3, 8, 1021, 70_000] {
        for offset in OFFSETS {
            let mut random = random(len as u64);
            let masked = Operand::random(&cuda, &mut random, F32, (1, len), offset, 1.0);
            let [mut accumulated, mut gradient] =
                [0; 2].map(|_| Operand::random(&cuda, &mut random, F32, (1, len), offset, 1.0));
            run_sign_mask(&Cpu, masked.cpu(), accumulated.cpu_mut(), gradient.cpu_mut());
            run_sign_mask(&cuda, masked.cuda(), accumulated.cuda_mut(), gradient.cuda_mut());
            accumulated.assert_same(&cuda, "accumulated gradient");
            gradient.assert_same(&cuda, "masked sum");
        }
    }
    let masked = Operand::new(&cuda, F32, (1, 6), 0, [2.0, -2.0, 0.0, f32::NAN, 2.0, -2.0]);
    let mut accumulated = Operand::new(&cuda, F32, (1, 6), 0, [4.0, 4.0, 4.0, 4.0, f32::NAN, -4.0]);
    let mut gradient = Operand::new(&cuda, F32, (1, 6), 0, [8.0, 8.0, 8.0, 8.0, 8.0, -8.0]);
    run_sign_mask(&cuda, masked.cuda(), accumulated.cuda_mut(), gradient.cuda_mut());
    let [after, sum] = [accumulated.found(&cuda), gradient.found(&cuda)];
    assert_eq!([after[0], after[1], after[2], after[5]], [5.0, 5.0, 5.0, -5.0]);
    assert_eq!([sum[0], sum[1], sum[2], sum[5]], [6.0, 5.0, 5.0, -6.0]);
    assert!(sum[3].is_nan() && sum[4].is_nan());
}

fn run_sign_mask<B: Backend>(backend: &B, masked: Matrix<B>, accumulated: MatrixMut<B>, gradient: MatrixMut<B>) {
    backend.run(ops::SignMask { masked, scale: 0.5, decay: 0.75, accumulated, gradient }).expect("a sum");
}

#[test]
fn sums_do_not_depend_on_the_schedule() {
    assert_schedule_does_not_show(F32, |cuda| {
        let mut random = random(0);
        let x = Operand::random(cuda, &mut random, F32, (1, 30_001), 0, 1.0);
        let mut out = Operand::new(cuda, F32, (1, 1), 0, [0.0]);
        cuda.run(ops::WeightedSum { a: x.cuda(), b: x.cuda(), scale: 1.0, out: out.cuda_mut() }).expect("sum");
        let norm = cuda.run(ops::SquaredNorm { x: x.cuda() }).expect("norm").to_bits();
        let high = (norm >> 32) as u32;
        let low = norm as u32;
        [out.found(cuda), vec![f32::from_bits(high), f32::from_bits(low)]].concat()
    });
    assert_schedule_does_not_show(DType::Bf16, |cuda| {
        let mut random = random(1);
        let (_, ids) = integers(cuda, &token_ids(1, 600, 5));
        let d_out = Operand::random(cuda, &mut random, DType::Bf16, (600, 16), 0, 1.0);
        let mut d_table = Operand::random(cuda, &mut random, F32, (5, 16), 0, 1.0);
        cuda.run(ops::EmbeddingBackward { ids: ids.view(), d_out: d_out.cuda(), d_table: d_table.cuda_mut() })
            .expect("backward");
        d_table.found(cuda)
    });
}

#[test]
fn nothing_is_done_for_no_rows() {
    for cuda in modes() {
        let dtype = cuda.compute_dtype();
        let (_, ids) = integers(&cuda, &[]);
        let mut random = random(0);
        let mut table = Operand::random(&cuda, &mut random, F32, (4, 8), 1, 1.0);
        let stored = Operand::random(&cuda, &mut random, dtype, (4, 8), 1, 1.0);
        let [mut wide, mut none] = [16, 8].map(|cols| Operand::poisoned(&cuda, dtype, (0, cols), 1));
        let empty = Operand::poisoned(&cuda, dtype, (0, 8), 1);
        cuda.run(ops::GatherRows { from: stored.cuda(), indices: ids.view(), out: none.cuda_mut() })
            .expect("embedding");
        cuda.run(ops::EmbeddingBackward { ids: ids.view(), d_out: empty.cuda(), d_table: table.cuda_mut() })
            .expect("embedding");
        cuda.run(ops::SwigluForward { gate_up: wide.cuda(), h: none.cuda_mut() }).expect("swiglu");
        cuda.run(ops::SwigluBackward {
            d_h: empty.cuda(),
            gate_up: Operand::poisoned(&cuda, dtype, (0, 16), 1).cuda(),
            d_gate_up: wide.cuda_mut(),
        })
        .expect("swiglu");
        table.assert_same(&cuda, "the table");
        for operand in [wide, none] {
            assert!(operand.found(&cuda).is_empty());
        }
    }
}

/// A kernel would read past the end of a buffer of a narrower dtype.
#[test]
fn operands_of_another_dtype_are_refused() {
    let cuda = Cuda::simulated(DType::Bf16).expect("a simulated device");
    let narrow = Operand::random(&cuda, &mut random(0), DType::Bf16, (1, 8), 0, 1.0);
    let mut wide = Operand::random(&cuda, &mut random(0), F32, (1, 1), 0, 1.0);
    let sum = ops::WeightedSum { a: narrow.cuda(), b: narrow.cuda(), scale: 1.0, out: wide.cuda_mut() };
    let refused = cuda.run(sum).expect_err("a bf16 operand");
    assert!(refused.to_string().contains("a is stored as Bf16"), "{refused}");
    assert!(cuda.run(ops::SquaredNorm { x: narrow.cuda() }).is_err());
    wide.assert_same(&cuda, "the destination");
}
