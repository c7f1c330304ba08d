//! RMS norm with the residual addition, and its gradient.

use std::collections::BTreeMap;

use temper::backend::cpu::Cpu;
use temper::backend::cuda::{Choices, Cuda, RowKernel, RowShape};
use temper::ops::{self, Backend, DType};

use crate::operand::{OFFSETS, Operand, SHAPES, assert_schedule_does_not_show};
use crate::support::{bound, modes, random};

const EPSILON: f32 = 1e-5;

/// With and without a delta; the statistics belong to the sum as it is stored.
#[test]
fn forward() {
    for cuda in modes() {
        let dtype = cuda.compute_dtype();
        for (case, shape) in SHAPES.into_iter().enumerate() {
            for offset in OFFSETS {
                let mut random = random(case as u64);
                let residual = Operand::random(&cuda, &mut random, dtype, shape, offset, 1.0);
                let delta = Operand::random(&cuda, &mut random, dtype, shape, 0, 1.0);
                let weight = Operand::random(&cuda, &mut random, dtype, (1, shape.1), offset, 1.0);
                for with_delta in [true, false] {
                    let [mut sum, mut normed] = [offset, 0].map(|at| Operand::poisoned(&cuda, dtype, shape, at));
                    let mut inverse = Operand::poisoned(&cuda, DType::F32, (shape.0, 1), 1);
                    Cpu.run(ops::RmsNormForward {
                        residual: residual.cpu(),
                        delta: with_delta.then(|| delta.cpu()),
                        weight: weight.cpu(),
                        epsilon: EPSILON,
                        sum: if with_delta { Some(sum.cpu_mut()) } else { None },
                        normed: normed.cpu_mut(),
                        inverse_rms: inverse.cpu_mut(),
                    })
                    .expect("forward");
                    cuda.run(ops::RmsNormForward {
                        residual: residual.cuda(),
                        delta: with_delta.then(|| delta.cuda()),
                        weight: weight.cuda(),
                        epsilon: EPSILON,
                        sum: if with_delta { Some(sum.cuda_mut()) } else { None },
                        normed: normed.cuda_mut(),
                        inverse_rms: inverse.cuda_mut(),
                    })
                    .expect("forward");
                    if with_delta {
                        sum.assert_close(&cuda, bound(dtype), "sum");
                    }
                    normed.assert_close(&cuda, bound(dtype), "normed");
                    inverse.assert_close(&cuda, bound(dtype), "inverse rms");
                }
            }
        }
    }
}

/// d_residual and d_weight of one call on the device and on the CPU, both added to what was there.
fn backward(cuda: &Cuda, case: u64, shape: (usize, usize), offset: usize, with_weight: bool) -> [Operand; 2] {
    let dtype = cuda.compute_dtype();
    let random = &mut random(case);
    let d_normed = Operand::random(cuda, random, dtype, shape, offset, 1.0);
    let x = Operand::random(cuda, random, dtype, shape, 0, 2.0);
    let weight = Operand::random(cuda, random, dtype, (1, shape.1), offset, 1.0);
    let inverses: Vec<f32> = x
        .expected()
        .chunks(shape.1)
        .map(|row| 1.0 / (row.iter().map(|x| x * x).sum::<f32>() / shape.1 as f32 + EPSILON).sqrt())
        .collect();
    let inverse = Operand::new(cuda, DType::F32, (shape.0, 1), 1, inverses);
    let mut d_residual = Operand::random(cuda, random, dtype, shape, offset, 1.0);
    let mut d_weight = Operand::random(cuda, random, DType::F32, (1, shape.1), offset, 1.0);
    Cpu.run(ops::RmsNormBackward {
        d_normed: d_normed.cpu(),
        x: x.cpu(),
        weight: weight.cpu(),
        inverse_rms: inverse.cpu(),
        d_residual: d_residual.cpu_mut(),
        d_weight: if with_weight { Some(d_weight.cpu_mut()) } else { None },
    })
    .expect("backward");
    cuda.run(ops::RmsNormBackward {
        d_normed: d_normed.cuda(),
        x: x.cuda(),
        weight: weight.cuda(),
        inverse_rms: inverse.cuda(),
        d_residual: d_residual.cuda_mut(),
        d_weight: if with_weight { Some(d_weight.cuda_mut()) } else { None },
    })
    .expect("backward");
    [d_residual, d_weight]
}

