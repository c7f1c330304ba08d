//! The bias of a linear layer, and its gradient.

use temper::backend::cpu::Cpu;
use temper::backend::cuda::Cuda;
use temper::ops::{self, Backend, DType};

use crate::operand::{OFFSETS, Operand, SHAPES, assert_schedule_does_not_show};
use crate::support::{bound, modes, random};

#[test]
fn a_bias_is_added_to_every_row() {
    for cuda in modes() {
        let dtype = cuda.compute_dtype();
        for (case, shape) in SHAPES.into_iter().enumerate() {
            for offset in OFFSETS {
                let random = &mut random(case as u64);
                let bias = Operand::random(&cuda, random, dtype, (1, shape.1), 0, 1.0);
                let mut y = Operand::random(&cuda, random, dtype, shape, offset, 1.0);
                Cpu.run(ops::AddBias { bias: bias.cpu(), y: y.cpu_mut() }).expect("a bias");
                cuda.run(ops::AddBias { bias: bias.cuda(), y: y.cuda_mut() }).expect("a bias");
                y.assert_close(&cuda, bound(dtype), "y");
            }
        }
    }
}

/// The gradient of one call on the device and on the CPU, added to what was there.
fn gradient(cuda: &Cuda, case: u64, shape: (usize, usize), offset: usize) -> Operand {
    let random = &mut random(case);
    let dy = Operand::random(cuda, random, cuda.compute_dtype(), shape, offset, 1.0);
    let mut d_bias = Operand::random(cuda, random, DType::F32, (1, shape.1), offset, 1.0);
    Cpu.run(ops::BiasBackward { dy: dy.cpu(), d_bias: d_bias.cpu_mut() }).expect("a gradient");
    cuda.run(ops::BiasBackward { dy: dy.cuda(), d_bias: d_bias.cuda_mut() }).expect("a gradient");
    d_bias
}

/// Few rows, and so many that they are summed in chunks, of which the last is shorter.
#[test]
fn the_gradient_is_the_sum_of_the_rows() {
    for cuda in modes() {
        for (case, shape) in SHAPES.into_iter().chain([(333, 40), (200, 5)]).enumerate() {
            for offset in OFFSETS {
                // Summed in f32 from stored operands in both modes.
                gradient(&cuda, case as u64, shape, offset).assert_close(&cuda, 1e-5, "d_bias");
            }
        }
    }
}

#[test]
fn the_gradient_does_not_depend_on_the_schedule() {
    for dtype in [DType::Bf16, DType::F32] {
        assert_schedule_does_not_show(dtype, |cuda| gradient(cuda, 0, (200, 72), 0).found(cuda));
    }
}

#[test]
fn no_rows_are_no_work() {
    for cuda in modes() {
        let mut none = Operand::poisoned(&cuda, cuda.compute_dtype(), (0, 8), 1);
        let bias = Operand::random(&cuda, &mut random(0), cuda.compute_dtype(), (1, 8), 1, 1.0);
        let mut d_bias = Operand::random(&cuda, &mut random(0), DType::F32, (1, 8), 1, 1.0);
        cuda.run(ops::BiasBackward { dy: none.cuda(), d_bias: d_bias.cuda_mut() }).expect("a gradient");
        cuda.run(ops::AddBias { bias: bias.cuda(), y: none.cuda_mut() }).expect("a bias");
        d_bias.assert_same(&cuda, "the gradient of no rows");
    }
}
