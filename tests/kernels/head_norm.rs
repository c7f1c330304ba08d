//! RMS norm of query and key heads, and its gradient.

use temper::backend::cpu::Cpu;
use temper::backend::cuda::Cuda;
use temper::ops::{self, AttentionShape, Backend, DType};

use crate::operand::{OFFSETS, Operand, assert_schedule_does_not_show};
use crate::support::{bound, modes, random};

const EPSILON: f32 = 1e-5;

fn shape(heads: usize, key_value_heads: usize, head_dim: usize) -> AttentionShape {
    AttentionShape { num_attention_heads: heads, num_key_value_heads: key_value_heads, head_dim, sliding_window: None }
}

/// Tokens and heads: head sizes with and without vectors, below and above a warp's, fewer and more heads than a block has
/// warps, one token and so many that a block walks over several.
fn cases() -> [(usize, AttentionShape); 7] {
    [
        (2, shape(32, 8, 128)),
        (1, shape(1, 1, 2)),
        (5, shape(3, 1, 80)),
        (7, shape(2, 1, 10)),
        (3, shape(4, 4, 64)),
        (1, shape(2, 1, 300)),
        (70, shape(2, 1, 16)),
    ]
}

#[test]
fn forward() {
    for cuda in modes() {
        let dtype = cuda.compute_dtype();
        for (case, (tokens, shape)) in cases().into_iter().enumerate() {
            for offset in OFFSETS {
                let random = &mut random(case as u64);
                let cols = shape.qkv_cols();
                let qkv = Operand::random(&cuda, random, dtype, (tokens, cols), offset, 1.5);
                let weight = Operand::random(&cuda, random, dtype, (2, shape.head_dim), offset, 1.0);
                let mut out = Operand::poisoned(&cuda, dtype, (tokens, cols), 0);
                Cpu.run(ops::HeadNormForward {
                    qkv: qkv.cpu(),
                    weight: weight.cpu(),
                    epsilon: EPSILON,
                    shape,
                    out: out.cpu_mut(),
                })
                .expect("forward");
                cuda.run(ops::HeadNormForward {
                    qkv: qkv.cuda(),
                    weight: weight.cuda(),
                    epsilon: EPSILON,
                    shape,
                    out: out.cuda_mut(),
                })
                .expect("forward");
                out.assert_close(&cuda, bound(dtype), "out");
                let normed = shape.query_cols() + shape.key_value_cols();
                for (row, original) in out.found(&cuda).chunks(cols).zip(qkv.found(&cuda).chunks(cols)) {
                    assert_eq!(row[normed..], original[normed..], "values have no norm");
                }
            }
        }
    }
}

/// The gradients of heads and weights of one call on the device and on the CPU, the latter added to what was there.
fn backward(
    cuda: &Cuda,
    case: u64,
    (tokens, shape): (usize, AttentionShape),
    offset: usize,
    train: bool,
) -> [Operand; 2] {
    let dtype = cuda.compute_dtype();
    let random = &mut random(case);
    let qkv = Operand::random(cuda, random, dtype, (tokens, shape.qkv_cols()), offset, 1.5);
    let weight = Operand::random(cuda, random, dtype, (2, shape.head_dim), offset, 1.0);
    let mut d_qkv = Operand::random(cuda, random, dtype, (tokens, shape.qkv_cols()), offset, 1.0);
    let mut d_weight = Operand::random(cuda, random, DType::F32, (2, shape.head_dim), offset, 1.0);
    Cpu.run(ops::HeadNormBackward {
        qkv: qkv.cpu(),
        weight: weight.cpu(),
        epsilon: EPSILON,
        shape,
        d_qkv: d_qkv.cpu_mut(),
        d_weight: if train { Some(d_weight.cpu_mut()) } else { None },
    })
    .expect("backward");
    cuda.run(ops::HeadNormBackward {
        qkv: qkv.cuda(),
        weight: weight.cuda(),
        epsilon: EPSILON,
        shape,
        d_qkv: d_qkv.cuda_mut(),
        d_weight: if train { Some(d_weight.cuda_mut()) } else { None },
    })
    .expect("backward");
    [d_qkv, d_weight]
}

#[test]
fn gradients() {
    for cuda in modes() {
        for (case, operands) in cases().into_iter().enumerate() {
            for offset in OFFSETS {
                let [d_qkv, d_weight] = backward(&cuda, case as u64, operands, offset, true);
                d_qkv.assert_close(&cuda, bound(cuda.compute_dtype()), "d_qkv");
                // Summed in f32 from stored operands in both modes.
                d_weight.assert_close(&cuda, 1e-5, "d_weight");
                let [frozen, untouched] = backward(&cuda, case as u64, operands, offset, false);
                assert_eq!(frozen.found(&cuda), d_qkv.found(&cuda), "with a frozen weight");
                untouched.assert_same(&cuda, "the gradient of a frozen weight");
            }
        }
    }
}

#[test]
fn gradients_do_not_depend_on_the_schedule() {
    for dtype in [DType::Bf16, DType::F32] {
        assert_schedule_does_not_show(dtype, |cuda| {
            let [d_qkv, d_weight] = backward(cuda, 0, (70, shape(4, 2, 16)), 0, true);
            [d_qkv.found(cuda), d_weight.found(cuda)].concat()
        });
    }
}

#[test]
fn no_tokens_are_no_work() {
    for cuda in modes() {
        let [d_qkv, d_weight] = backward(&cuda, 0, (0, shape(2, 1, 8)), 1, true);
        assert!(d_qkv.found(&cuda).is_empty());
        d_weight.assert_same(&cuda, "the gradient of no tokens");
    }
}

/// The sums of a block's warps must fit its shared memory: said, not tried.
#[test]
fn heads_beyond_shared_memory_are_refused() {
    let cuda = Cuda::simulated(DType::F32).expect("a simulated device");
    let shape = shape(8, 1, 4000);
    let qkv = Operand::random(&cuda, &mut random(0), DType::F32, (1, shape.qkv_cols()), 0, 1.0);
    let weight = Operand::random(&cuda, &mut random(0), DType::F32, (2, shape.head_dim), 0, 1.0);
    let mut d_qkv = Operand::random(&cuda, &mut random(1), DType::F32, (1, shape.qkv_cols()), 0, 1.0);
    let mut d_weight = Operand::poisoned(&cuda, DType::F32, (2, shape.head_dim), 0);
    let refused = cuda.run(ops::HeadNormBackward {
        qkv: qkv.cuda(),
        weight: weight.cuda(),
        epsilon: EPSILON,
        shape,
        d_qkv: d_qkv.cuda_mut(),
        d_weight: Some(d_weight.cuda_mut()),
    });
    assert!(refused.expect_err("too long").to_string().contains("4000"));
}
