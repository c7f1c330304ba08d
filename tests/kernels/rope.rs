//! Rotary position embedding.

use temper::backend::cpu::Cpu;
use temper::backend::cuda::Cuda;
use temper::ops::{self, AttentionShape, Backend, DType, RopeTable, Tensor};

use crate::operand::{OFFSETS, Operand, integers};
use crate::support::{bound, modes, random};

const POSITIONS: usize = 40;

fn shape(heads: usize, key_value_heads: usize, head_dim: usize) -> AttentionShape {
    AttentionShape { num_attention_heads: heads, num_key_value_heads: key_value_heads, head_dim, sliding_window: None }
}

fn table<B: Backend>(backend: &B, half: usize) -> RopeTable<B> {
    let angle = |i: usize| (i / half) as f64 * 500f64.powf(-((i % half) as f64) / half as f64);
    let column = |f: fn(f64) -> f64| {
        let values: Vec<f32> = (0..POSITIONS * half).map(|i| f(angle(i)) as f32).collect();
        Tensor::from_f32(backend, "angles", POSITIONS, half, &values).expect("memory")
    };
    RopeTable { cos: column(f64::cos), sin: column(f64::sin) }
}

fn check(cuda: &Cuda, case: u64, tokens: usize, shape: AttentionShape, offset: usize) {
    let dtype = cuda.compute_dtype();
    let random = &mut random(case);
    let cpu_table = table(&Cpu, shape.head_dim / 2);
    let cuda_table = table(cuda, shape.head_dim / 2);
    let positions: Vec<u32> = (0..tokens).map(|_| random.below(POSITIONS) as u32).collect();
    let (cpu_positions, cuda_positions) = integers(cuda, &positions);
    let mut qkv = Operand::random(cuda, random, dtype, (tokens, shape.qkv_cols()), offset, 1.0);
    let before = qkv.found(cuda);
    for inverse in [false, true] {
        Cpu.run(ops::Rope { qkv: qkv.cpu_mut(), positions: cpu_positions.view(), table: &cpu_table, shape, inverse })
            .expect("rope");
        cuda.run(ops::Rope {
            qkv: qkv.cuda_mut(),
            positions: cuda_positions.view(),
            table: &cuda_table,
            shape,
            inverse,
        })
        .expect("rope");
        qkv.assert_close(cuda, bound(dtype), if inverse { "rope back" } else { "rope" });
        let rotated = shape.query_cols() + shape.key_value_cols();
        let after = qkv.found(cuda);
        for (row, original) in after.chunks(shape.qkv_cols()).zip(before.chunks(shape.qkv_cols())) {
            assert_eq!(row[rotated..], original[rotated..], "values are not rotated");
        }
    }
}

/// Head sizes with and without vectors, fewer and more heads than a block turns at once, and a half head that is longer
/// than a block.
#[test]
fn queries_and_keys_turn_there_and_back() {
    let shapes = [
        (2, shape(4, 2, 128)),
        (5, shape(32, 8, 128)),
        (3, shape(4, 4, 64)),
        (3, shape(3, 1, 80)),
        (7, shape(2, 1, 2)),
        (4, shape(5, 5, 10)),
        (1, shape(1, 1, 1100)),
    ];
    for cuda in modes() {
        for (case, (tokens, shape)) in shapes.into_iter().enumerate() {
            for offset in OFFSETS {
                check(&cuda, case as u64, tokens, shape, offset);
            }
        }
    }
}

#[test]
fn no_tokens_are_no_work() {
    for cuda in modes() {
        let shape = shape(2, 1, 8);
        let mut qkv = Operand::poisoned(&cuda, cuda.compute_dtype(), (0, shape.qkv_cols()), 1);
        let (_, positions) = integers(&cuda, &[]);
        cuda.run(ops::Rope {
            qkv: qkv.cuda_mut(),
            positions: positions.view(),
            table: &table(&cuda, 4),
            shape,
            inverse: false,
        })
        .expect("rope");
        assert!(qkv.found(&cuda).is_empty());
    }
    let cuda = Cuda::simulated(DType::Bf16).expect("a simulated device");
    let mut wide = Operand::poisoned(&cuda, DType::F32, (1, 32), 0);
    let (_, positions) = integers(&cuda, &[0]);
    let refused = cuda.run(ops::Rope {
        qkv: wide.cuda_mut(),
        positions: positions.view(),
        table: &table(&cuda, 4),
        shape: shape(2, 1, 8),
        inverse: false,
    });
    assert!(refused.expect_err("f32 in bf16 mode").to_string().contains("qkv is stored as F32"));
}