/// Few rows, and so many that blocks walk over several.
#[test]
fn gradients_are_added() {
    for cuda in modes() {
        let dtype = cuda.compute_dtype();
        for (case, shape) in SHAPES.into_iter().chain([(100, 16), (800, 5)]).enumerate() {
            for offset in OFFSETS {
                let [d_residual, d_weight] = backward(&cuda, case as u64, shape, offset, true);
                d_residual.assert_close(&cuda, bound(dtype), "d_residual");
                // Summed in f32 from stored operands in both modes.
                d_weight.assert_close(&cuda, 1e-5, "d_weight");
                let [frozen, untouched] = backward(&cuda, case as u64, shape, offset, false);
                assert_eq!(frozen.found(&cuda), d_residual.found(&cuda), "with a frozen weight");
                untouched.assert_same(&cuda, "the gradient of a frozen weight");
            }
        }
    }
}

#[test]
fn gradients_do_not_depend_on_the_schedule() {
    for dtype in [DType::Bf16, DType::F32] {
        assert_schedule_does_not_show(dtype, |cuda| {
            let [d_residual, d_weight] = backward(cuda, 0, (70, 72), 0, true);
            [d_residual.found(cuda), d_weight.found(cuda)].concat()
        });
    }
}

/// Every number of threads that a tuner may choose gives the gradients of the oracle, and of rows that are long enough for it
/// to matter, other bits than the launcher's own number.
#[test]
fn every_number_of_threads_is_right() {
    let shape = (20, 2504);
    for cuda in modes() {
        let dtype = cuda.compute_dtype();
        let mut bits = Vec::new();
        for threads in RowKernel::RmsNormBackward.candidates() {
            let rows = RowShape { kernel: RowKernel::RmsNormBackward, columns: shape.1, dtype };
            let threads = BTreeMap::from([(rows.to_string(), *threads)]);
            let cuda = cuda.clone().with_choices(Choices { threads, ..Choices::default() }).expect("choices");
            let [d_residual, d_weight] = backward(&cuda, 3, shape, 0, true);
            d_residual.assert_close(&cuda, bound(dtype), "d_residual");
            d_weight.assert_close(&cuda, 1e-5, "d_weight");
            bits.push(d_residual.found(&cuda));
        }
        assert!(dtype == DType::Bf16 || bits[0] != bits[1], "the choice reaches the launch");
    }
}

/// The same forward: the root mean square adds up other pairs first.
#[test]
fn every_number_of_threads_gives_the_norm() {
    let shape = (3, 2504);
    for cuda in modes() {
        let dtype = cuda.compute_dtype();
        let [x, weight] =
            [shape, (1, shape.1)].map(|shape| Operand::random(&cuda, &mut random(4), dtype, shape, 0, 1.0));
        for threads in RowKernel::RmsNormForward.candidates() {
            let rows = RowShape { kernel: RowKernel::RmsNormForward, columns: shape.1, dtype };
            let threads = BTreeMap::from([(rows.to_string(), *threads)]);
            let cuda = cuda.clone().with_choices(Choices { threads, ..Choices::default() }).expect("choices");
            let mut normed = Operand::poisoned(&cuda, dtype, shape, 0);
            let mut inverse = Operand::poisoned(&cuda, DType::F32, (shape.0, 1), 0);
            Cpu.run(ops::RmsNormForward {
                residual: x.cpu(),
                delta: None,
                weight: weight.cpu(),
                epsilon: EPSILON,
                sum: None,
                normed: normed.cpu_mut(),
                inverse_rms: inverse.cpu_mut(),
            })
            .expect("forward");
            cuda.run(ops::RmsNormForward {
                residual: x.cuda(),
                delta: None,
                weight: weight.cuda(),
                epsilon: EPSILON,
                sum: None,
                normed: normed.cuda_mut(),
                inverse_rms: inverse.cuda_mut(),
            })
            .expect("forward");
            normed.assert_close(&cuda, bound(dtype), "normed");
            inverse.assert_close(&cuda, bound(dtype), "inverse rms");
        }
    }
}

/// A row must fit the shared memory of a block: said, not tried.
#[test]
fn rows_beyond_shared_memory_are_refused() {
    let cuda = Cuda::simulated(DType::F32).expect("a simulated device");
    let shape = (1, 50_000);
    let x = Operand::random(&cuda, &mut random(0), DType::F32, shape, 0, 1.0);
    let mut normed = Operand::poisoned(&cuda, DType::F32, shape, 0);
    let mut inverse = Operand::poisoned(&cuda, DType::F32, (1, 1), 0);
    let refused = cuda.run(ops::RmsNormForward {
        residual: x.cuda(),
        delta: None,
        weight: x.cuda(),
        epsilon: EPSILON,
        sum: None,
        normed: normed.cuda_mut(),
        inverse_rms: inverse.cuda_mut(),
    });
    assert!(refused.expect_err("too long").to_string().contains("50000"));
}
